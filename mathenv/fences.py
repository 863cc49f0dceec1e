r"""Fenced blocks in a model's turn: as CommonMark has them, and as models write them.

`split` reads what CommonMark (0.31, sections 4.5, 5.1 and 5.2) reads: backticks and tildes, any
length, info strings, fences inside of list items and quotes, whose indentation is taken off the
lines of the block. Beyond it, what models write and what can mean only one thing:

- prose before an opening fence that is marked as Python;
- text or an end token after a closing fence, also a next block that opens there;
- a closing fence glued to the last line of code, or deeper than CommonMark allows, or shorter
  or of the other kind than the opening one where no right one follows;
- no closing fence at the end of the turn.

What decides is Python: three backticks outside of strings and comments are never part of a
program. All of it is one pass over the lines, so it is linear in the length of the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal

Kind = Literal["python", "text", "output", "bare", "other"]

# Characters that look like a blank, and characters that look like nothing.
WIDE_BLANKS = "\u00a0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u202f\u205f\u3000"
INVISIBLE = "\ufeff\u00ad\u061c\u180e" + "".join(
    map(chr, (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)))
)
_BLANKS = " \t\f\v" + WIDE_BLANKS + INVISIBLE
_BLANK = f"[{_BLANKS}]"
_OPENING = re.compile(
    rf"(?P<lead>{_BLANK}*+(?:>{_BLANK}*+|(?:[-*+]|[0-9]{{1,9}}[.)]){_BLANK}++)*+)"
    r"(?P<fence>`{3,}+(?=[^`]*+\Z)|~{3,}+)(?P<info>.*)",
    re.DOTALL,
)
_FENCE = re.compile(rf"(?P<lead>{_BLANK}*+)(?P<fence>`{{3,}}+|~{{3,}}+)(?P<rest>.*)", re.DOTALL)
_INVISIBLE = re.compile(f"[{INVISIBLE}]")
_TAB_STOP = 4
_DEEPEST = 3  # columns: a fence that is deeper is content, says CommonMark

_WORDS = re.compile(r"[\s,:;={}()\[\]\"'|]+")
_DIRECTIVES = frozenset({"code", "cell", "code-cell", "code-block", "sourcecode", "eval-rst"})
_PYTHON = re.compile(
    r"(?:i?python|py)(?:[-_]?[0-9][\w.]*)?"
    r"|i?py(?:thon)?[-_]?(?:code|con|console|exec|interpreter|repl|script|session|tool)"
    r"|tool_code|jupyter(?:-python)?|[\w-]+\.py"
)
_TEXT = frozenset(
    {"text", "txt", "plain", "plaintext", "markdown", "md", "latex", "tex", "math", "katex"}
)
_OUTPUT = frozenset({"output", "out", "result", "results", "stdout", "console-output"})
# A call, an import or an assignment with blanks: `title="a"` and `numberLines` are none.
_CODE_IN_INFO = re.compile(r"\w\(|\A(?:import|from)\s|\A[\w, ]+\s[-+*/]?=\s")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `body` is its content, indentation of the fence taken off.

    `language` is what the info string says, in lower case and without decoration; `on_fence`
    is code that stands in the line of the opening fence; `closed` is False where only the end of
    the turn ended it.
    """

    kind: Kind
    language: str
    body: str
    closed: bool = True
    on_fence: bool = False


@dataclass(slots=True)
class Document:
    """The blocks of a turn and the lines outside of all blocks, in order."""

    pieces: list[Block | str] = field(default_factory=list)

    @property
    def blocks(self) -> list[Block]:
        """The blocks alone."""
        return [piece for piece in self.pieces if isinstance(piece, Block)]


def classify(info: str) -> tuple[Kind, str]:
    """Return what an info string marks, and the language it names.

    `python title="a"`, `{python}`, `{.python .numberLines}`, `python3.11`, `ipython`,
    `language-python` and `solve.py` are Python.
    """
    words = [word for word in _WORDS.split(_INVISIBLE.sub("", info).lower()) if word.strip(".#@")]
    if len(words) > 1 and words[0].strip(".") in _DIRECTIVES:
        del words[0]
    if not words:
        return "bare", ""
    language = words[0].lstrip(".#@").removeprefix("language-").removeprefix("lang-")
    if _PYTHON.fullmatch(language):
        return "python", language
    if language in _TEXT:
        return "text", language
    return ("output", language) if language in _OUTPUT else ("other", language)


