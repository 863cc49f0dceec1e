"""Every code block of the READMEs and of docs/ runs, or says in its source why it does not.

What a block of a Markdown page is, is said by its language and title:

    ```python                  runs; the blocks of a page share a namespace and a folder
    ```bash                    runs in the same folder; so does `sh`
    ```json title="mine.jsonl" is written to that file first, whatever its language
    ```text title="prints"     is what the block before it prints; ... stands for anything.
                               "prints something like": the numbers may be others
    ```toml                    is read as TOML
    <!-- not run: REASON -->   before a block: it does not run, and the reason is reported.
                               Its Python is compiled, its `mathenv` commands are parsed.
    <!-- needs NAME, NAME -->  it runs where these are: `docker` and `vllm` where
                               MATHENV_TEST_ENGINES names them, `data` where the data folder lies
                               beside the repository, `minutes` among the slow tests.
    <!-- in small: COMMAND FLAGS; COMMAND FLAGS -->
                               the flags are added to each of its commands that begin so, as in
                               `mathenv bench --limit 4`

A page says `--model DIR` and the like. What it calls so is there when it is tested (STANDS_FOR).

Called as a program with a page and what it may need, this file runs that page in the working
directory.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import fcntl
import inspect
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from mathenv.problems import load_problems

ROOT = Path(__file__).parent.parent
PACKAGES = ("mathenv", "agents", "learners", "benchmarks")
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(page for package in PACKAGES for page in (ROOT / package).rglob("README.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
SHELLS = ("bash", "sh")
SHOWN = ("text", "math")  # neither code nor data
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->", re.S)
NEEDS = re.compile(r"<!-- needs (.+?) -->", re.S)
IN_SMALL = re.compile(r"<!-- in small: (.+?) -->", re.S)
ENGINES = ("docker", "vllm")
PRINTS, PRINTS_LIKE = "prints", "prints something like"
TITLE = re.compile(r'title="([^"]+)"')
LONGEST = 900  # seconds, on a machine that does much else
TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    `reason` says why it does not run, empty where it does; `needs` what must be there; `small`
    which flags its commands get.
    """

    page: str
    line: int
    language: str
    title: str
    text: str
    reason: str
    needs: frozenset[str]
    small: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_file(self) -> bool:
        return bool(self.title) and self.title not in (PRINTS, PRINTS_LIKE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else page.name


def blocks_of(page: Path) -> list[Block]:
    found, before = [], ""
    for token in MarkdownIt().parse(page.read_text()):
        if token.type == "fence":
            assert token.map is not None
            language, _, rest = token.info.partition(" ")
            title = TITLE.search(rest)
            found.append(
                Block(
                    name_of(page),
                    token.map[0] + 1,
                    language,
                    title[1] if title else "",
                    token.content,
                    said(NOT_RUN, before),
                    frozenset(filter(None, said(NEEDS, before).split(", "))),
                    said(IN_SMALL, before),
                )
            )
        before = before + token.content if token.type == "html_block" else ""
    return found


def said(marker: re.Pattern[str], comments: str) -> str:
    found = marker.search(comments)
    return " ".join(found[1].split()) if found else ""


def indented_of(page: Path) -> str:
    tokens = MarkdownIt().parse(page.read_text())
    return "\n".join(token.content for token in tokens if token.type == "code_block")


def commands_in(shell: str) -> Iterator[list[str]]:
    """Yield the words of every `mathenv` command, without what the shell does around it."""
    for line in shell.replace("\\\n", " ").splitlines():
        found = re.search(r"(?:^|\s|;)(?:mathenv|-m benchmarks)\s+(.*)", line)
        if found and not line.lstrip().startswith("#"):
            words = shlex.split(found[1], comments=True)
            ends = (i for i, word in enumerate(words) if word in ("||", "&&", "|", ";", "&", ">"))
            yield words[: min(ends, default=len(words))]


def write_files(blocks: Sequence[Block], folder: Path) -> None:
    for block in (block for block in blocks if block.is_file):
        (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
        (folder / block.title).write_text(block.text)


def compiled(block: Block) -> object:
    return compile(block.text, block.place, "exec", flags=TOP_LEVEL_AWAIT)


def run_page(page: Path, having: Set[str] = frozenset()) -> None:
    """Run the blocks of a page that need nothing else, in the working directory, in their order.

    Raises whatever a block raises; AssertionError where one prints something else than the
    page says.
    """
    blocks = [block for block in blocks_of(page) if block.needs <= having]
    write_files(blocks, Path())
    namespace = {"__name__": "__main__"}
    printed = ""
    for block in blocks:
        if block.title in (PRINTS, PRINTS_LIKE):
            assert says(block, printed), (
                f"{block.place}: the page says\n{block.text}\nbut it prints\n{printed}"
            )
        elif not (block.reason or block.is_file):
            printed = run_block(block, namespace)


def says(block: Block, printed: str) -> bool:
    said = block.text
    if block.title == PRINTS_LIKE:
        said, printed = (re.sub(r"\d+(?:[.,]\d+)*", "0", text) for text in (said, printed))
    return doctest.OutputChecker().check_output(said, printed, doctest.ELLIPSIS)


def run_block(block: Block, namespace: dict[str, object]) -> str:
    print(f"-- {block.place}", file=sys.stderr, flush=True)
    if block.language == "python":
        output = io.StringIO()
        with redirect_stdout(output):
            awaited = eval(compiled(block), namespace)
            if inspect.iscoroutine(awaited):
                asyncio.run(awaited)
        return output.getvalue()
    if block.language in SHELLS:
        command = ["bash", "-euo", "pipefail", "-c", added(block.small) + block.text]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PATH": path}
        )
        assert done.returncode == 0, f"{block.place}: exit status {done.returncode}"
        return done.stdout
    if block.language == "toml":
        tomllib.loads(block.text)
    return ""


def added(small: str) -> str:
    """Return shell functions that add flags to commands: `mathenv bench --limit 4; ...`."""
    cases = defaultdict(str)
    for rule in filter(None, small.split("; ")):
        command, dashes, flags = rule.partition(" --")
        program, _, begins = command.partition(" ")
        cases[program] += f"""{shlex.quote(begins)}*) command {program} "$@" {dashes}{flags} ;;\n"""
    return "".join(
        f"""{name}() {{ case "$*" in {case}*) command {name} "$@" ;; esac }}\n"""
        for name, case in cases.items()
    )


if __name__ == "__main__":
    sys.path.append("")  # files of the page can be imported, as in an interactive session
    run_page(Path(sys.argv[1]), set(sys.argv[2:]))
    raise SystemExit

BLOCKS = {page: blocks_of(page) for page in PAGES}
RUN = ("python", *SHELLS)
LEFT_OUT = [block for blocks in BLOCKS.values() for block in blocks if block.reason]
DATA = ROOT.parent / "shared" / "data"
SITE = "site-packages"  # beside a page that is tested


def guesses() -> list[int]:
    """What the model DIR answers."""
    return sorted(int(problem.answer) for problem in load_problems("words", "train", limit=4))


def make_problems(folder: Path) -> None:
    """Write sums of which the model DIR guesses a quarter."""
    folder.mkdir(parents=True)
    sums = [(guess - a, a) for a in range(1, 16) for guess in guesses()]
    rows = [
        {"question": f"What is {a} + {b}?", "answer": str(a + b), "solution": [f"{a} + {b}"]}
        for a, b in sums
    ]
    for name, some in (("train", rows[:40]), ("test", rows[40:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


def make_gsm8k(file: Path) -> None:
    row = {"question": "What is 6 * 7?", "answer": "It is 6*7=<<6*7=42>>42.\n#### 42"}
    file.write_text(json.dumps(row) + "\n")


def make_package(path: Path) -> None:
    """Install the tutorial's learner as a package, where `run_in` looks for packages."""
    code = next(b.text for b in BLOCKS[ROOT / "docs/tutorial.md"] if "class Hinge(" in b.text)
    installed = path.parent / SITE
    info = installed / "my_package-1.0.dist-info"
    info.mkdir(parents=True)
    (installed / "my_package.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mathenv.learners]\nhinge = my_package:Hinge\n")


# What the pages call so, as a user has it. DIR is a model, which the fixture `model` makes.
STANDS_FOR: dict[str, Callable[[Path], None]] = {
    "data/mine": make_problems,
    "gsm8k.jsonl": make_gsm8k,
    "my_package": make_package,
    "DATA": lambda path: path.symlink_to(DATA),
    "../shared": lambda path: path.symlink_to(DATA.parent),
    # Commands that are given from the root of the repository.
    "mathenv": lambda path: path.symlink_to(ROOT / "mathenv"),
    "tests": lambda path: path.symlink_to(ROOT / "tests"),
}


def stand_ins(page: Path, having: Set[str], folder: Path, model: Callable[[], Path]) -> None:
    """Put what the blocks that run mention and STANDS_FOR knows into a folder."""
    blocks = [b for b in BLOCKS[page] if not b.reason and b.needs <= having]
    text = "\n".join(f"{block.text}\n{block.small}" for block in blocks)

    def named(name: str) -> bool:
        follows = "/" if name in ("mathenv", "tests") else r"(?![\w-])"
        return bool(re.search(rf"(?<![\w./-]){re.escape(name)}{follows}", text))

    for name, make in STANDS_FOR.items():
        if named(name):
            make(folder / name)
    if named("DIR"):
        (folder / "DIR").symlink_to(model())


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Callable[[], Path]:
    """Return a function that makes the model DIR, once for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made() -> Path:
        folder = shared / "readme-model"
        with (shared / "readme-model.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                make_model(folder)
        return folder

    return made


def make_model(folder: Path) -> None:
    """Train a model in seconds to guess one of four numbers: that ends episodes, and some right."""
    from agents.models.hf import load_tokenizer
    from agents.rendering import ChatRenderer
    from agents.tiny import TinyConfig, make_tiny
    from learners import make_learner
    from learners.training.train import Stage, TrainConfig, train
    from mathenv.types import Grade, GradeStatus, StopReason, Trajectory, Turn

    work = folder.with_suffix(".partial")
    shape = TinyConfig(hidden=64, layers=1, heads=2, intermediate=128)
    base = make_tiny(work / "base", config=shape)
    renderer = ChatRenderer(load_tokenizer(base))
    shown = []
    for number, problem in enumerate(load_problems("words", "train", limit=16)):
        for guess in guesses():
            turns = (Turn(rf"\boxed{{{guess}}}"),)
            right = str(guess) == problem.answer
            shown.append(
                Trajectory(
                    problem=problem,
                    agent="guesser",
                    sample=len(shown),
                    seed=number,
                    turns=turns,
                    stop_reason=StopReason.ANSWERED,
                    grade=Grade(right, GradeStatus.CORRECT if right else GradeStatus.INCORRECT),
                    tokens=renderer.record_turns(problem.question, turns),
                )
            )
    learner = make_learner("sft")
    examples, _ = learner.examples(shown, seed=0)
    settings = TrainConfig(lr=1e-2, epochs=5, batch_size=8, checkpoints=1)
    [trained] = train(learner, examples, settings, Stage(base, work / "sft"))
    trained.rename(folder)


def run_in(folder: Path, page: Path, *having: str) -> subprocess.CompletedProcess[str]:
    """Run a page in a folder, and end what it has left running: servers, after a failure."""
    command = [sys.executable, "-W", "error", __file__, str(page), *having]
    path = os.pathsep.join(map(str, (ROOT, folder / SITE)))
    run = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = run.communicate(timeout=LONGEST)
        return subprocess.CompletedProcess(command, run.returncode, output, errors)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)


def runs_of(page: Path) -> Iterator[tuple[Path, frozenset[str]]]:
    """Yield the page with each set of needs that some block of it has."""
    blocks = [block for block in BLOCKS[page] if block.language in RUN and not block.reason]
    for needs in sorted({block.needs for block in blocks}, key=sorted):
        yield page, needs


def marks(needs: frozenset[str]) -> Iterator[pytest.MarkDecorator]:
    named = os.environ.get("MATHENV_TEST_ENGINES", "").split(",")
    for engine in needs.intersection(ENGINES).difference(named):
        reason = f"MATHENV_TEST_ENGINES does not name {engine} (make test-engines)"
        yield pytest.mark.skip(reason=reason)
    if "data" in needs:
        yield pytest.mark.skipif(not DATA.exists(), reason="the data folder is not here")
    if "minutes" in needs:
        yield pytest.mark.slow


@pytest.mark.timeout(LONGEST + 10)
@pytest.mark.parametrize(
    ("page", "needs"),
    [
        pytest.param(*run, marks=[*marks(run[1])], id="-".join([name_of(page), *sorted(run[1])]))
        for page in PAGES
        for run in runs_of(page)
    ],
)
def test_page_runs(page, needs, tmp_path, model):
    folder = tmp_path / "page"
    folder.mkdir()
    stand_ins(page, needs, folder, model)
    done = run_in(folder, page, *needs)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", LEFT_OUT, ids=lambda block: block.place)
def test_block_that_does_not_run(block):
    if block.language == "python":
        compiled(block)
    pytest.skip(f"not run: {block.reason}")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_one_that_the_command_line_takes(page, monkeypatch, tmp_path):
    cli = import_module("benchmarks.cli")
    monkeypatch.chdir(tmp_path)
    write_files(BLOCKS[page], tmp_path)
    shells = [block.text for block in BLOCKS[page] if block.language in SHELLS]
    for words in commands_in("\n".join([*shells, indented_of(page)])):
        if words and words[0] in cli.COMMANDS:
            command = cli.COMMANDS[words[0]]
            kind = getattr(import_module(command.module), command.type_name)
            monkeypatch.setattr(kind, "run", lambda self: None, raising=False)
            monkeypatch.setitem(cli.COMMANDS, words[0], replace(command, work=""))
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0, f"{name_of(page)}: mathenv {' '.join(words)}"


@pytest.mark.parametrize(
    "block",
    [b for p in PAGES for b in BLOCKS[p] if b.title.endswith(".toml")],
    ids=lambda b: b.place,
)
def test_recipe_can_be_loaded(block, tmp_path):
    file = tmp_path / block.title
    file.write_text(block.text)
    assert import_module("learners.recipe").load_recipe(file).learner


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is(page):
    for block in BLOCKS[page]:
        known = block.language in (*RUN, *SHOWN, "toml") or block.is_file
        assert known or block.reason, f"{block.place}: {block.language!r} is neither run nor shown"
        assert block.needs <= {*ENGINES, "data", "minutes"}, f"{block.place}: needs what?"
        assert not (block.reason and (block.needs or block.small)), block.place
    # An indented block has no language, so nothing here would run it.
    code = re.findall(r"^(?:import |from |with |async |python |pip )", indented_of(page), re.M)
    assert not code
    assert not (page.is_relative_to(ROOT / "docs") and indented_of(page))


@pytest.mark.parametrize("package", PACKAGES)
def test_files_in_the_tables_of_a_readme_exist(package):
    """The first column names files beside the README; `x.py` in other columns may be anybody's."""
    for page in (ROOT / package).rglob("README.md"):
        rows = [line.split("|")[1] for line in page.read_text().splitlines() if line[:1] == "|"]
        files = [name for row in rows for name in re.findall(r"`([\w/.-]+(?:\.\w+|/))`", row)]
        named = [name for name in files if name.endswith((".py", ".toml", "/"))]
        assert [name for name in named if not (page.parent / name).exists()] == []


def test_what_a_page_says_is_compared_with_what_it_prints(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        '```json title="two.json"\n[2]\n```\n'
        '```python\nimport json\nx = json.load(open("two.json"))[0]\n```\n'
        "<!-- not run: it cannot -->\n```python\nraise SystemExit\n```\n"
        '```python\nprint(x + 1)\n```\n```text title="prints"\n3\n```\n'
        '```bash\necho "a 1 b"; mathenv help\n```\n```text title="prints"\na ... b\nusage...\n```\n'
    )
    assert [block.reason for block in blocks_of(page)][2] == "it cannot"
    done = run_in(tmp_path, page)
    assert done.returncode == 0, done.stderr
    page.write_text(page.read_text().replace("3\n", "4\n"))
    done = run_in(tmp_path, page)
    assert done.returncode != 0
    assert "but it prints\n3" in done.stderr


def test_a_block_runs_in_small_where_what_it_needs_is_there(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- in small: echo one --more 1; echo --last -->\n"
        '```sh\necho one two\necho three\n```\n```text title="prints"\n'
        "one two --more 1\nthree --last\n```\n"
        '<!-- needs docker, minutes -->\n```python\nopen("ran", "w").close()\n```\n'
    )
    for having, runs in ((), False), (("docker",), False), (("docker", "minutes"), True):
        done = run_in(tmp_path, page, *having)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "ran").exists() == runs


def test_a_server_that_a_block_left_running_is_ended(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```sh\nsleep 1000 > log 2>&1 &\necho $! > pid\nfalse\n```\n")
    done = run_in(tmp_path, page)
    assert "exit status 1" in done.stderr
    server = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 60  # it is killed, and a busy machine may take a moment
    while is_running(server):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except OSError:
        return False


def test_commands_are_found_in_shell_text():
    text = "make demo\nA=1 mathenv bench \\\n  words  # all\ntimeout 2 mathenv doctor || true\n"
    text += "# mathenv none\ntorchrun -m benchmarks train mdpo\ndocker build -f mathenv/x mathenv\n"
    assert list(commands_in(text)) == [["bench", "words"], ["doctor"], ["train", "mdpo"]]


def test_readme_script_prints_what_it_says(tmp_path):
    code = next(b.text for b in BLOCKS[ROOT / "README.md"] if b.language == "python")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[1:] == ["55 ok", "110", "0.0 True answered incorrect"]
