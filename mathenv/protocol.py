r"""What in a model's turn is code, and what is its final answer.

One dialect for now, the paper's (section 3.1): code stands in a fenced block marked
`python`; the final answer stands in `\boxed{}` outside of fenced blocks. Every function is
linear in the length of the text: a model may repeat itself up to its token limit.
"""

from __future__ import annotations

import re

# A fence opens at the start of a line and closes at the next line that holds only one.
# An unclosed block is not code: running half a cell would answer a turn the model did
# not finish (the authors' code re-runs old cells there, paper notes 4.5). Nor does it hold
# an answer: a box in a cell that the length limit cut is part of the program.
_OPEN = re.compile(r"[ \t]*```([^`]*)")
_CLOSE = re.compile(r"[ \t]*```\s*")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # escaped characters do not count
_CODE_LANGUAGES = frozenset({"python", "py", "python3"})


def extract_code(text: str) -> str | None:
    """Return the closed python blocks of `text`, joined in order as one cell, or None."""
    blocks, _ = _split(text)
    code = "\n".join(body.rstrip("\n") for language, body in blocks if language in _CODE_LANGUAGES)
    return code if code.strip() else None


def prose(text: str) -> str:
    """Return `text` without its fenced blocks: where an answer may stand."""
    return _split(text)[1]


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last balanced `\boxed{}` outside of code, or None.

    The content may be empty. Escaped braces do not count towards the balance.
    """
    text = prose(text)
    closing = _closing_braces(text)
    for match in reversed(list(_BOX.finditer(text))):
        end = closing.get(match.end() - 1)
        if end is not None:
            return text[match.end() : end].strip()
    return None


def _split(text: str) -> tuple[list[tuple[str, str]], str]:
    """Return the closed blocks as (language, body) and the text outside of all blocks."""
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
    return blocks, "\n".join(outside)


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
