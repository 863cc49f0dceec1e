r"""Compare statements (`x = 5`, `a + b = 7`, `1 < x < 2`) with values and with each other."""

from __future__ import annotations

import math
import re

from mathenv.grading.algebra import approximate
from mathenv.grading.chains import Chain, is_closed, read_chain
from mathenv.grading.exact import parse_number
from mathenv.grading.relations import Relation, split_relations
from mathenv.grading.structure import same_role
from mathenv.grading.verdict import Comparer, Context, Verdict, all_correct, wrong

_ROUGHLY = 0.01  # relative, where the number of decimals does not tell


_CONGRUENCE = re.compile(r"(.+?)\\equiv\s*(.+?)\s*\\pmod\{(\w+)\}")


def compare_congruences(gold: str, answer: str, context: Context, each: Comparer) -> Verdict | None:
    r"""Compare `x \equiv 2 \pmod 5` by modulus and residue."""
    first, second = _CONGRUENCE.fullmatch(gold), _CONGRUENCE.fullmatch(answer)
    if first is None or second is None:
        return None
    (name, residue, modulus), (other_name, other, other_modulus) = first.groups(), second.groups()
    if modulus != other_modulus:
        return wrong("the moduli differ")
    numbers = parse_number(residue), parse_number(other)
    if modulus.isdigit() and int(modulus) and numbers[0] is not None and numbers[1] is not None:
        multiple = (numbers[0].value - numbers[1].value) % int(modulus) == 0
        equal = Verdict.of(multiple, "structure", "by residues")
    else:
        return all_correct([each(name, other_name, context), each(residue, other, context)])
    return all_correct([equal, each(name, other_name, context)])


def compare_statements(gold: str, answer: str, context: Context, each: Comparer) -> Verdict | None:
    """Compare where at least one side states a value; None where these rules do not apply."""
    first, second = read_chain(gold), read_chain(answer)
    if first is None and second is None:
        return _compare_links(split_relations(gold), split_relations(answer), context, each)
    if first is not None and second is not None:
        return _compare_chains(first, second, context, each)
    if second is not None:
        return None if split_relations(gold) else _stated(gold, second, context, each)
    assert first is not None
    return None if split_relations(answer) else _expected(first, answer, context, each)


def _stated(gold: str, answer: Chain, context: Context, each: Comparer) -> Verdict | None:
    """A value is asked for and the answer states it: `7` and `a + b = 7`, not `n = 6 = 7`."""
    if answer.is_unsolved:
        return wrong("the equation is not solved")
    exact = [side for side in answer.exact if is_closed(side) or not is_closed(gold)]
    if answer.exact and (not exact or exact[-1] != answer.main):
        exact.append(answer.main)
    if not exact:
        return each(gold, answer.main, context)
    if not all(_rounds(gold, side) for side in answer.rough):
        return wrong("the approximate value does not fit")
    return all_correct([each(gold, side, context) for side in exact])


def _expected(gold: Chain, answer: str, context: Context, each: Comparer) -> Verdict | None:
    """The reference states a value: `x = 5`, `\\frac13 \\approx 0.33`. Any of its forms will do."""
    if gold.left:
        return wrong("an equation is expected")
    verdicts = [each(side, answer, context) for side in (*gold.exact, *gold.rough)]
    for verdict in verdicts:
        if verdict is not None and verdict.correct:
            return verdict
    return verdicts[0] if all(v is not None and v.incorrect for v in verdicts) else None


def _compare_chains(gold: Chain, answer: Chain, context: Context, each: Comparer) -> Verdict | None:
    """Compare `x = 5` with `x = 6`; equations that state no value are left to others."""
    if gold.left or answer.left:
        if gold.left and gold.left == answer.left and not gold.is_unsolved:
            return _stated(gold.main, Chain("", answer.exact, answer.rough), context, each)
        return None
    named = gold.name and answer.name and context.policy.symbols == "same"
    if named and not same_role(gold.name, answer.name):
        return None
    bare = Chain("", answer.exact, answer.rough)
    if not gold.exact:
        return _expected(Chain("", (), gold.rough), bare.main, context, each)
    return _stated(gold.main, bare, context, each)


def _rounds(value: str, rough: str) -> bool:
    """Say whether a rough value may stand for the exact one; True where that cannot be told."""
    exact, number = approximate(value), parse_number(rough)
    if exact is None or number is None:
        return True
    allowed = 0.51 * 10.0**-number.places if number.places else _ROUGHLY * abs(exact) + 0.5
    return math.isclose(exact, float(number.value), rel_tol=0.0, abs_tol=allowed)


def _compare_links(
    gold: Relation | None, answer: Relation | None, context: Context, each: Comparer
) -> Verdict | None:
    """Compare `a < b < c` link by link, from the smaller end."""
    if gold is None or answer is None or max(len(gold.signs), len(answer.signs)) < 2:
        return None
    gold, answer = gold.upwards(), answer.upwards()
    if gold.signs != answer.signs:
        return wrong("the relation signs differ")
    pairs = zip(gold.links(), answer.links(), strict=True)
    return all_correct([each(first, second, context) for first, second in pairs])
