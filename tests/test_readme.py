"""The README's Python runs as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = [
    (path.name, number, code)
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md")
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.M | re.S)
    )
]


@pytest.mark.parametrize(("file", "number", "code"), BLOCKS)
def test_block_runs(file, number, code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_readme_script_prints_what_it_says(tmp_path):
    code = next(code for file, _, code in BLOCKS if file == "README.md")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[1:] == ["55 ok", "110", "0.0 True answered incorrect"]
