#!/usr/bin/env bash
# A quick part of the tests with the lowest versions that pyproject.toml allows of what this project
# uses directly: tests/engines/lowest.sh FOLDER_OF_PYTHON
#
# They get .venv-lowest, an environment of their own. torch alone comes in the version of
# constraints.txt: of older ones there is no small build for CPUs everywhere. Its floor was tried by
# hand (2.10, on the CPU), and what newer versions have is looked for before it is used
# (learners/numerics/attention.py; tests/learners/test_model_check.py takes it away).
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=.venv-lowest

skip() {
    printf '\n*** SKIPPED: the tests with the lowest versions. %s\n\n' "$1" >&2
    exit 0
}

install() {
    "$1/python" -m venv "$venv"
    echo '*' >"$venv/.gitignore"
    local pip="$venv/bin/pip --quiet --disable-pip-version-check"
    $pip install packaging || return 1
    { "$venv/bin/python" tests/engines/lowest.py train lora && grep '^torch==' constraints.txt; } \
        >"$venv/constraints.txt" || return 1
    $pip install --constraint "$venv/constraints.txt" --editable '.[train,lora]' \
        pytest pytest-timeout hypothesis || return 1
    touch "$venv/.installed"
}

if [[ ! -e $venv/.installed || pyproject.toml -nt $venv/.installed ]]; then
    rm -rf "$venv"
    if ! install "$1"; then
        # Without a network nothing is said of the floors; with one a failure is theirs.
        "$1/pip" --quiet --disable-pip-version-check download --no-deps --dest "$(mktemp -d)" \
            packaging || skip "No package index answers."
        echo "The lowest versions that pyproject.toml allows cannot be installed together." >&2
        exit 1
    fi
fi
printf '*** With the lowest versions, and torch %s (its own floor cannot be tried here)\n' \
    "$("$venv/bin/python" -c 'import torch; print(torch.__version__)')"
"$venv/bin/pytest" -q -m 'not slow' \
    tests/mathenv/test_env.py tests/mathenv/test_spaces.py tests/mathenv/test_store.py \
    tests/mathenv/grading/test_policy.py \
    tests/agents/test_loading.py tests/agents/test_rendering.py \
    tests/learners/test_train.py tests/learners/test_logprobs.py tests/learners/test_packing.py \
    tests/learners/test_checkpoint.py tests/learners/test_model_check.py \
    tests/learners/test_recipe.py tests/learners/test_lora.py tests/learners/test_parallel.py \
    tests/benchmarks/test_report.py tests/benchmarks/test_runner.py \
    "tests/benchmarks/test_cli.py::test_every_command_has_help_with_an_example"
