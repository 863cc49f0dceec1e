r"""Numbers with labels: `12 boys, 15 girls`, `2 hours 30 minutes`, `6 \text{ red}, 3 blue`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from mathenv.grading.exact import numbers_equal, parse_number
from mathenv.grading.units import MEASURES, split_unit
from mathenv.grading.verdict import Comparer, Context, Verdict, wrong

_WRAPPER = re.compile(r"\\(?:text|textrm|mathrm|mbox)\s*\{([^{}]*)\}")
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*+([a-zA-Z]+)\.?\s*+(?:,\s*+)?(?:and\s++)?")

Quantities = list[tuple[Fraction, str]]


def compare_quantities(gold: str, answer: str, context: Context, each: Comparer) -> Verdict | None:
    """Compare `2 hours 30 minutes` label by label, and units of one kind by their sum."""
    first, second = read_quantities(gold), read_quantities(answer)
    if first is None or second is None or max(len(first), len(second)) < 2:
        if (len(first or ()) > 1 and second is None) or (len(second or ()) > 1 and first is None):
            bare = parse_number(answer if second is None else gold)
            return None if bare is None else wrong("one value against several")
        return None
    totals = _total(first), _total(second)
    if None not in totals:
        return Verdict.of(totals[0] == totals[1], "structure", "by the sum of the quantities")
    return Verdict.of(sorted(_by_label(first)) == sorted(_by_label(second)), "structure")


def read_quantities(text: str) -> Quantities | None:
    """Read numbers that are each followed by a word; None where there is anything else."""
    text = _WRAPPER.sub(r" \1 ", text).replace("~", " ").strip()
    quantities: Quantities = []
    position = 0
    while position < len(text):
        match = _QUANTITY.match(text, position)
        if match is None or not match.end() > position:
            return None
        if len(match[2]) < 2 and match[2] not in MEASURES:
            return None
        quantities.append((Fraction(match[1]), split_label(match[2])))
        position = match.end()
    return quantities or None


def split_label(word: str) -> str:
    """Return a label in the singular and in lower case."""
    word = word.lower()
    return word[:-1] if len(word) > 2 and word.endswith("s") else word


def _by_label(quantities: Quantities) -> list[tuple[str, Fraction]]:
    return [(label, value) for value, label in quantities]


def _total(quantities: Quantities) -> tuple[str, Fraction] | None:
    """Return the sum in the unit of its kind, where all are of one kind: minutes and hours."""
    measures = [MEASURES.get(label) for _, label in quantities]
    kinds = {measure[0] for measure in measures if measure is not None}
    if None in measures or len(kinds) != 1:
        return None
    parts = zip(quantities, measures, strict=True)
    return kinds.pop(), sum((value * m[1] for (value, _), m in parts if m), Fraction(0))


def same_labels(
    gold: Sequence[str], answer: Sequence[str]
) -> tuple[list[str], list[str]] | tuple[()] | None:
    """Order the parts of two lists by their labels.

    None where the labels tell nothing: none, or all the same. An empty tuple where both lists have
    labels and these differ. Where only one has them, the order of the parts tells.
    """
    first, second = _labels(gold), _labels(answer)
    if len(set(first)) < 2 and len(set(second)) < 2:
        return None
    if not all(first) or not all(second):
        return (list(gold), list(answer)) if not any(first) or not any(second) else None
    if sorted(first) != sorted(second) or len(set(first)) != len(first):
        return () if sorted(first) != sorted(second) else None
    order = dict(zip(second, answer, strict=True))
    return list(gold), [order[label] for label in first]


def _labels(parts: Sequence[str]) -> list[str]:
    return [split_unit(part)[1] if parse_number(part) is not None else "" for part in parts]


def same_number(gold: str, answer: str, context: Context) -> bool:
    """Say whether two texts are equal numbers."""
    first, second = parse_number(gold), parse_number(answer)
    return first is not None and second is not None and numbers_equal(first, second, context.policy)
