r"""What the worker is asked about two texts: their formulas, and in which sense they are equal.

`read_pair` gives the job. Where it finds none, our own rules do not understand the texts, and then
only equal texts match: a library's guess at a text that we cannot read is no proof.
"""

from __future__ import annotations

from typing import Any

from mathenv.grading.algebra import matrices_in_other_order, parse_pair
from mathenv.grading.expression import Formula, Tree
from mathenv.grading.relations import Relation, split_relations
from mathenv.grading.units import split_unit, unit_conflict

CONSTANTS = frozenset({"\\pi", "e", "i"})

Reading = dict[str, Any]


def read_pair(gold: str, answer: str, any_names: bool = False) -> Reading | bool | None:
    """Return the worker's job, a verdict that needs none, or None where nothing is understood.

    Args:
        gold: a normalised text without commas: one value, equation or inequality.
        answer: another.
        any_names: variables may be called anything, as long as they are told apart.
    """
    relations = split_relations(gold), split_relations(answer)
    if relations != (None, None):
        return _read_relations(*relations)
    if matrices_in_other_order(gold, answer):
        return False
    pair = parse_pair(gold, answer)
    if pair is None:
        if unit_conflict(gold, answer):
            return False
        gold, answer = split_unit(gold)[0], split_unit(answer)[0]
        pair = parse_pair(gold, answer)
    return None if pair is None else _reading(*pair, "equal", any_names)


def _read_relations(gold: Relation | None, answer: Relation | None) -> Reading | bool | None:
    """Compare what an equation or inequality says is zero, or positive."""
    if gold is None or answer is None:
        return None
    gold, answer = gold.upwards(), answer.upwards()
    if gold.signs != answer.signs:
        return False
    if len(gold.signs) != 1 or gold.signs[0] not in ("=", "\\neq", "<", "\\leq"):
        return None
    sides = [f"({side})" for side in (*gold.sides, *answer.sides)]
    pair = parse_pair(f"{sides[1]}-{sides[0]}", f"{sides[3]}-{sides[2]}")
    if pair is None:
        return None
    form = "factor" if gold.signs[0] in ("=", "\\neq") else "positive factor"
    return _reading(*pair, form, False)


def _reading(gold: Formula, answer: Formula, form: str, any_names: bool) -> Reading:
    first, second = gold.tree, answer.tree
    names = (gold.names | answer.names) - CONSTANTS
    if any_names and gold.names != answer.names:
        first, second = _renamed(first, {}), _renamed(second, {})
    return {
        "form": form,
        "gold": first,
        "answer": second,
        "names": sorted(names),
        "exact": not (gold.ambiguous or answer.ambiguous or gold.deep or answer.deep),
        "decimals": gold.decimal + answer.decimal,
    }


def _renamed(tree: Tree, names: dict[str, str]) -> Tree:
    """Number the variables in the order in which they occur."""
    if tree[0] == "v":
        known = tree[1] in CONSTANTS
        return tree if known else ["v", names.setdefault(tree[1], f"any {len(names)}")]
    return [_renamed(part, names) if isinstance(part, list) else part for part in tree]
