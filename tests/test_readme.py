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

Called as a program with a page, this file runs that page in the working directory.
"""

from __future__ import annotations

import ast
import asyncio
import doctest
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

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
PRINTS, PRINTS_LIKE = "prints", "prints something like"
TITLE = re.compile(r'title="([^"]+)"')
LONGEST = 900  # seconds, on a machine that does much else
TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `reason` says why it does not run, empty where it does."""

    page: str
    line: int
    language: str
    title: str
    text: str
    reason: str

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
            reason = NOT_RUN.search(before)
            found.append(
                Block(
                    name_of(page),
                    token.map[0] + 1,
                    language,
                    title[1] if title else "",
                    token.content,
                    " ".join(reason[1].split()) if reason else "",
                )
            )
        before = token.content if token.type == "html_block" else ""
    return found


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


def run_page(page: Path) -> None:
    """Run the blocks of a page in the working directory, in their order.

    Raises whatever a block raises; AssertionError where one prints something else than the
    page says.
    """
    blocks = blocks_of(page)
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
        command = ["bash", "-euo", "pipefail", "-c", block.text]
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PATH": path}
        )
        assert done.returncode == 0, f"{block.place}: exit status {done.returncode}"
        return done.stdout
    if block.language == "toml":
        tomllib.loads(block.text)
    return ""


if __name__ == "__main__":
    sys.path.append("")  # files of the page can be imported, as in an interactive session
    run_page(Path(sys.argv[1]))
    raise SystemExit

BLOCKS = {page: blocks_of(page) for page in PAGES}
RUN = ("python", *SHELLS)
RUNNABLE = [p for p in PAGES if any(b.language in RUN and not b.reason for b in BLOCKS[p])]
LEFT_OUT = [block for blocks in BLOCKS.values() for block in blocks if block.reason]


def run_in(folder: Path, page: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", __file__, str(page)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LONGEST,
    )


@pytest.mark.timeout(LONGEST + 10)
@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_page_runs(page, tmp_path):
    done = run_in(tmp_path, page)
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
            monkeypatch.setattr(kind, "run", lambda self: None)
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
    # An indented block has no language, so nothing here would run it.
    code = re.findall(r"^(?:import |from |with |async |python |pip )", indented_of(page), re.M)
    assert not code
    assert not (page.is_relative_to(ROOT / "docs") and indented_of(page))


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
