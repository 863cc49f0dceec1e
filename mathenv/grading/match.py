"""Compare two answers part by part: which parts must agree with which, and in what order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from mathenv.grading.numbers import parse_number
from mathenv.grading.policy import GradePolicy
from mathenv.grading.structure import (
    Shape,
    as_intervals,
    as_matrix,
    expand,
    has_order,
    has_relation,
    is_equation,
    read_shape,
    same_left_side,
    same_role,
    split_assignment,
    unfold,
)
from mathenv.types import GradeStatus

MAX_PAIRS = 5000  # of parts in one grade: sets in sets multiply


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one comparison ended, and which rule ended it."""

    status: GradeStatus
    tier: str
    detail: str = ""

    @property
    def correct(self) -> bool:
        return self.status is GradeStatus.CORRECT

    @staticmethod
    def of(equal: bool, tier: str, detail: str = "") -> Verdict:
        return Verdict(GradeStatus.CORRECT if equal else GradeStatus.INCORRECT, tier, detail)


@dataclass(frozen=True, slots=True)
class Context:
    """What comparing needs: `decide` are the cheap tiers, `symbolic` the last one."""

    policy: GradePolicy
    decide: Callable[[str, str, GradePolicy], Verdict | None]
    symbolic: Callable[[str, str], Verdict]
    known: dict[tuple[str, str], Verdict | None] = field(default_factory=dict)


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


Comparer = Callable[[str, str, Context], Verdict | None]


def _by_parts(gold: str, answer: str, context: Context, each: Comparer) -> Verdict | None:
    """Compare parts with `each`; None where the structures do not say enough."""
    unwrapped = _without_names(gold, answer, context) or _without_relations(gold, answer)
    if unwrapped is not None:
        return each(*unwrapped, context)
    if is_equation(gold) and not has_relation(answer):
        return _wrong("an equation is expected")
    gold_shape, answer_shape = read_shape(gold), read_shape(answer)
    if gold_shape is None or answer_shape is None:
        return _number_against_parts(gold, answer, gold_shape, answer_shape)
    return _compare_shapes(expand(gold_shape), expand(answer_shape), context, each)


def _number_against_parts(
    gold: str, answer: str, gold_shape: Shape | None, answer_shape: Shape | None
) -> Verdict | None:
    """A number is not a list, tuple or set of several values; None for anything else."""
    shape, text = (gold_shape, answer) if gold_shape is not None else (answer_shape, gold)
    if shape is None or shape.kind in ("matrix", "ratio", "union") or parse_number(text) is None:
        return None
    several = len(expand(shape).items) != 1 and _plain(shape)
    return _wrong("one value against several") if several else None


def _without_names(gold: str, answer: str, context: Context) -> tuple[str, str] | None:
    """Return the values where `x = 5` meets 5, or meets `x = 6`; else None."""
    if "=" not in gold and "=" not in answer and "\\approx" not in gold + answer:
        return None
    first, second = split_assignment(gold), split_assignment(answer)
    unfolded = unfold(gold), unfold(answer)
    if (
        first != second
        and unfolded != (gold, answer)
        and all("=" in text for text in (gold, answer))
    ):
        return unfolded
    if first is not None and second is not None:
        alike = same_role(first[0], second[0]) or context.policy.symbols == "any"
        return (first[1], second[1]) if alike else None
    if first is second is None:
        return same_left_side(gold, answer)
    if first is not None and not has_relation(answer):
        return first[1], answer
    if second is not None and not has_relation(gold):
        return gold, second[1]
    return None


def _without_relations(gold: str, answer: str) -> tuple[str, str] | None:
    """Write inequalities as intervals where the other side is made of intervals; else None."""
    if has_order(gold) == has_order(answer):
        return None
    texts = as_intervals(gold), as_intervals(answer)
    return None if texts == (gold, answer) else texts


def _compare_shapes(gold: Shape, answer: Shape, context: Context, each: Comparer) -> Verdict | None:
    if gold.kind == "matrix" or answer.kind == "matrix":
        return _compare_matrices(gold, answer, context, each)
    if gold.kind == "ratio" or answer.kind == "ratio":
        return _compare_ratios(gold, answer, context, each)
    if gold.kind == "union" or answer.kind == "union":
        return _compare_unions(gold, answer, context, each)
    named = _compare_named(gold, answer, context, each)
    if named is not None:
        return named
    if not _brackets_agree(gold, answer, context.policy):
        return _wrong("the brackets differ") if _plain(gold) and _plain(answer) else None
    if len(gold.items) != len(answer.items):
        if not (_plain(gold) and _plain(answer)):
            return None
        return _wrong(f"{len(gold.items)} values expected, {len(answer.items)} given")
    if _in_order(gold, answer, context.policy):
        return _ordered(gold.items, answer.items, context, each)
    return _unordered(gold.items, answer.items, context, each)


def _wrong(detail: str) -> Verdict:
    return Verdict.of(False, "structure", detail)


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
        return _wrong("the matrices have different shapes")
    return _ordered(first.items, second.items, context, each)


def _compare_unions(gold: Shape, answer: Shape, context: Context, each: Comparer) -> Verdict | None:
    """Parts may also be cut differently: only agreement is decisive."""
    if gold.kind != answer.kind or len(gold.items) != len(answer.items):
        return None
    verdict = _unordered(gold.items, answer.items, context, each)
    return verdict if verdict is not None and verdict.correct else None


def _compare_ratios(gold: Shape, answer: Shape, context: Context, each: Comparer) -> Verdict | None:
    """Compare term by term, and numbers also up to a factor."""
    if gold.kind != answer.kind:
        return None
    if len(gold.items) != len(answer.items):
        return _wrong("the ratios have different lengths")
    first = [parse_number(item) for item in gold.items]
    second = [parse_number(item) for item in answer.items]
    if None in first or None in second:
        return _ordered(gold.items, answer.items, context, each)
    a, b = [n.value for n in first if n], [n.value for n in second if n]
    return Verdict.of(all(x * b[0] == y * a[0] for x, y in zip(a, b, strict=True)), "structure")


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
            return _wrong(f"no value matches part {row + 1} of the reference")
    for row in open_rows:
        undecided: Verdict | None = _wrong(f"no value matches part {row + 1} of the reference")
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
