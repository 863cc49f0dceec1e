#!/usr/bin/env bash
# The inspect-ai adapter with the real package: tests/engines/inspect.sh FOLDER_OF_PYTHON
#
# inspect-ai pins fsspec to another release than ours and brings sixty packages (boto3, textual),
# so it gets .venv-inspect, an environment of its own, without torch.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=0.3.285
venv=.venv-inspect

skip() {
    printf '\n*** SKIPPED: the inspect-ai tests. %s\n\n' "$1" >&2
    exit 0
}

install() {
    "$1/python" -m venv "$venv"
    echo '*' >"$venv/.gitignore"
    # The same grader and environment as in our own environment.
    grep -E '^(gymnasium|numpy|sympy|math-verify|latex2sympy2_extended|antlr4-python3-runtime)==' \
        constraints.txt >"$venv/constraints.txt"
    "$venv/bin/pip" --quiet --disable-pip-version-check install \
        --constraint "$venv/constraints.txt" \
        --editable . "inspect-ai==$version" pytest pytest-timeout
    touch "$venv/.installed-$version"
}

if [[ ! -e $venv/.installed-$version ]]; then
    install "$1" || skip "inspect-ai $version cannot be installed here."
fi
"$venv/bin/pytest" -q -p no:logging tests/benchmarks/test_inspect_adapter.py
