r"""Spelling of answers: what LaTeX and people write in many ways, written in one.

Rules known from the Hendrycks MATH normaliser and its descendants (prm800k, ToRA,
Qwen2.5-Math), kept to those that cannot make two different values equal.
"""

from __future__ import annotations

import re
from functools import lru_cache

from mathenv.grading.python_spelling import from_python
from mathenv.grading.unicode_spelling import to_ascii

_PLAIN = re.compile(r"-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|-?[0-9]+/[0-9]+")
_PREFIX = re.compile(
    r"^(?:\\(?:text|textbf|mbox|textrm)\s*\{\s*)?(?:(?:so|thus|hence|therefore),?\s+)?"
    r"(?:(?:the\s+)?(?:final\s+|correct\s+)?answer(?:\s+is)?\s*:?(?:\s*\}\s*|\s+)"
    r"|(?:about|approximately|roughly|around|exactly|only)\s+(?=[-0-9\\.]))",
    re.IGNORECASE,
)
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^\\text\s*\{\s*\$([^${}]*(?:\{[^${}]*\}[^${}]*)*)\$\s*\}$", r"\1"),
        (r"^\\text\s*\{\s*([a-zA-Z])\s*\}(?=\s*=)", r"\1"),
        (r"^(?:\\\$|\$)\s*([0-9][0-9,]*(?:\.[0-9]+)?)$", r"\1 \\text{ dollars}"),
        (r"^(?:\\?€|\\euro\s?)\s*([0-9][0-9,]*(?:\.[0-9]+)?)$", r"\1 \\text{ euros}"),
        (r"^(?:£|\\pounds\s?)\s*([0-9][0-9,]*(?:\.[0-9]+)?)$", r"\1 \\text{ pounds}"),
        (r"^([0-9][0-9,.]*)\s*€$", r"\1 \\text{ euros}"),
        (r"^([0-9][0-9,.]*)\s*(?:¢|\\cent)$", r"\1 \\text{ cents}"),
        (
            r"^([-+]?[0-9]*\.[0-9]*?)([0-9]{1,6}?)\2{2,}(?:\.\.\.|…|\\[lc]?dots)$",
            r"\1\\overline{\2}",
        ),
        (r"\\(?:text|mathrm)\s*\{\s*mod\s*\}", "mod"),
        (
            r"\(?\s*\\?(?<![a-zA-Z])[pb]?mod(?:ulo)?(?![a-zA-Z])(?:\\?\s|~)*+\{?\s*([0-9]+|[a-z])\s*\}?(?:\s*\))?",
            r"\\pmod{\1}",
        ),
        (r"(?<=[0-9])\s?\\text\{\s*to\s*\}\s?(?=[0-9])|^([0-9]+) to (?=[0-9]+$)", r"\1:"),
        (r"^(?:\\text\s*\{\s*)?all real(?:s| numbers)(?:\s*\})?$", r"\\mathbb{R}"),
        (r"^(?:\\text\s*\{\s*)?no solutions?(?:\s*\})?\.?$", r"\\emptyset"),
        (r"^(?:\\text\s*\{\s*)?(?:DNE|does not exist)(?:\s*\})?\.?$", r"\\text{does not exist}"),
        (r"\\text\s*\{\s*(span|rank|det|lcm|gcd|tr|dim)\s*\}", r"\\operatorname{\1}"),
        (r"(?<=[\])])\s*U\s*(?=[\[(])", r" \\cup "),
        (r"^\(([0-9A-F]+)\)_(?=[0-9{])", r"\1_"),
        (r"\\(triangle|angle)\s*\{\s*([A-Z]{1,4})\s*\}", r"\\\1 \2"),
        (
            r"\\frac\s*\{\s*\\(?:text|mathrm)\s*\{([^{}]*)\}\s*\}\s*"
            r"\{\s*\\(?:text|mathrm)\s*\{([^{}]*)\}\s*\}",
            r"\\text{\1/\2}",
        ),
        (r"\\lnot(?![a-zA-Z])", r"\\neg"),
        (r"\\hat\s*\{?\s*\\?([ijk])(?:math)?(?![a-zA-Z])\s*\}?", r"\\mathbf{\1}"),
        (r"\\mathbf\s*\{\s*\\mathbf\{([ijk])\}\s*\}", r"\\mathbf{\1}"),
        (r"\\overline\s*\{\s*([a-z])\s*\}", r"\\bar{\1}"),
        (r"\\wedge(?![a-zA-Z])", r"\\land"),
        (r"\\vee(?![a-zA-Z])", r"\\lor"),
        (r"\\(?:long)?rightarrow(?![a-zA-Z])", r"\\to"),
        (r"\\f?box(?:ed)?\s*(?=\{)", ""),
        (r"\\(?:ensuremath|underline|textcolor\s*\{[a-z]+\})(?![a-zA-Z])", ""),
        (r"\\color\s*\{[a-zA-Z]+\}|\\h(?:space|skip)\*?\s*\{[^{}]*\}", ""),
        (
            r"\\(?:tiny|small|large|Large|LARGE|huge|Huge|normalsize|bf|it|rm|scriptstyle|strut|"
            r"mathstrut|nolimits|allowbreak|nobreak|mathop|nonumber)(?![a-zA-Z])\s?",
            "",
        ),
        (r"\s*\\(?:blacksquare|qed|checkmark)\s*$", ""),
        (r"\\operatorname\*", r"\\operatorname"),
        (r"\\(?:bold|bm|pmb|symbf|textbf|mathbf)(?=\s*\{\s*[a-zA-Z]\s*\})", r"\\mathbf"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"\\(?:ast|star)(?![a-zA-Z])", "*"),
        (r"\^\s*(?:\\prime(?![a-zA-Z])|\{\s*\\prime\s*\})", "'"),
        (r"\^\s*\{\s*\\prime\s*\\prime\s*\}", "''"),
        (r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"(?<=[0-9])(?:\s?\{\s?,\s?\}|,\s*\\!)\s*(?=[0-9]{3}(?![0-9]))", ""),
        (r"(?<!\\)\\!\s*", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (
            r"\\(?:left|right|middle|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![a-zA-Z])\s?",
            "",
        ),
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
        (r"\^\\circ\s*(?:\\(?:text|mathrm)\s*\{\s*)?([CF])(?:\s*\})?$", r"^\\circ\\text{\1}"),
        (r"\\phantom\s*(?:\{[^{}]*\}|[^\s{}\\])", ""),
        (r"^\s*\\approx(?![a-zA-Z])", ""),
        (r"\s+", " "),
    )
)
_SAME_AS = {"DNE": "\\text{does not exist}", "EmptySet": "\\emptyset"}
_ONE_LINE = re.compile(
    r"\\begin\{((?:aligned|align|equation|gathered|gather|split)\*?)\}(.*)\\end\{\1\}", re.DOTALL
)
_BRACED = re.compile(r"\{([^{}]*)\}")
_SET = re.compile(r"[,;:|]|\\mid")
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
    text = _SAME_AS.get(text, text)
    if not text.isascii():
        text = to_ascii(text)
    text = _PREFIX.sub("", _without_markdown(text))
    text = from_python(text)
    if not text.isalnum():
        if "\\\\" in text and "\\begin" not in text:
            text = text.replace("\\\\", "\\")  # escaped twice, as in JSON: no rows to part
        for pattern, replacement in _REWRITES:
            text = pattern.sub(replacement, text)
        text = _calls_to_latex(text)
        text = _without_dressing(text)
    return _trim(text)


def _without_markdown(text: str) -> str:
    """Drop `**5**`, `*5*` and backquotes around a whole answer."""
    for mark in ("**", "*", "`"):
        inner = text[len(mark) : -len(mark)]
        if text.startswith(mark) and text.endswith(mark) and inner and mark not in inner:
            return inner.strip()
    return text


def _without_dressing(text: str) -> str:
    """Drop braces around a whole answer, and an environment around one line of formulas."""
    match = _ONE_LINE.fullmatch(text.strip())
    if match is not None and "\\\\" not in match[2] and "\\begin" not in match[2]:
        text = match[2].replace("&", " ")
    while (match := _BRACED.fullmatch(text.strip())) is not None and not _SET.search(match[1]):
        text = match[1]
    return text


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
