r"""What the worker is asked about two texts: their formulas, and in which sense they are equal.

`read_pair` gives the job. Where it finds none, our own rules do not understand the texts, and then
math-verify is asked only if both are spelled with the same symbols (`same_symbols`): what it
makes of a text that we cannot read is a guess.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from mathenv.grading.algebra import matrices_in_other_order, parse_pair
from mathenv.grading.expression import Formula, Tree
from mathenv.grading.letters import FUNCTIONS, OPAQUE_FUNCTIONS
from mathenv.grading.relations import Relation, split_relations
from mathenv.grading.units import split_unit

CONSTANTS = frozenset({"\\pi", "e", "i"})
_SYMBOL = re.compile(r"\\[a-zA-Z]+|\\.|[0-9]+(?:\.[0-9]+)?|[a-zA-Z]|[^\s{}]")
_WORD = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]{3,}|\\(?:text|mbox|textrm|textbf)(?![a-zA-Z])")
_MULTIPLIED = frozenset({"\\cdot", "\\times", "*"})

Reading = dict[str, Any]


def read_pair(gold: str, answer: str, any_names: bool = False) -> Reading | bool | None:
    """Return the job for the worker, a verdict that needs none, or None where nothing is understood.

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
    pair = parse_pair(gold, answer) or parse_pair(_bare(gold), _bare(answer))
    return None if pair is None else _reading(*pair, "equal", any_names)


def _bare(text: str) -> str:
    return split_unit(text)[0]


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


def same_symbols(gold: str, answer: str) -> bool:
    """Say whether two texts are spelled with the same symbols, each as often; no words in them."""
    return not (_has_words(gold) or _has_words(answer)) and _symbols(gold) == _symbols(answer)


def _has_words(text: str) -> bool:
    return any(
        word.startswith("\\") or (word not in FUNCTIONS and word not in OPAQUE_FUNCTIONS)
        for word in _WORD.findall(text)
    )


def _symbols(text: str) -> Counter[str]:
    return Counter(symbol for symbol in _SYMBOL.findall(text) if symbol not in _MULTIPLIED)
