r"""What in a model's turn is code, and what is its final answer.

Code stands in a fenced block marked as Python; the final answer stands in `\boxed{}` outside of
fenced blocks (arXiv 2409.02392, section 3.1). There are two readings:

    "lenient"   what models really write (`mathenv.fences`). What cannot be read gets a sentence
                that tells the model what to write instead.
    "paper"     the paper's format to the letter: a line that holds ```` ```python ````, and a
                line that holds the closing fence alone. All else is neither code nor answer.

Every function is linear in the length of the text: a model may repeat itself up to its token limit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from mathenv.errors import ConfigError
from mathenv.fences import INVISIBLE, WIDE_BLANKS, Block, Document, split

ProtocolName = Literal["lenient", "paper"]

# The paper's reading: a fence opens at the start of a line and closes at the next line that
# holds only one. An unclosed block is not code there: the authors' code re-runs old cells
# (paper notes 4.5). Nor does it hold an answer: a box in a cut cell is part of the program.
_OPEN = re.compile(r"[ \t]*```([^`]*)")
_CLOSE = re.compile(r"[ \t]*```\s*")
_CODE_LANGUAGES = frozenset({"python", "py", "python3"})

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_OTHER_BOX = re.compile(r"\\framebox(?=\s*\{)")
# TeX needs no braces around one sign. A number must not go on (`\boxed 3/4`); a letter must end its
# formula or sentence: "use \boxed a few times" holds no answer.
_UNBRACED_BOX = re.compile(
    r"\\(?:boxed|fbox)\s*+("
    r"[-+]?[0-9]++(?:,[0-9]{3})*+(?:\.[0-9]++)?+"
    r"(?![0-9a-zA-Z]|\s*+(?:[-+*/^=(!%]|\\(?:frac|sqrt|cdot|times|div|pm|pi|over|left|%)))"
    r"|[a-zA-Z](?=\s*+(?:[$.,;:!)]|\\[)\]]|\Z)))"
)
_PLACEHOLDER = re.compile(r"\.*|…|\\[lc]?dots")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # escaped characters do not count
# A box in a block without a language: an answer, unless a quote or `#` before it says Python.
_BOX_IN_TEXT = re.compile(r"^[^\n\"'#]*?\\(?:boxed|fbox)\b", re.MULTILINE)

# Strings and comments, which stay as they are; then what is an error in any other place.
_STRING = r'"""(?:\\.|[^\\])*?(?:"""|\Z)|\'\'\'(?:\\.|[^\\])*?(?:\'\'\'|\Z)'
_STRING += r'|"(?:\\.|[^"\\\n])*+"?|\'(?:\\.|[^\'\\\n])*+\'?|#[^\n]*+'
_ODD = f"[{WIDE_BLANKS}{INVISIBLE}“”‘’]"
_ODD_OR_STRING = re.compile(
    rf"(?P<kept>{_STRING})|(?P<wide>[{WIDE_BLANKS}])|(?P<none>[{INVISIBLE}])"
    r"|“(?P<double>[^“”\"\\\n]*+)”|‘(?P<single>[^‘’'\\\n]*+)’",
    re.DOTALL,
)
_HAS_ODD = re.compile(_ODD)
_PROMPT = re.compile(r"[ \t]*(?:>>>|In \[\d+\]:)(?: |$)")
_PROMPTED = re.compile(r"[ \t]*(?:>>>|\.\.\.|In \[\d+\]:|\.\.\.:)(?: |$)")

# Other ways in which models call a tool: tags, special tokens and JSON.
_TOOL_CALL = re.compile(
    r"<(?:tool(?:_calls?|_code|_use)?|code|pre|script|python|execute|llm-code|invoke"
    r"|function(?:_calls?)?)(?:[\s=][^<>\n]{0,100})?>"
    r"|<[|｜](?:python_tag|tool[_▁]calls?(?:[_▁](?:section[_▁])?begin)?)[|｜]?>"
    r"|\[TOOL_CALLS\]|\bto=(?:python|functions)\b"
    r"|\{\s{0,20}\"(?:name|type|function|tool|code)\"\s{0,20}:",
    re.IGNORECASE,
)
# Code that no fence holds: other quotation marks, LaTeX, a transcript, or bare lines.
_UNFENCED = re.compile(
    r"^[ \t]*+(?:'{3}|\"{3}|`{2}|｀{3}|´{3}|\\`\\`\\`)[ \t]*+(?:python|py)\b"
    r"|\\begin\{(?:lstlisting|minted|verbatim|python|code)\*?\}"
    r"|^[ \t]*+(?:>>>|In \[\d+\]:)[ \t]"
    r"|^[ \t]*+(?:import [\w.]+(?: as \w+)?|from [\w.]+ import [\w, *]+|print\([^\n]*\)"
    r"|def \w+\([^\n]*\)[^\n]*:)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_SHOWN = 30  # characters of a language's name that are told back

HOW_TO_RUN = (
    "To run code, write Python in a block that opens with ```python on a line of its own and "
    "closes with ``` on a line of its own."
)
HOW_TO_ANSWER = "To answer, write \\boxed{...} outside of any block."
PRINTED_NOTHING = "(The code ran and printed nothing. Use print() to see a value.)"


_END_TOKEN = re.compile(r"</s>|<eos>|<end_of_turn>|<[|｜][\w▁|｜]{1,40}>")


@dataclass(frozen=True, slots=True)
class Reading:
    r"""What a text holds.

    `code` is its cell or None, `prose` the text in which an answer may stand. `complaint` says to
    the model why no code was found; it is empty where there is some, where nothing looks like
    an attempt at it, and in the paper's reading.
    """

    code: str | None
    prose: str
    complaint: str = ""


def check_protocol(name: str) -> None:
    """Raise `ConfigError` for a name that is no protocol's."""
    if name not in get_args(ProtocolName):
        raise ConfigError(f"protocol must be one of {get_args(ProtocolName)}, got {name!r}")


def read(text: str, protocol: ProtocolName = "lenient", *, finished: bool = True) -> Reading:
    """Read a turn's text. Several blocks of code are joined in order as one cell.

    `finished` is False where a limit cut the text: its last block is then half a cell and not
    code, as any unclosed block is in the paper's reading.
    """
    if protocol == "paper":
        return _read_paper(text)
    document = split(text)
    blocks = [block for block in document.blocks if block.kind == "python"]
    ready = [block for block in blocks if block.closed or finished]
    bodies = (b.body if b.closed else _without_end_token(b.body) for b in ready)
    code = "\n".join(map(_cell, bodies))
    text = _prose(document, with_text_blocks=not blocks)
    if code.strip() and not any(block.on_fence for block in ready):
        return Reading(code, text)
    return Reading(None, text, _complaint(document, text))


def extract_code(text: str, protocol: ProtocolName = "lenient") -> str | None:
    """Return the code of `text`, its blocks joined in order as one cell, or None."""
    return read(text, protocol).code


def prose(text: str, protocol: ProtocolName = "lenient") -> str:
    """Return `text` without its code: where an answer may stand."""
    return read(text, protocol).prose


def last_boxed(text: str, protocol: ProtocolName = "lenient") -> str | None:
    r"""Return the content of the last balanced `\boxed{}` outside of code, or None.

    The content may be empty. Escaped braces do not count towards the balance. The paper's protocol
    knows no boxes without braces.
    """
    outside = prose(text, protocol)
    return boxed_in(with_braces(outside) if protocol == "lenient" else outside)


def boxed_in(text: str) -> str | None:
    r"""Return the content of the last balanced `\boxed{}` of a text without code, or None.

    `\fbox{}` is one as well; other boxes are written as these first (`with_braces`).
    """
    closing = _closing_braces(text)
    for match in reversed(list(_BOX.finditer(text))):
        end = closing.get(match.end() - 1)
        if end is not None:
            return text[match.end() : end].strip()
    return None


def with_braces(text: str) -> str:
    r"""Write `\boxed 5` and `\framebox{5}` as `\boxed{5}`; boxes with braces stay as they are."""
    if "box" not in text:
        return text
    return _UNBRACED_BOX.sub(r"\\boxed{\1}", _OTHER_BOX.sub(r"\\boxed", text))


def is_placeholder(answer: str) -> bool:
    r"""Whether a box shows only where the answer will stand: `\boxed{}`, `\boxed{...}`."""
    return _PLACEHOLDER.fullmatch(answer) is not None


def _prose(document: Document, *, with_text_blocks: bool) -> str:
    r"""Return the text outside of blocks.

    A turn without code may give its answer in a block of text, or in one without a language
    that is no program.
    """
    parts = []
    for piece in document.pieces:
        if isinstance(piece, str):
            parts.append(piece)
        elif with_text_blocks and (piece.kind == "text" or _is_boxed_text(piece)):
            parts.append(piece.body)
    return "\n".join(parts)


def _is_boxed_text(block: Block) -> bool:
    return block.kind == "bare" and _BOX_IN_TEXT.search(block.body) is not None


def _complaint(document: Document, prose: str) -> str:
    """Say why nothing was run, in sentences that a model can follow; empty for mere prose."""
    for block in document.blocks:
        if block.kind == "python":
            why = "the python block is empty"
            if block.on_fence:
                why = "the line that opens the block holds more than the language"
            return f"No code was run: {why}. {HOW_TO_RUN}"
        if block.kind == "other":
            name = "".join(filter(str.isprintable, block.language))[:_SHOWN]
            how = f"{HOW_TO_RUN} {HOW_TO_ANSWER}" if "\\boxed" in block.body else HOW_TO_RUN
            return f"No code was run: the block is marked {name!r}, not python. {how}"
    if any(block.kind == "bare" for block in document.blocks):
        return (
            "No code was run: the block does not say that it is Python. "
            f"{HOW_TO_RUN} {HOW_TO_ANSWER}"
        )
    if "```" in prose or "~~~" in prose:
        return f"No code was run: a fence (```) does not open a block of Python. {HOW_TO_RUN}"
    if _TOOL_CALL.search(prose):
        return f"No code was run: tool calls and tags are not read. {HOW_TO_RUN}"
    if _UNFENCED.search(prose):
        return f"No code was run: Python outside of a block is not read. {HOW_TO_RUN}"
    if _BOX.search(prose) and boxed_in(prose) is None:
        return f"No answer was read: the braces of the box do not close. {HOW_TO_ANSWER}"
    return ""


def _cell(body: str) -> str:
    """Return a block's content as a program: prompts, odd blanks and indentation taken off."""
    if _HAS_ODD.search(body):
        body = _ODD_OR_STRING.sub(_plain, body)
    lines = body.rstrip("\n").split("\n")
    first = next((line for line in lines if line.strip()), "")
    if _PROMPT.match(first):
        lines = [line[found.end() :] for line in lines if (found := _PROMPTED.match(line))]
    # No program begins with an indented line. What the first one has too much goes, but for
    # comments, which may stand anywhere.
    first = next((line for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
    margin = first[: len(first) - len(first.lstrip(" \t"))]
    return "\n".join(line.removeprefix(margin) for line in lines)


def _without_end_token(body: str) -> str:
    """Take off a token that ends the turn of a model whose server leaves it in the text."""
    text = body.rstrip()
    start = max(0, text.rfind("<"))
    return text[:start] if _END_TOKEN.fullmatch(text, start) else body


def _plain(found: re.Match[str]) -> str:
    if found["wide"]:
        return " "
    if found["none"]:
        return ""
    if found["double"] is not None:
        return f'"{found["double"]}"'
    return f"'{found['single']}'" if found["single"] is not None else found[0]


def _read_paper(text: str) -> Reading:
    blocks: list[tuple[str, str]] = []
    outside: list[str] = []
    lines = text.replace("\r\n", "\n").split("\n")
    language: str | None = None
    start = 0
    for number, line in enumerate(lines):
        if language is None:
            opening = _OPEN.fullmatch(line)
            if opening is None:
                outside.append(line)
            else:
                language, start = opening[1].strip().lower(), number
        elif _CLOSE.fullmatch(line):
            blocks.append((language, "\n".join(lines[start + 1 : number])))
            language = None
    if language is not None and language not in _CODE_LANGUAGES:
        outside += lines[start:]  # a stray fence must not swallow the answer after it
    cells = [body.rstrip("\n") for language, body in blocks if language in _CODE_LANGUAGES]
    code = "\n".join(cells)
    return Reading(code if code.strip() else None, "\n".join(outside))


def _closing_braces(text: str) -> dict[int, int]:
    """Map the position of each balanced `{` to that of its `}`."""
    pairs: dict[int, int] = {}
    stack: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            stack.append(match.start())
        elif match[0] == "}" and stack:
            pairs[stack.pop()] = match.start()
    return pairs


def code_block(code: str) -> str:
    """Write `code` as a turn that `extract_code` reads back."""
    return f"```python\n{code}\n```"


def output_block(output: str) -> str:
    """Write interpreter output as the paper's user turn (section 3.1)."""
    return f"```output\n{output}\n```"
