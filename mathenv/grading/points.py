r"""Points with a name, `A(1,2)`, and tuples with signs, `(\pm 1, 2)`."""

from __future__ import annotations

import re

from mathenv.grading.normalize import key
from mathenv.grading.structure import read_shape
from mathenv.grading.verdict import Comparer, Context, Verdict, wrong

MAX_SIGNS = 4  # in one tuple: each doubles the points
_LABELLED = re.compile(r"([A-Z](?:_\{?\w\}?)?'*)\s*(\(.*\))", re.DOTALL)
_SIGN = re.compile(r"\\(?:pm|mp)(?![a-zA-Z])")


def compare_points(gold: str, answer: str, context: Context, each: Comparer) -> Verdict | None:
    """Compare points without their names, which must be equal where both have one."""
    first, second = _labelled(gold), _labelled(answer)
    if first is not None and second is not None:
        if key(first[0]) != key(second[0]):
            return wrong("the points have different names")
        return each(first[1], second[1], context)
    if first is not None and answer.startswith("("):
        return each(first[1], answer, context)
    if second is not None and gold.startswith("("):
        return each(gold, second[1], context)
    return _compare_signs(gold, answer, context, each)


def _labelled(text: str) -> tuple[str, str] | None:
    match = _LABELLED.fullmatch(text)
    shape = read_shape(match[2]) if match is not None else None
    if match is None or shape is None or shape.kind != "tuple":
        return None
    return match[1], match[2]


def _compare_signs(gold: str, answer: str, context: Context, each: Comparer) -> Verdict | None:
    r"""Write out `(\pm 1, \pm 2)` where the other side has no such signs."""
    if bool(_SIGN.search(gold)) == bool(_SIGN.search(answer)):
        return None
    texts = with_all_signs(gold), with_all_signs(answer)
    return None if texts == (gold, answer) else each(*texts, context)


def with_all_signs(text: str) -> str:
    r"""Return the tuples that a tuple with `\pm` stands for; other texts stay as they are."""
    shape = read_shape(text)
    if shape is None or shape.kind != "tuple" or not 0 < len(_SIGN.findall(text)) <= MAX_SIGNS:
        return text
    texts = [text]
    while _SIGN.search(texts[0]):
        texts = [_SIGN.sub(sign, one, count=1) for one in texts for sign in ("+", "-")]
    return ", ".join(texts)
