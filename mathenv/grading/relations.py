r"""Equations, inequalities and chains of them, split at the signs outside of all brackets.

The `=` in `\sum_{k=1}^n k` is no equation.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_SIGN = re.compile(
    r"\\(?:leq|geq|neq|in|notin|approx|equiv|subset|subseteq|supset|supseteq|sim|simeq|cong|to|mid|"
    r"rightarrow|Rightarrow|implies|iff|Leftrightarrow|perp|parallel|propto|mapsto|ll|gg)"
    r"(?![a-zA-Z])|[=<>]"
)
_FLIPPED = {">": "<", "\\geq": "\\leq", "\\supset": "\\subset", "\\supseteq": "\\subseteq"}
_OPEN, _CLOSE = frozenset("([{"), frozenset(")]}")


@dataclass(frozen=True, slots=True)
class Relation:
    """`sides` with the `signs` between them: one fewer."""

    sides: tuple[str, ...]
    signs: tuple[str, ...]

    def upwards(self) -> Relation:
        """Return the same with `<` for `>`, where all its signs point the same way."""
        if not any(sign in _FLIPPED for sign in self.signs):
            return self
        flipped = tuple(_FLIPPED.get(sign, sign) for sign in reversed(self.signs))
        if any(sign in ("<", "\\leq", "\\subset", "\\subseteq") for sign in self.signs):
            return self
        return Relation(self.sides[::-1], flipped)

    def links(self) -> tuple[str, ...]:
        """Return the relations between neighbours: `a < b < c` as `a < b` and `b < c`."""
        pairs = zip(self.sides, self.signs, self.sides[1:], strict=False)
        return tuple(f"{left} {sign} {right}" for left, sign, right in pairs)


@lru_cache(maxsize=4096)
def split_relations(text: str) -> Relation | None:
    """Split a text at its relation signs, or return None where it has none outside of brackets."""
    if not _SIGN.search(text):
        return None
    sides, signs, depth, start, position = [], [], 0, 0, 0
    while position < len(text):
        char = text[position]
        match = _SIGN.match(text, position) if depth == 0 and char in "\\=<>" else None
        if match is not None:
            sides.append(text[start:position].strip())
            signs.append(match[0])
            start = position = match.end()
            continue
        depth += _step(text, position)
        position += 1
    if not signs:
        return None
    sides.append(text[start:].strip())
    return Relation(tuple(sides), tuple(signs))


def _step(text: str, position: int) -> int:
    """Return how the nesting changes at a position: brackets and environments."""
    if text[position] == "\\":
        begin = text.startswith(("\\begin{", "\\langle"), position)
        return int(begin) - int(text.startswith(("\\end{", "\\rangle"), position))
    return (text[position] in _OPEN) - (text[position] in _CLOSE)


def has_equals(text: str) -> bool:
    """Say whether an equals sign stands outside of all brackets."""
    relation = split_relations(text)
    return relation is not None and "=" in relation.signs
