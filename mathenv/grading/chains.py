r"""Equations that state a value: `x = 5`, `AB = 3 + 4 = 7`, `\sqrt2 \approx 1.41`.

A statement is as wrong as its worst part: in `n = 6 = 5` both values are claimed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mathenv.grading.expression import read_formula
from mathenv.grading.normalize import key
from mathenv.grading.reading import CONSTANTS
from mathenv.grading.relations import split_relations

NAME = (
    r"(?:[a-zA-Z]|\\(?!(?:infty|pi|frac|sqrt)(?![a-z]))[a-zA-Z]+)"
    r"(?:_(?:[0-9a-zA-Z]|\{[0-9a-zA-Z]+\}))?'*"
)
FUNCTION = rf"{NAME}(?:\^\{{(?:-1|\([0-9]\))\}})?\s*\(\s*[^()=]*\s*\)"
NAMES = rf"\(\s*{NAME}(?:\s*,\s*{NAME})+\s*\)"
_NAMED = re.compile(
    rf"{FUNCTION}|{NAMES}|{NAME}|m?\s*\\(?:angle|triangle)\s*[A-Z]{{1,3}}|\|?[A-Z]{{2,3}}\|?"
    r"|[A-Z]{1,2}\s*:\s*[A-Z]{1,2}|\\overline\s*\{[A-Z]{2}\}"
    r"|\\(?:vec|hat|bar|overline|tilde|mathbf|boldsymbol|overrightarrow)\s*(?:\{\s*[a-zA-Z]\s*\}|\s[a-zA-Z])"
    r"|\\frac\s*\{\s*(?:d|\\partial)\s*[a-zA-Z]\s*\}\s*\{\s*(?:d|\\partial)\s*[a-zA-Z]\s*\}"
    r"|\\(?:lim|int)\s*_.*"
    r"|\\(?:det|dim|operatorname\s*\{(?:rank|tr|det|dim)\})\s*\(?\s*[A-Z]\s*\)?"
    r"|(?:\\(?:text|mathrm|textrm)\s*\{[A-Za-z .']+\}|[A-Z]?[a-z]{4,})"
)
_WORDS = re.compile(
    r"(?<![a-zA-Z\\])(?:because|since|so|thus|hence|therefore|but|not|if)(?![a-zA-Z])"
)
_JOINED = re.compile(
    r"\\(?:text|textrm|mbox|mathrm)\s*\{\s*,?\s*(?:and|or)|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])"
    r"|\\(?:lor|land|vee|wedge|quad)(?![a-zA-Z])"
)
_EQUALS, _ABOUT = "=", "\\approx"


@dataclass(frozen=True, slots=True)
class Chain:
    r"""A statement of a value.

    Attributes:
        name: what the value is called (`x`, `f(x)`), "" for none.
        exact: the values joined by `=`.
        rough: the values behind `\approx`.
        left: a left side that is neither a name nor a value: `a+b` in `a+b = 7`.
    """

    name: str
    exact: tuple[str, ...]
    rough: tuple[str, ...] = ()
    left: str = ""

    @property
    def main(self) -> str:
        """The value that is stated."""
        return self.exact[-1] if self.exact else self.rough[-1]

    @property
    def is_unsolved(self) -> bool:
        """True for an equation in one unknown: `2x = 6` does not say 6."""
        formula = read_formula(self.left) if self.left else None
        if formula is None:
            return bool(self.left)
        names = formula.names - CONSTANTS
        return len(names) == 1 and not _has_function(formula.tree)


def read_chain(text: str) -> Chain | None:
    """Read a statement of a value; None for other relations, lists and prose."""
    relation = split_relations(text)
    if relation is None or not set(relation.signs) <= {_EQUALS, _ABOUT}:
        return None
    sides, signs = list(relation.sides), list(relation.signs)
    if not sides[0]:
        sides, signs = sides[1:], signs[1:]
        if not signs:
            return Chain("", (sides[0],)) if sides and sides[0] else None
    if not all(sides) or _WORDS.search(text) or (len(signs) > 1 and _is_list(text)):
        return None
    if len(sides) == 2 and is_name(sides[1]) and not is_name(sides[0]) and is_closed(sides[0]):
        sides.reverse()  # 2 = x
    if is_name(sides[0]) and not (len(sides) == 2 and sides[0] in ("e", "\\pi")):
        return _chain(key(sides[0]), "", sides[1:], signs)
    if is_closed(sides[0]):
        return _chain("", "", sides, [_EQUALS, *signs])
    return _chain("", sides[0], sides[1:], signs)


def _chain(name: str, left: str, sides: list[str], signs: list[str]) -> Chain:
    exact = tuple(side for side, sign in zip(sides, signs, strict=True) if sign == _EQUALS)
    rough = tuple(side for side, sign in zip(sides, signs, strict=True) if sign == _ABOUT)
    return Chain(name, exact, rough, left)


def is_name(text: str) -> bool:
    r"""Say whether a text names a thing: `x`, `a_1`, `f(x)`, `(x, y)`, `\angle ABC`."""
    return _NAMED.fullmatch(text) is not None


def is_closed(text: str) -> bool:
    """Say whether a text is a formula without variables."""
    formula = read_formula(text)
    return formula is not None and formula.names <= CONSTANTS


def _is_list(text: str) -> bool:
    depth = 0
    if _JOINED.search(text):
        return True
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if depth == 0 and char in ",;":
            return True
    return False


def _has_function(tree: object) -> bool:
    if not isinstance(tree, list):
        return False
    return tree[0] in ("u", "f") or any(map(_has_function, tree[1:]))
