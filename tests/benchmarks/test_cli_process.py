"""The command as a process: what it imports, its streams, its surroundings, and Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import pytest

from benchmarks.cli import COMMANDS
from benchmarks.ownership import PACKAGES
from mathenv import __version__
from mathenv.store import read_trajectories

COMMAND = [sys.executable, "-m", "benchmarks"]
ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "sympy", "matplotlib", "datasets", "accelerate", "wandb")
MEASURED = """
import resource, sys
{work}
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, *sys.modules, file=sys.stderr)
"""
HELP = """
from benchmarks.start import main
sys.argv = ["mathenv", *{words!r}]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""


def run(cwd: Path, line: str, **surroundings: str) -> subprocess.CompletedProcess[str]:
    """Run a line of bash in which $MATHENV is the command."""
    environment = {**os.environ, "MATHENV": " ".join(COMMAND), **surroundings}
    words = ["bash", "-c", line]
    return subprocess.run(
        words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=150, check=False
    )


def measured(work: str) -> tuple[float, set[str]]:
    """Return the CPU seconds of a process that does this, and the modules it has imported."""
    words = [sys.executable, "-c", MEASURED.format(work=work)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, *modules = done.stderr.splitlines()[-1].split()
    return float(seconds), set(modules)


@pytest.fixture(scope="module")
def least() -> float:
    """CPU seconds of importing what every command needs: the measure of this machine now."""
    return measured("import gymnasium, rich.console, tyro")[0]


@pytest.mark.parametrize("words", [*([name, "--help"] for name in COMMANDS), ["--version"]])
def test_help_imports_nothing_heavy_and_takes_a_moment(words: list[str], least: float) -> None:
    seconds, modules = measured(HELP.format(words=words))
    assert not modules & set(HEAVY)
    # Measured: 1 to 2.5 times; torch alone is 10 times as much.
    assert seconds < 5 * least + 0.2


@pytest.mark.parametrize("package", ["mathenv", "benchmarks"])
def test_version_names_what_a_report_needs(package: str, tmp_path: Path) -> None:
    done = run(tmp_path, f"{sys.executable} -m {package} --version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"mathenv {__version__} (Python 3.")
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("package", PACKAGES)
def test_each_package_says_that_it_is_typed(package: str) -> None:
    assert (files(package) / "py.typed").is_file()


def test_citation_and_changelog_are_of_this_version() -> None:
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("$MATHENV --help | head -1", 0, ""),
        ("$MATHENV bench --help | head -1", 0, ""),
        ("$MATHENV --version >&-", 0, ""),
        ("$MATHENV --version <&-", 0, ""),
        ("$MATHENV brew 2>&-", 2, ""),
        ("$MATHENV brew >&- 2>&- <&-", 2, ""),
        ("$MATHENV --help >/dev/full", 2, "standard output: No space left on device"),
        ("$MATHENV bench --help >/dev/full", 2, "standard output: No space left on device"),
        ("COLUMNS=20 $MATHENV bench --help", 0, ""),
        ("COLUMNS=1 $MATHENV train mdpo --help", 0, ""),
        ("NO_COLOR=1 TERM=dumb $MATHENV plan --help", 0, ""),
        ("PYTHONIOENCODING=ascii $MATHENV bench --help", 0, ""),
        ("PYTHONIOENCODING=ascii $MATHENV bench wörds", 2, "no suite is called 'w"),
        ("LC_ALL=C LANG=C $MATHENV bench wörds", 2, "no suite is called 'w"),
        ("HOME=/proc/none $MATHENV plan tiny --gpus A100-80G --json | head -1", 0, ""),
    ],
)
def test_streams_and_surroundings(line: str, status: int, said: str, tmp_path: Path) -> None:
    done = run(tmp_path, f"set -o pipefail; {line}")
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert said in done.stderr
    assert said or status or done.stderr == ""


def test_letters_that_the_encoding_lacks_are_shown_as_escapes(tmp_path: Path) -> None:
    line = "$MATHENV solve --question '√4?' --answer 2"
    done = run(tmp_path, line, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "\\u221a4?" in done.stdout


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: another error, the same road."""
    line = "$MATHENV bench words --limit 60 --out r"
    done = run(tmp_path, f"ulimit -S -f 40; {line}")
    assert done.returncode == 2, done.stderr
    assert "r/words-oracle/trajectories.jsonl: File too large" in done.stderr
    assert "what is finished is kept" in done.stderr
    assert "Traceback" not in done.stderr
    kept = (tmp_path / "r" / "words-oracle" / "trajectories.jsonl").read_bytes()
    assert kept.endswith(b"\n")
    assert 0 < kept.count(b"\n") < 60
    done = run(tmp_path, line)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "words-oracle" / "trajectories.jsonl").read_bytes().startswith(kept)
    assert len(list(read_trajectories(tmp_path / "r" / "words-oracle"))) == 60


@pytest.mark.parametrize(
    ("module", "words"),
    [("tyro", "bench --help"), ("torch", "plan tiny --gpus A100-80G"), ("torch", "demo --out d")],
)
def test_ctrl_c_while_importing_is_one_line(module: str, words: str, tmp_path: Path) -> None:
    slow = (
        f"import pathlib, time\npathlib.Path({str(tmp_path / 'ready')!r}).touch()\ntime.sleep(99)"
    )
    (tmp_path / f"{module}.py").write_text(slow)
    process = subprocess.Popen(
        [*COMMAND, *words.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.startswith("mathenv: interrupted")
    assert errors.count("\n") == 1


def test_another_owner_of_our_import_name_is_named(tmp_path: Path) -> None:
    theirs = tmp_path / "site"
    (theirs / "agents").mkdir(parents=True)
    (theirs / "agents" / "__init__.py").write_text("")
    info = theirs / "openai_agents-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: openai-agents\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("agents\n")
    done = run(tmp_path, "$MATHENV bench words --limit 1", PYTHONPATH=str(theirs))
    assert done.returncode == 2
    assert "the import name `agents` belongs to openai-agents here" in done.stderr
    assert done.stderr.count("\n") == 1
    done = run(tmp_path, "$MATHENV doctor", PYTHONPATH=str(theirs))
    assert done.returncode == 1, done.stderr
    assert "belongs to openai-agents here" in done.stdout
    assert "import agents" in done.stdout.splitlines()[-1]


def test_libraries_show_no_bars_of_their_own(tmp_path: Path) -> None:
    code = "from agents.tiny import *; make_tiny('tiny', config=TinyConfig(32, 1, 1, 64))"
    assert run(tmp_path, f'{sys.executable} -c "{code}"').returncode == 0
    words = "--agent transformers --model tiny --max-turn-tokens 8 --max-tokens 100"
    done = run(tmp_path, f"$MATHENV bench words --limit 1 {words}")
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("bench words:") for line in done.stderr.splitlines()), done.stderr


def test_the_library_leaves_the_surroundings_as_they_are() -> None:
    code = (
        "import os, json; before = dict(os.environ); import benchmarks.cli, benchmarks.learning\n"
    )
    code += "benchmarks.learning.LearningReporter(); print(json.dumps(before == dict(os.environ)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is True
