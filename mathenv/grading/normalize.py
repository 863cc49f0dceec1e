r"""Spelling of answers: what LaTeX and people write in many ways, written in one.

Rules known from the Hendrycks MATH normaliser and its descendants (prm800k, ToRA,
Qwen2.5-Math), kept to those that cannot make two different values equal.
"""

from __future__ import annotations

import re
from functools import lru_cache

_PLAIN = re.compile(r"-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|-?[0-9]+/[0-9]+")
_PREFIX = re.compile(r"^(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*:?\s+", re.IGNORECASE)
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=[0-9])(?:\{,\}|,\s*\\!)\s*(?=[0-9]{3}(?![0-9]))", ""),
        (r"(?<!\\)\\!\s*", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![a-zA-Z])\s?", ""),
        # A thin space between digits is a thousands separator only before a full group.
        (r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ","),
        (r"(?<!\\)\\(?:[,;: ]|q?quad(?![a-zA-Z]))|~", " "),
        (r"(?<!\\)\\[$()\[\]]|\$|€|£|¥", ""),
        (r"\{,\}", ","),
        (r"\\%", "%"),
        (r"\\(?:lbrace|\{)", r"\\{"),
        (r"\\(?:rbrace|\})", r"\\}"),
        (r"\\le(?![a-zA-Z])", r"\\leq"),
        (r"\\ge(?![a-zA-Z])", r"\\geq"),
        (r"\\ne(?![a-zA-Z])", r"\\neq"),
        (r"\\infin(?![a-zA-Z])", r"\\infty"),
        (r"\\degree(?![a-zA-Z])|°", r"^\\circ"),
        (r"\^\{\\circ\}", r"^\\circ"),
        (r"\\phantom\s*(?:\{[^{}]*\}|[^\s{}\\])", ""),
        (r"^\s*\\approx(?![a-zA-Z])", ""),
        (r"\s+", " "),
    )
)
_UNICODE = str.maketrans(
    {"−": "-", "–": "-", "×": "\\times ", "÷": "/", "π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt"}
)
_TOKEN = r"\s*([0-9]|(?<![a-zA-Z])[a-zA-Z]|\\pi(?![a-zA-Z]))"
_FRAC = re.compile(rf"\\frac{_TOKEN}{_TOKEN}")
_FRAC_LEFT = re.compile(rf"\\frac{_TOKEN}\s*\{{")
_FRAC_RIGHT = re.compile(rf"(\\frac\s*\{{[^{{}}]*\}}){_TOKEN}")
_ROOT = re.compile(r"\\sqrt\s*([0-9]|(?<=\s)[a-zA-Z])")
_SCRIPT = re.compile(r"([\^_])\{\s*([0-9a-zA-Z])\s*\}")
_SPACES = re.compile(r"(?<![0-9])\s+|\s+(?![0-9])")


@lru_cache(maxsize=4096)  # a gold is compared with many answers
def normalize(text: str) -> str:
    r"""Return `text` with one spelling for delimiters, spacing and fraction commands."""
    text = text.strip()
    if _PLAIN.fullmatch(text):
        return text
    text = _PREFIX.sub("", text.translate(_UNICODE))
    if not text.isalnum():
        if "\\\\" in text and "\\begin" not in text:
            text = text.replace("\\\\", "\\")  # escaped twice, as in JSON: no rows to part
        for pattern, replacement in _REWRITES:
            text = pattern.sub(replacement, text)
    return _trim(text)


def _trim(text: str) -> str:
    """Drop a final full stop, comma or stray backslash, and one pair of outer braces."""
    text = text.strip()
    while text and (text[-1] in ".,;:" or (text[-1] == "\\" and not text.endswith("\\\\"))):
        text = text[:-1].rstrip()
    return text


def key(text: str) -> str:
    """Return the form in which two normalised answers are compared as strings.

    Blanks between digits stay: `1 1/2` is not `11/2`.
    """
    if text.isalnum():
        return text
    text = _SPACES.sub("", text)
    if "\\" in text:
        text = braced(text)
    return _SCRIPT.sub(r"\1\2", text)


def braced(text: str) -> str:
    r"""Write `\frac12` as `\frac{1}{2}` and `\sqrt2` as `\sqrt{2}`."""
    text = _FRAC.sub(r"\\frac{\1}{\2}", text)
    text = _FRAC_LEFT.sub(r"\\frac{\1}{", text)
    text = _FRAC_RIGHT.sub(r"\1{\2}", text)
    return _ROOT.sub(r"\\sqrt{\1}", text)
