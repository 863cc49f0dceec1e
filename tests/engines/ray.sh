#!/usr/bin/env bash
# The tests that need Ray, on a cluster of this machine: tests/engines/ray.sh FOLDER_OF_PYTHON
#
# Installs Ray into the same environment: it changes no other package there.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=$1

skip() {
    printf '\n*** SKIPPED: the Ray tests. %s\n\n' "$1" >&2
    exit 0
}

"$bin/python" -c 'import ray' 2>/dev/null ||
    "$bin/pip" --quiet install --constraint constraints.txt 'ray>=2.40,<3' ||
    skip "pip cannot install ray here."
MATHENV_TEST_ENGINES=ray "$bin/pytest" -q --timeout 600 tests/agents/test_distributed.py \
    tests/learners/test_sampling_settings.py