def split(text: str) -> Document:
    """Read the fenced blocks of a turn (see the module)."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    document, position, patient = Document(), 0, True
    rest = ""  # what stands after a closing fence, in its line
    while rest or position < len(lines):
        opening = _opening(rest or lines[position], after_fence=bool(rest))
        if opening is None:
            document.pieces.append(rest or lines[position])
        elif opening.before.strip():
            document.pieces.append(opening.before)
        position, rest = position + (not rest), ""
        if opening is not None:
            end = _find_end(opening, lines, position, patient)
            _add(document, opening, lines[position : end.line], end)
            position, rest = end.resume, end.rest if end.rest.strip() else ""
            patient = patient and not end.makeshift
    return document


@dataclass(frozen=True, slots=True)
class _Opening:
    """`column` is where the fence stands, counted from the last of the `quotes` marks."""

    before: str
    fence: str
    info: str
    column: int
    quotes: int
    kind: Kind
    language: str


def _opening(line: str, *, after_fence: bool) -> _Opening | None:
    """Return the fence that opens a block in this line, which may follow a closing one."""
    if "```" not in line and "~~~" not in line:
        return None
    found = _OPENING.fullmatch(line)
    if found is None:
        return _opening_after_prose(line)
    kind, language = classify(found["info"])
    if after_fence and kind in ("bare", "other"):
        return None  # the text after a closing fence opens a block only by a known name
    outer, mark, lead = found["lead"].rpartition(">")
    start = _width(outer + mark)
    return _Opening(
        before="",
        fence=found["fence"],
        info=found["info"],
        column=_width(lead, start) - start,
        quotes=found["lead"].count(">"),
        kind=kind,
        language=language,
    )


def _opening_after_prose(line: str) -> _Opening | None:
    head, found, info = line.rpartition("`")
    before = head.rstrip("`")
    fence = (head + found)[len(before) :]
    kind, language = classify(info)
    if len(fence) < 3 or kind != "python" or "```" in before or len(info.split()) > 1:
        return None
    return _Opening(before, fence, info, _indentation(line), 0, kind, language)


@dataclass(frozen=True, slots=True)
class _End:
    """Where a block ends: `line` is the first that does not belong to it as a whole.

    `last` is code before the fence in that line, `rest` what comes after it, a fence included
    that opens the next block; `resume` is the next line to read. `closed` is False at the end
    of the text; `makeshift` says that the fence is not quite right.
    """

    line: int
    resume: int
    last: str = ""
    rest: str = ""
    closed: bool = True
    makeshift: bool = False


def _find_end(opening: _Opening, lines: list[str], start: int, patient: bool) -> _End:
    """Return where the block ends whose content begins at line `start`.

    `patient`: a Python block that nothing closes may end at a fence that is not quite right.
    That is granted once in a text, because what comes after it is read twice then.
    """
    makeshift: _End | None = None
    lexer = _Lexer()
    for number in range(start, len(lines)):
        content = _content(lines[number], opening)
        if content is None:  # the quote that holds the block is over
            return _End(number, number)
        fence = _FENCE.fullmatch(content) if "```" in content or "~~~" in content else None
        exact = fence is not None and not fence["rest"].strip()
        if fence is not None and exact and _closes(opening, lines[number], fence):
            return _End(number, number + 1)
        at, run = _stray_fence(opening, lexer, content, fence)
        if at is None:
            continue
        end = _cut(opening, number, content, at, at + run)
        if not exact and _long_enough(opening, content[at : at + run]):
            return end
        if opening.kind == "python":
            makeshift, lexer = makeshift or replace(end, makeshift=True), _Lexer()
    if makeshift is not None and patient:
        return makeshift
    return _End(len(lines), len(lines), closed=False)


def _stray_fence(
    opening: _Opening, lexer: _Lexer, content: str, fence: re.Match[str] | None
) -> tuple[int | None, int]:
    """Return where a fence that closes no block of CommonMark stands, and its length.

    In Python that is anywhere outside of strings and comments; elsewhere at a line's beginning.
    """
    inside = lexer.inside
    if opening.kind == "python":
        at, run = lexer.feed(content)
        if at is not None or inside:
            return at, run
    return (None, 0) if fence is None else (len(fence["lead"]), len(fence["fence"]))


def _cut(opening: _Opening, number: int, content: str, start: int, end: int) -> _End:
    """End a block within a line. A fence that opens a next block stays in `rest`, in its column."""
    after = content[end:]
    kind, _ = classify(after) if "`" not in after else ("bare", "")
    if kind in ("bare", "other") or len(after.split()) > 1:
        return _End(number, number + 1, last=content[:start], rest=after)
    lead = ">" * opening.quotes + " " * opening.column
    return _End(number, number + 1, last=content[:start], rest=lead + content[start:])


def _closes(opening: _Opening, line: str, fence: re.Match[str]) -> bool:
    """Whether CommonMark ends the block at this fence, which has nothing after it."""
    if not _long_enough(opening, fence["fence"]):
        return False
    return bool(opening.quotes) or _indentation(line) <= max(_DEEPEST, opening.column)


def _long_enough(opening: _Opening, fence: str) -> bool:
    return fence[0] == opening.fence[0] and len(fence) >= len(opening.fence)


def _add(document: Document, opening: _Opening, lines: list[str], end: _End) -> None:
    """Add a block; one that is not Python and never ended is text: it must hide nothing."""
    if not end.closed and opening.kind != "python":
        document.pieces += [opening.fence + opening.info, *lines]
        return
    content = [_content(line, opening) or "" for line in lines]
    if end.last.strip():
        content.append(end.last)
    _, *more = opening.info.split(None, 1) or [""]
    decorated = opening.info.lstrip().startswith("{") or not more or more[0].startswith("#")
    on_fence = not decorated and _CODE_IN_INFO.search(more[0]) is not None
    body = "\n".join(content)
    document.pieces.append(Block(opening.kind, opening.language, body, end.closed, on_fence))


def _content(line: str, opening: _Opening) -> str | None:
    """Take the quote marks and up to the fence's columns of blanks off a line.

    Returns None where the line has fewer quote marks than the fence.
    """
    at = column = 0
    for _ in range(opening.quotes):
        mark = line.find(">", at)
        if mark < 0 or line[at:mark].strip(_BLANKS):
            return None
        column, at = _width(line[at:mark], column) + 1, mark + 1
    wanted = column + opening.column
    while column < wanted and at < len(line) and line[at] in _BLANKS:
        column, at = _width(line[at], column), at + 1
    return " " * (column - wanted) + line[at:]  # what is left of a tab that was taken in part


def _indentation(line: str) -> int:
    return _width(line[: len(line) - len(line.lstrip(_BLANKS))])


def _width(blanks: str, column: int = 0) -> int:
    """Return the column after these blanks; tabs go to the next multiple of four."""
    for character in blanks:
        if character == "\t":
            column += _TAB_STOP - column % _TAB_STOP
        elif not _INVISIBLE.match(character):
            column += 1
    return column


class _Lexer:
    """Knows whether a line of Python begins inside of a string, and finds fences outside."""

    _NEXT = re.compile(r"#|`{3,}+|\"\"\"|'''|[\"']")
    _UNTIL = {  # noqa: RUF012 - never changed
        quote: re.compile(rf"(?:\\.|(?!{quote})[^\\])*+", re.DOTALL)
        for quote in ('"""', "'''", '"', "'")
    }

    def __init__(self) -> None:
        self._quote = ""

    @property
    def inside(self) -> bool:
        """Whether the next line begins inside of a string."""
        return bool(self._quote)

    def feed(self, line: str) -> tuple[int | None, int]:
        """Read a line; return where three or more backticks stand in code, and how many."""
        position = 0
        while True:
            if self._quote:
                found = self._UNTIL[self._quote].match(line, position)
                assert found is not None  # it matches the empty string
                position = found.end()
                if not line.startswith(self._quote, position):
                    if len(self._quote) == 1 and position == len(line):
                        self._quote = ""  # ended by the line, unless by a backslash
                    return None, 0
                position += len(self._quote)
                self._quote = ""
            token = self._NEXT.search(line, position)
            if token is None or token[0] == "#":
                return None, 0
            if token[0].startswith("`"):
                return token.start(), len(token[0])
            self._quote, position = token[0], token.end()
