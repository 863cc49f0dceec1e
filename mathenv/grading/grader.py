"""The grader: a cascade from cheap and exact to symbolic. Read this file first.

A tier looks at both answers and decides (True, False) or passes on (None). Adding a tier
means writing such a function and putting it into `TIERS` at the right place. Answers made of
parts are taken apart (`structure.py`) and their parts go through the same cascade; what is
left goes to math-verify in a worker process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, overload

from mathenv.grading.algebra import compare_algebra
from mathenv.grading.exact import numbers_equal, parse_number
from mathenv.grading.extract import extract_answer, unwrap_box
from mathenv.grading.limits import too_big
from mathenv.grading.match import compare
from mathenv.grading.normalize import key, normalize
from mathenv.grading.policy import STRICT, GradePolicy, find_policy
from mathenv.grading.reference import checked_answer, checked_golds, fault, is_empty
from mathenv.grading.symbolic import Budget, Options, shared_comparer
from mathenv.grading.text import (
    compare_based,
    compare_choices,
    compare_clock_times,
    compare_prose,
    compare_words,
)
from mathenv.grading.trail import ExplainedGrade, Trail
from mathenv.grading.verdict import Context, Verdict
from mathenv.types import Grade, GradeStatus

Gold = str | Sequence[str]


@dataclass(frozen=True, slots=True)
class Tier:
    """A named rule over two normalised answers: `compare(gold, answer, policy)`."""

    name: str
    compare: Callable[[str, str, GradePolicy], bool | None]


def _compare_strings(gold: str, answer: str, policy: GradePolicy) -> bool | None:
    return True if key(gold) == key(answer) else None


def _compare_numbers(gold: str, answer: str, policy: GradePolicy) -> bool | None:
    """Compare numbers; of a chain `0.56 = 56%` every part must agree with the gold's last."""
    gold_number = parse_number(gold.rpartition("=")[2].strip())
    if (
        gold_number is None
        or gold_number.letter_unit
        or ("=" in gold and parse_number(gold.partition("=")[0]) is None)
    ):
        return None
    parts = [parse_number(part.strip()) for part in answer.split("=")]
    if any(part is not None and part.letter_unit for part in parts) and "=" in answer:
        return None
    if any(part is None for part in parts):
        return False if policy.require_reduced and not gold_number.ratio else None
    return all(numbers_equal(gold_number, part, policy) for part in parts if part is not None)


TIERS: tuple[Tier, ...] = (
    Tier("string", _compare_strings),
    Tier("number", _compare_numbers),
    Tier("base", compare_based),
    Tier("clock", compare_clock_times),
    Tier("choice", compare_choices),
    Tier("text", compare_words),
    Tier("prose", compare_prose),
    Tier("algebra", compare_algebra),
)


@overload
def grade(
    gold: Gold, response: str, policy: str | GradePolicy = ..., *, explain: Literal[False] = ...
) -> Grade: ...


@overload
def grade(
    gold: Gold, response: str, policy: str | GradePolicy = ..., *, explain: Literal[True]
) -> ExplainedGrade: ...


def grade(
    gold: Gold, response: str, policy: str | GradePolicy = STRICT, *, explain: bool = False
) -> Grade:
    r"""Judge a model's final turn against the reference answer.

    Args:
        gold: the reference answer, or several of which any may be matched.
        response: the model's last turn. The answer is the last balanced `\boxed{}` outside of
            fenced code and after the last `</think>` (see `GradePolicy.boxes`, `.fallback`).
        policy: a preset (`strict`, `paper`, `math_verify`) or a `GradePolicy`.
        explain: return an `ExplainedGrade`. Its `trail` says which rule looked at what and which
            one decided; as text it is a line for each. The verdict is the same.

    Never raises for what the model wrote. `Grade.counts` is False where the reference is
    unusable or the machinery failed: such episodes are excluded, not wrong.

    Raises:
        ConfigError: no preset has this name, or an argument is no text.
    """
    chosen = find_policy(policy)
    response = checked_answer(response, "a response")
    answer = response if chosen.engine == "math_verify" else extract_answer(response, chosen)
    trail = Trail() if explain else None
    verdict = _any_gold(gold, answer, chosen, trail)
    return verdict if trail is None else trail.explained(verdict)


def grade_answer(gold: Gold, answer: str | None, policy: str | GradePolicy = STRICT) -> Grade:
    r"""Judge an answer that is already extracted (None or blank: no answer). See `grade`."""
    chosen = find_policy(policy)
    answer = None if answer is None else checked_answer(answer, "an answer")
    if chosen.engine == "math_verify" and answer is not None:
        answer = f"\\boxed{{{answer}}}"
    return _any_gold(gold, answer, chosen)


