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
        (r"\\(?:le|leqslant|leqq)(?![a-zA-Z])|<=", r"\\leq"),
        (r"\\(?:ge|geqslant|geqq)(?![a-zA-Z])|>=", r"\\geq"),
        (r"(?<![0-9)])!=", r"\\neq"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:varnothing)(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"\\ne(?![a-zA-Z])", r"\\neq"),
        (r"\\(?:dots|cdots|dotsc|dotsb)(?![a-zA-Z])|…", r"\\ldots"),
        (r"\\infin(?![a-zA-Z])", r"\\infty"),
        (r"\\degree(?![a-zA-Z])|°", r"^\\circ"),
        (r"\^\{\\circ\}", r"^\\circ"),
        (r"\\phantom\s*(?:\{[^{}]*\}|[^\s{}\\])", ""),
        (r"^\s*\\approx(?![a-zA-Z])", ""),
        (r"\s+", " "),
    )
)
_UNICODE = str.maketrans(
    {
        **{
            "−": "-",
            "–": "-",
            "×": "\\times ",
            "÷": "/",
            "·": "\\cdot ",
            "±": "\\pm ",
            "∓": "\\mp ",
        },
        **{"π": "\\pi ", "∞": "\\infty ", "√": "\\sqrt ", "θ": "\\theta ", "α": "\\alpha "},
        **{"β": "\\beta ", "λ": "\\lambda ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in "},
        **{"≤": "\\leq ", "≥": "\\geq ", "≠": "\\neq ", "≈": "\\approx ", "∅": "\\emptyset "},
        **{
            "∠": "\\angle ",
            "²": "^2",
            "³": "^3",
            "½": "\\frac12 ",
            "¼": "\\frac14 ",
            "¾": "\\frac34 ",
        },
        **{"（": "(", "）": ")", "，": ",", "％": "%", "\u00a0": " ", "\u202f": " ", "\u2009": " "},
    }
)
_ROOT_CALL = re.compile(r"(?:\\|(?<![\\a-zA-Z]))(sqrt|cbrt|Rational)\s*\(")
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
        text = _calls_to_latex(text)
    return _trim(text)


def _calls_to_latex(text: str) -> str:
    """Write `sqrt(..)`, `cbrt(..)` and `Rational(a, b)` as commands, innermost parts included."""
    while match := _ROOT_CALL.search(text):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += (text[end] == "(") - (text[end] == ")")
            end += 1
        if depth:
            return text
        inside = text[match.end() : end - 1]
        if match[1] == "Rational":
            top, comma, bottom = inside.partition(",")
            command = f"\\frac{{{top}}}{{{bottom}}}" if comma else inside
        else:
            command = f"\\sqrt{'[3]' if match[1] == 'cbrt' else ''}{{{inside}}}"
        text = text[: match.start()] + command + text[end:]
    return text


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
