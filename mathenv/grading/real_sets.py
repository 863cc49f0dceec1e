r"""Sets of real numbers written in different ways, compared as sorted disjoint intervals.

`x \ne 3`, `(-\infty,3) \cup (3,\infty)` and `\mathbb{R} \setminus \{3\}` are one set. The order of
the ends is found in floating point; whether two ends are equal, the whole cascade decides.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from mathenv.grading.algebra import approximate
from mathenv.grading.relations import split_relations
from mathenv.grading.structure import read_shape, split_top
from mathenv.grading.verdict import Comparer, Context, Verdict, all_correct, wrong

MAX_PARTS = 64
_REALS = re.compile(r"\\mathbb\s*\{?\s*R\s*\}?|\\(?:Reals|R)")
_INFINITE = re.compile(r"([-+]?)\s*\\infty")
_MEMBER = re.compile(r"^([a-zA-Z])\s*\\in(?![a-zA-Z])\s*")
_NAME = re.compile(r"[a-zA-Z]")
_MINUS = re.compile(r"\\(?:setminus|backslash)(?![a-zA-Z])|(?<=\})\s*-\s*(?=\\\{)")


@dataclass(frozen=True, slots=True)
class Piece:
    """An interval with ends as text and as numbers; `closed` at the low and at the high end."""

    low: str
    high: str
    start: float
    end: float
    closed: tuple[bool, bool]


Pieces = list[Piece]


def compare_real_sets(gold: str, answer: str, context: Context, each: Comparer) -> Verdict | None:
    """Compare two sets of which at least one is more than one interval; None for anything else."""
    first, second = _read(gold), _read(answer)
    if first is None or second is None or _plain(gold, answer):
        return None
    if first[0] and second[0] and first[0] != second[0]:
        return wrong("the variables differ")
    golds, answers = merged(first[1]), merged(second[1])
    if [p.closed for p in golds] != [p.closed for p in answers]:
        return wrong("the sets have different pieces")
    ends = [(g.low, a.low) for g, a in zip(golds, answers, strict=True)]
    ends += [(g.high, a.high) for g, a in zip(golds, answers, strict=True)]
    return all_correct([each(g, a, context) for g, a in ends])


def _plain(gold: str, answer: str) -> bool:
    """Say whether both are single intervals, points or lists, which other rules compare."""
    return not any(map(_is_composed, (gold, answer)))


def _is_composed(text: str) -> bool:
    return bool("\\cup" in text or "\\neq" in text or _MINUS.search(text) or _REALS.fullmatch(text))


def _read(text: str) -> tuple[str, Pieces] | None:
    """Return the variable ("" for none) and the pieces."""
    relation = split_relations(text)
    if relation is not None and set(relation.signs) == {"\\neq"}:
        return _read_unequal(relation.sides)
    member = _MEMBER.match(text)
    pieces = _read_set(text[member.end() :] if member is not None else text)
    return None if pieces is None else (member[1] if member is not None else "", pieces)


def _read_unequal(sides: tuple[str, ...]) -> tuple[str, Pieces] | None:
    r"""Read `x \ne 3` and `x \ne 1, 2`."""
    if len(sides) != 2 or not _NAME.fullmatch(sides[0]):
        return None
    points = _points(split_top(sides[1], ","))
    return None if points is None else (sides[0], without(_everything(), points))


def _read_set(text: str) -> Pieces | None:
    removed = _MINUS.split(text)
    if len(removed) == 2:
        whole, out = _read_set(removed[0].strip()), _read_set(removed[1].strip())
        points = out is not None and all(p.low == p.high for p in out)
        return without(whole, out) if whole is not None and out is not None and points else None
    parts = split_top(text, "\\cup")
    if len(parts) > MAX_PARTS or not parts:
        return None
    pieces: Pieces = []
    for part in parts:
        read = _read_part(part)
        if read is None:
            return None
        pieces += read
    return pieces


def _read_part(text: str) -> Pieces | None:
    if _REALS.fullmatch(text):
        return _everything()
    shape = read_shape(text)
    if shape is None or shape.kind not in ("set", "tuple"):
        return None
    if shape.kind == "set":
        return _points(shape.items)
    if len(shape.items) != 2 or shape.brackets == "<>":
        return None
    low, high = shape.items
    start, end = _number(low), _number(high)
    if start is None or end is None or start >= end:
        return None
    return [Piece(low, high, start, end, (shape.brackets[0] == "[", shape.brackets[1] == "]"))]


def _points(items: tuple[str, ...]) -> Pieces | None:
    pieces = []
    for item in items:
        number = _number(item)
        if number is None or math.isinf(number):
            return None
        pieces.append(Piece(item, item, number, number, (True, True)))
    return pieces


def _everything() -> Pieces:
    return [Piece("-\\infty", "\\infty", -math.inf, math.inf, (False, False))]


def _number(text: str) -> float | None:
    infinite = _INFINITE.fullmatch(text)
    if infinite is not None:
        return -math.inf if infinite[1] == "-" else math.inf
    return approximate(text)


def without(pieces: Pieces, points: Pieces) -> Pieces:
    """Take single points out."""
    for point in points:
        cut: Pieces = []
        for piece in pieces:
            if piece.start < point.start < piece.end:
                low, high = piece.closed
                cut.append(Piece(piece.low, point.low, piece.start, point.start, (low, False)))
                cut.append(Piece(point.low, piece.high, point.start, piece.end, (False, high)))
            elif point.start in (piece.start, piece.end):
                low, high = piece.closed
                ends = (low and piece.start != point.start, high and piece.end != point.start)
                cut.append(Piece(piece.low, piece.high, piece.start, piece.end, ends))
            else:
                cut.append(piece)
        pieces = cut
    return pieces


def merged(pieces: Pieces) -> Pieces:
    """Sort the pieces and join those that touch."""
    result: Pieces = []
    for piece in sorted(pieces, key=lambda p: (p.start, not p.closed[0])):
        last = result[-1] if result else None
        if last is None or not _touch(last, piece):
            result.append(piece)
            continue
        further = (piece.end, piece.closed[1]) > (last.end, last.closed[1])
        high, end = (piece.high, piece.end) if further else (last.high, last.end)
        closed = (last.closed[0], piece.closed[1] if further else last.closed[1])
        result[-1] = Piece(last.low, high, last.start, end, closed)
    return result


def _touch(first: Piece, second: Piece) -> bool:
    if second.start < first.end:
        return True
    return second.start == first.end and (first.closed[1] or second.closed[0])