def _any_gold(
    gold: Gold, answer: str | None, policy: GradePolicy, trail: Trail | None = None
) -> Grade:
    golds = checked_golds(gold)
    budget = Budget()
    judge = _judge_raw if policy.engine == "math_verify" else _judge
    grades: list[Grade] = []
    for one in golds:
        grades.append(judge(one, answer, policy, budget, trail))
        if trail is not None:
            trail.end(one, answer, grades[-1])
        if grades[-1].correct:
            return grades[-1]
    if not grades:
        return Grade(False, GradeStatus.GOLD_ERROR, answer, "gold", "no reference answer")
    # A failure leaves open whether that reference was matched; a bad one is passed over.
    return min(grades, key=lambda g: _SEVERITY.get(g.status, 1))


_SEVERITY = {GradeStatus.INFRA: 0, GradeStatus.GOLD_ERROR: 2}


def _judge_raw(
    gold: str, response: str | None, policy: GradePolicy, budget: Budget, trail: Trail | None
) -> Grade:
    """Give both texts to math-verify as they are."""
    if not gold.strip():
        return Grade(False, GradeStatus.GOLD_ERROR, response, "gold", "empty reference answer")
    if response is None or not response.strip():
        return Grade(False, GradeStatus.NO_ANSWER, None, "extract")
    reply = shared_comparer().raw(gold, response, budget)
    status = GradeStatus(reply.verdict)
    return Grade(status is GradeStatus.CORRECT, status, response, "math_verify", reply.detail)


def _judge(
    gold: str, answer: str | None, policy: GradePolicy, budget: Budget, trail: Trail | None
) -> Grade:
    gold = unwrap_box(gold, policy)
    if wrong := fault(gold):
        return Grade(False, GradeStatus.GOLD_ERROR, answer, "gold", wrong)
    if answer is None or is_empty(answer):
        return Grade(False, GradeStatus.NO_ANSWER, None, "extract")
    if gold == answer:
        return Grade(True, GradeStatus.CORRECT, answer, "string")
    if cap := too_big(answer):
        return Grade(False, GradeStatus.LIMIT, answer, "limits", f"over the {cap} cap")
    verdict = _judge_normalized(normalize(gold), normalize(answer), policy, budget, trail)
    return Grade(verdict.correct, verdict.status, answer, verdict.tier, verdict.detail)


_DECIMAL_COMMA = re.compile(r"(?<![0-9,])([0-9]+),([0-9]+)(?![0-9,])")


def _judge_normalized(
    gold: str, answer: str, policy: GradePolicy, budget: Budget, trail: Trail | None
) -> Verdict:
    context = Context(policy, _decide, _Symbolic(policy, budget))
    if trail is not None:
        context = _watched(context, trail)
    verdict = compare(gold, answer, context)
    if not verdict.correct and policy.decimal_comma:
        pointed = _DECIMAL_COMMA.sub(r"\1.\2", gold), _DECIMAL_COMMA.sub(r"\1.\2", answer)
        verdict = verdict if pointed == (gold, answer) else compare(*pointed, context)
    return verdict if trail is None else trail.decide(verdict)


def _decide(gold: str, answer: str, policy: GradePolicy) -> Verdict | None:
    """Try the tiers that need no worker."""
    for tier in TIERS:
        verdict = tier.compare(gold, answer, policy)
        if verdict is not None:
            return Verdict.of(verdict, tier.name)
    return None


def _watched(context: Context, trail: Trail) -> Context:
    """Return a context in which the trail keeps what every rule says."""

    def ask(tier: Tier, gold: str, answer: str, policy: GradePolicy) -> Verdict | None:
        verdict = tier.compare(gold, answer, policy)
        return None if verdict is None else Verdict.of(verdict, tier.name)

    def decide(gold: str, answer: str, policy: GradePolicy) -> Verdict | None:
        for tier in TIERS:
            asked = partial(ask, tier, gold, answer, policy)
            verdict = trail.watch(tier.name, gold, answer, asked)
            if verdict is not None:
                return verdict
        return None

    def symbolic(gold: str, answer: str) -> Verdict:
        verdict = context.symbolic(gold, answer)
        trail.watch("symbolic", gold, answer, lambda: verdict)
        return verdict

    return Context(context.policy, decide, symbolic, trail)


class _Symbolic:
    """The last tier for one grade: all its comparisons share one budget of CPU time."""

    def __init__(self, policy: GradePolicy, budget: Budget) -> None:
        self._options = Options.of(policy)
        self._budget = budget

    def __call__(self, gold: str, answer: str) -> Verdict:
        reply = shared_comparer()(gold, answer, self._options, self._budget)
        return Verdict(GradeStatus(reply.verdict), "symbolic", reply.detail)
