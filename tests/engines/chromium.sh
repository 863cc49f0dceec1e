#!/usr/bin/env bash
# The tests of HTML pages in a real browser: tests/engines/chromium.sh FOLDER_OF_PYTEST
#
# Uses the Chromium that is installed (or $MATHENV_CHROMIUM names). Without one, root on Debian
# gets one by apt. Playwright, which drives it, comes by pip without a browser of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
bin=$1

skip() {
    printf '\n*** SKIPPED: the browser tests. %s\n\n' "$1" >&2
    exit 0
}

found() {
    command -v "${MATHENV_CHROMIUM:-chromium}" || command -v chromium-browser ||
        command -v google-chrome
}

if ! found >/dev/null; then
    [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null ||
        skip "No Chromium is installed, and only root on Debian can install one here."
    apt-get -q update && apt-get install -qy --no-install-recommends chromium ||
        skip "apt cannot install chromium."
fi
"$bin/python" -c 'import playwright' 2>/dev/null ||
    "$bin/pip" install --quiet --constraint constraints.txt playwright ||
    skip "pip cannot install playwright."
MATHENV_TEST_ENGINES=chromium "$bin/pytest" -q -rP tests/benchmarks/pages/test_browser.py
