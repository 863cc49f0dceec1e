r"""The tokens of a formula: numbers, letters, commands and signs."""

from __future__ import annotations

import re
from functools import lru_cache

from mathenv.grading.letters import SYMBOLS, letters_of

MAX_CHARS = 2000

_TOKEN = re.compile(
    r"\s*(?:(?P<repeating>[0-9]*\.[0-9]*\s*\\(?:overline|bar|dot)\s*(?:\{\s*[0-9]{1,30}\s*\}|[0-9]))"
    r"|(?P<named>\\(?:angle|triangle)\s*[A-Z]{1,4}(?![a-zA-Z]))"
    r"|(?P<matrix>\\(?:begin|end)\s*\{(?:[pbBvV]?matrix|smallmatrix|array)\}(?:\s*\{[lcr|\s]*\})?)"
    r"|(?P<number>[0-9]+(?:\.[0-9]+)?[eE][-+][0-9]{2,4}(?![0-9a-zA-Z.])"
    r"|[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<command>\\(?:[a-zA-Z]+|[|{}\\]))|(?P<letters>[a-zA-Z]+)"
    r"|(?P<other>[-+*/^(){}\[\]_|!%',=&]))"
)
_HEXADECIMAL = re.compile(r"(?<![0-9a-zA-Z.])0[xX][0-9a-fA-F]")
_INLINE_DERIVATIVE = re.compile(r"(?<![a-zA-Z\\])d([a-zA-Z])\s*/\s*d([a-zA-Z])(?![a-zA-Z])")


class UnreadableError(Exception):
    """The text is outside of the grammar."""


@lru_cache(maxsize=4096)
def variables_of(text: str) -> frozenset[str]:
    """Return the letters that somewhere stand without brackets after them: `P` in `P(1-P)`."""
    try:
        tokens = tokenize(text)
    except UnreadableError:
        return frozenset()
    follows = [*tokens[1:], ""]
    return frozenset(
        token
        for token, after in zip(tokens, follows, strict=True)
        if after not in ("(", "[", "'", "^", "_") and (token.isalpha() or token in SYMBOLS)
    )


def tokenize(text: str) -> list[str]:
    """Split a text into numbers, letters, commands and signs.

    Raises:
        UnreadableError: for characters that no formula holds, words, and texts that are too long.
    """
    if len(text) > MAX_CHARS or not text.strip() or _HEXADECIMAL.search(text):
        raise UnreadableError
    tokens: list[str] = []
    position, text = 0, _INLINE_DERIVATIVE.sub(r"\\frac{d\1}{d\2}", text.strip())
    text = text.replace("**", "^")
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise UnreadableError
        position = match.end()
        if match["matrix"] is not None:
            tokens.append(match["matrix"].replace(" ", "").partition("}")[0] + "}")
        elif match["named"] is not None:
            tokens.append(_geometric(match["named"]))
        elif match["letters"] is None:
            tokens.append(match.group().strip())
        else:
            letters = letters_of(match["letters"], bool(tokens) and tokens[-1][-1:].isdigit())
            if letters is None:
                raise UnreadableError
            tokens += letters
    return tokens


def _geometric(text: str) -> str:
    r"""Return the name of an angle or triangle: `\angle ABC` is `\angle CBA`."""
    is_angle = text.startswith("\\angle")
    letters = text.lstrip("\\abcdefghijklmnopqrstuvwxyz").strip()
    if is_angle:
        return f"\\angle {min(letters, letters[::-1])}"
    return f"\\triangle {letters}"
