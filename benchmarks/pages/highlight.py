"""Python code as coloured runs, found once when the page is built.

The page gets lengths, not marked-up text, and inserts the text itself: nothing a model wrote
is ever parsed as HTML.
"""

from __future__ import annotations

from functools import cache, lru_cache

from pygments.lexers.python import PythonLexer
from pygments.token import Comment, Error, Keyword, Name, Number, Operator, String, _TokenType

# The page's CSS has one class per name; the number in the data is the position here.
CLASSES = ("", "keyword", "builtin", "function", "string", "number", "comment", "operator", "error")
_ORDER = (
    (Keyword, 1),
    (Operator.Word, 1),
    (Name.Builtin, 2),
    (Name.Exception, 2),
    (Name.Function, 3),
    (Name.Class, 3),
    (Name.Decorator, 3),
    (String, 4),
    (Number, 5),
    (Comment, 6),
    (Operator, 7),
    (Error, 8),
)
_LEXER = PythonLexer()


@lru_cache(maxsize=65_536)
def code_runs(code: str) -> tuple[int, ...]:
    """Return (class, length, class, length, ...) that tile `code`; lengths in UTF-16 units."""
    runs: list[int] = []
    # `get_tokens` would change line ends, and lengths would be those of another text.
    for _, kind, text in _LEXER.get_tokens_unprocessed(code):
        number = _class_of(kind)
        if runs and runs[-2] == number:
            runs[-1] += utf16(text)
        else:
            runs += [number, utf16(text)]
    return tuple(runs)


def utf16(text: str) -> int:
    """Return the length of `text` as JavaScript counts it."""
    return len(text) + sum(character > "\uffff" for character in text)


@cache
def _class_of(kind: _TokenType) -> int:
    return next((number for parent, number in _ORDER if kind in parent), 0)
