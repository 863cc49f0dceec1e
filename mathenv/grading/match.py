"""Compare two answers part by part: which parts must agree with which, and in what order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from mathenv.grading.exact import parse_number
from mathenv.grading.points import compare_points
from mathenv.grading.policy import GradePolicy
from mathenv.grading.quantities import compare_quantities, same_labels
from mathenv.grading.real_sets import compare_real_sets
from mathenv.grading.statements import compare_congruences, compare_statements
from mathenv.grading.structure import (
    Shape,
    as_intervals,
    as_matrix,
    as_python_list,
    expand,
    has_order,
    has_relation,
    joined_differently,
    members_differ,
    read_shape,
    split_assignment,
    unfold,
)
from mathenv.grading.verdict import Comparer, Context, Verdict, all_correct, wrong
from mathenv.types import GradeStatus

MAX_PAIRS = 5000  # of parts in one grade: sets in sets multiply


PartRule = Callable[[str, str, Context, Comparer], Verdict | None]


class _TooManyError(Exception):
    """More than `MAX_PAIRS` parts were compared."""


def compare(gold: str, answer: str, context: Context) -> Verdict:
    """Compare two normalised answers by all tiers."""
    try:
        return _compare(gold, answer, context)
    except _TooManyError:
        return Verdict(GradeStatus.LIMIT, "structure", "too many parts to compare")


def _compare(gold: str, answer: str, context: Context) -> Verdict:
    verdict = _quick(gold, answer, context)
    if verdict is None:
        verdict = _by_parts(gold, answer, context, _compare)
    return verdict if verdict is not None else context.symbolic(gold, answer)


def _quick(gold: str, answer: str, context: Context) -> Verdict | None:
    """Decide without a worker process, or return None."""
    pair = gold, answer
    if pair in context.known:
        return context.known[pair]
    if len(context.known) >= MAX_PAIRS:
        raise _TooManyError
    context.known[pair] = None
    verdict = context.decide(gold, answer, context.policy)
    if verdict is None:
        verdict = _by_parts(gold, answer, context, _quick)
    context.known[pair] = verdict
    return verdict


def _by_parts(gold: str, answer: str, context: Context, each: Comparer) -> Verdict | None:
    """Compare parts with `each`; None where the structures do not say enough."""
    unwrapped = _unfolded(gold, answer) or _without_relations(gold, answer)
    if unwrapped is not None:
        return _ask("other spelling", _compare_rewritten, *unwrapped, context, each)
    for name, rule in PART_RULES:
        verdict = _ask(name, rule, gold, answer, context, each)
        if verdict is not None:
            return verdict
    return None


def _ask(
    name: str, rule: PartRule, gold: str, answer: str, context: Context, each: Comparer
) -> Verdict | None:
    if context.trail is None:
        return rule(gold, answer, context, each)
    ask = partial(rule, gold, answer, context, each)
    return context.trail.watch(name, gold, answer, ask)


def _compare_rewritten(gold: str, answer: str, context: Context, each: Comparer) -> Verdict | None:
    return each(gold, answer, context)


def _compare_variables(gold: str, answer: str, context: Context, each: Comparer) -> Verdict | None:
    r"""Refuse `y > 2` and `y \in A` where x is asked for."""
    differ = context.policy.symbols == "same" and members_differ(gold, answer)
    return wrong("the variables differ") if differ else None


def _compare_structures(gold: str, answer: str, context: Context, each: Comparer) -> Verdict | None:
    """Compare lists, tuples, sets, unions, ratios and matrices part by part."""
    if joined_differently(gold, answer):
        return wrong("and is not or")
    gold_shape, answer_shape = read_shape(gold), read_shape(answer)
    if gold_shape is not None and answer_shape is not None:
        answer_shape = as_python_list(gold_shape, answer_shape)
    if gold_shape is None or answer_shape is None:
        return _value_against_shape(gold, answer, gold_shape, answer_shape, context, each)
    return _compare_shapes(expand(gold_shape), expand(answer_shape), context, each)


PART_RULES: tuple[tuple[str, PartRule], ...] = (
    ("variables", _compare_variables),
    ("congruences", compare_congruences),
    ("statements", compare_statements),
    ("quantities", compare_quantities),
    ("points", compare_points),
    ("sets of reals", compare_real_sets),
    ("structure", _compare_structures),
)


def _value_against_shape(
    gold: str,
    answer: str,
    gold_shape: Shape | None,
    answer_shape: Shape | None,
    context: Context,
    each: Comparer,
) -> Verdict | None:
    """A number is not a list, tuple or set of several values; a set of one is that one."""
    shape, text = (gold_shape, answer) if gold_shape is not None else (answer_shape, gold)
    if shape is None:
        return None
    if shape.kind == "set" and len(shape.items) == 1 and "\\emptyset" not in shape.items:
        pair = (shape.items[0], text) if gold_shape is not None else (text, shape.items[0])
        return each(*pair, context)
    if shape.kind == "ratio" and len(shape.items) == 2:
        quotient = f"({shape.items[0]})/({shape.items[1]})"
        pair = (quotient, text) if gold_shape is not None else (text, quotient)
        return each(*pair, context)
    if shape.kind in ("matrix", "ratio", "union") or parse_number(text) is None:
        return None
    several = len(expand(shape).items) != 1 and _plain(shape)
    return wrong("one value against several") if several else None


def _unfolded(gold: str, answer: str) -> tuple[str, str] | None:
    """Write `(x,y) = (1,2)` by name where the other side is a list of equations."""
    if "=" not in gold or "=" not in answer:
        return None
    texts = unfold(gold), unfold(answer)
    return None if texts == (gold, answer) or gold == answer else texts


def _without_relations(gold: str, answer: str) -> tuple[str, str] | None:
    """Write inequalities as intervals where the other side is made of intervals; else None."""
    if has_order(gold) == has_order(answer) and (
        not has_order(gold) or ("|" in gold) == ("|" in answer)
    ):
        return None
    texts = as_intervals(gold), as_intervals(answer)
    if texts == (gold, answer) or members_differ(gold, answer):
        return None
    return texts


def _compare_shapes(gold: Shape, answer: Shape, context: Context, each: Comparer) -> Verdict | None:
    if gold.kind == "matrix" or answer.kind == "matrix":
        return _compare_matrices(gold, answer, context, each)
    if gold.kind == "ratio" or answer.kind == "ratio":
        return _compare_ratios(gold, answer, context, each)
    if gold.kind == "union" or answer.kind == "union":
        return _compare_unions(gold, answer, context, each)
    return _compare_lists(gold, answer, context, each)


def _compare_lists(gold: Shape, answer: Shape, context: Context, each: Comparer) -> Verdict | None:
    """Compare lists, sets and tuples: names, brackets, number, labels, then the parts."""
    if _nested_sets(gold) != _nested_sets(answer):
        return wrong("an element is not the set of it")
    named = _compare_named(gold, answer, context, each)
    if named is not None:
        return named
    if not _brackets_agree(gold, answer, context.policy):
        return wrong("the brackets differ") if _plain(gold) and _plain(answer) else None
    if len(gold.items) != len(answer.items):
        if not (_plain(gold) and _plain(answer)):
            return None
        return wrong(f"{len(gold.items)} values expected, {len(answer.items)} given")
    labelled = same_labels(gold.items, answer.items)
    if labelled is not None:
        return _ordered(*labelled, context, each) if labelled else wrong("the labels differ")
    if _in_order(gold, answer, context.policy):
        return _ordered(gold.items, answer.items, context, each)
    return _unordered(gold.items, answer.items, context, each)


def _nested_sets(shape: Shape) -> int:
    return sum(item.startswith("\\{") for item in shape.items) if shape.kind != "tuple" else 0


def _plain(shape: Shape) -> bool:
    """Say whether the parts are values: with relations, brackets and counts may hide more."""
    return not any(has_relation(item) for item in shape.items)


def _brackets_agree(gold: Shape, answer: Shape, policy: GradePolicy) -> bool:
    if policy.brackets == "ignore":
        return True
    if gold.kind == answer.kind:
        return gold.kind != "tuple" or gold.brackets == answer.brackets
    return {gold.kind, answer.kind} == {"list", "set"}


def _in_order(gold: Shape, answer: Shape, policy: GradePolicy) -> bool:
    if policy.order == "brackets":
        return gold.ordered or answer.ordered
    return policy.order == "ordered"


def _compare_matrices(
    gold: Shape, answer: Shape, context: Context, each: Comparer
) -> Verdict | None:
    first = gold if gold.kind == "matrix" else as_matrix(gold)
    second = answer if answer.kind == "matrix" else as_matrix(answer)
    if first is None or second is None:
        return None
    if (first.columns, len(first.items)) != (second.columns, len(second.items)):
        return wrong("the matrices have different shapes")
    return _ordered(first.items, second.items, context, each)


def _compare_unions(gold: Shape, answer: Shape, context: Context, each: Comparer) -> Verdict | None:
    """Parts may also be cut differently: only agreement is decisive."""
    if gold.kind != answer.kind or len(gold.items) != len(answer.items):
        return None
    verdict = _unordered(gold.items, answer.items, context, each)
    return verdict if verdict is not None and verdict.correct else None


def _compare_ratios(gold: Shape, answer: Shape, context: Context, each: Comparer) -> Verdict | None:
    """Compare up to a factor: 1:2 and 2:4, by multiplying crosswise."""
    if gold.kind != answer.kind:
        return None
    if len(gold.items) != len(answer.items):
        return wrong("the ratios have different lengths")
    pairs = [
        (f"({g})*({answer.items[0]})", f"({a})*({gold.items[0]})")
        for g, a in zip(gold.items[1:], answer.items[1:], strict=True)
    ]
    numbers = [parse_number(item) for item in (*gold.items, *answer.items)]
    if any(number is not None and number.value == 0 for number in numbers):
        return _ordered(gold.items, answer.items, context, each)
    return all_correct([each(g, a, context) for g, a in pairs])


def _compare_named(gold: Shape, answer: Shape, context: Context, each: Comparer) -> Verdict | None:
    """Compare `x = 1, y = 2` by name, or in order with `(1, 2)` and `1, 2`."""
    first, second = _named(gold), _named(answer)
    if first is not None and second is not None:
        if set(first) != set(second):
            return None
        names = sorted(first)
        return _ordered([first[n] for n in names], [second[n] for n in names], context, each)
    if first is not None and _plain(answer) and len(first) == len(answer.items):
        return _ordered(tuple(first.values()), answer.items, context, each)
    if second is not None and _plain(gold) and len(second) == len(gold.items):
        return _ordered(gold.items, tuple(second.values()), context, each)
    return None


def _named(shape: Shape) -> dict[str, str] | None:
    """Return the values by name where every part is the assignment of another name."""
    pairs = [split_assignment(item) for item in shape.items]
    named = dict(pair for pair in pairs if pair is not None)
    return named if len(named) == len(shape.items) > 1 else None


def _ordered(
    gold: Sequence[str], answer: Sequence[str], context: Context, each: Comparer
) -> Verdict | None:
    """Compare position by position. A part that is wrong decides before a costly one."""
    verdicts = [_quick(g, a, context) for g, a in zip(gold, answer, strict=True)]
    for verdict in verdicts:
        if verdict is not None and not verdict.correct:
            return _part(verdict)
    for index, verdict in enumerate(verdicts):
        if verdict is None:
            verdict = each(gold[index], answer[index], context)
            if verdict is None or not verdict.correct:
                return verdict and _part(verdict)
    return Verdict.of(True, "structure")


def _unordered(
    gold: Sequence[str], answer: Sequence[str], context: Context, each: Comparer
) -> Verdict | None:
    """Match one to one. Equality is transitive, so the first match may be kept."""
    table = [[_quick(g, a, context) for a in answer] for g in gold]
    free = set(range(len(answer)))
    open_rows = []
    for row, verdicts in enumerate(table):
        match = next((i for i in sorted(free) if _correct(verdicts[i])), None)
        if match is None:
            open_rows.append(row)
        else:
            free.remove(match)
    for row in open_rows:  # a value that nothing can match decides before a costly one
        if all(_incorrect(table[row][i]) for i in free):
            return wrong(f"no value matches part {row + 1} of the reference")
    for row in open_rows:
        undecided: Verdict | None = wrong(f"no value matches part {row + 1} of the reference")
        for column in sorted(free):
            verdict = table[row][column] or each(gold[row], answer[column], context)
            if _correct(verdict):
                free.remove(column)
                break
            if not _incorrect(verdict):
                undecided = verdict
                if verdict is None or verdict.status is not GradeStatus.UNPARSED:
                    return verdict and _part(verdict)
        else:
            return undecided and _part(undecided)
    return Verdict.of(True, "structure")


def _correct(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.correct


def _incorrect(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.status is GradeStatus.INCORRECT


def _part(verdict: Verdict) -> Verdict:
    return replace(verdict, tier="structure", detail=verdict.detail or f"by {verdict.tier}")
