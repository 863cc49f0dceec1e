"""The grader: a cascade from cheap and exact to symbolic. Read this file first.

A tier looks at both answers and decides (True, False) or passes on (None). Adding a tier
means writing such a function and putting it into `TIERS` at the right place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mathenv.grading.extract import extract_answer, unwrap_box
from mathenv.grading.limits import MAX_CHARS, too_big
from mathenv.grading.normalize import key, normalize
from mathenv.grading.numbers import numbers_equal, parse_number
from mathenv.grading.symbolic import shared_comparer
from mathenv.grading.text import (
    compare_based,
    compare_choices,
    compare_clock_times,
    compare_words,
)
from mathenv.types import Grade, GradeStatus


@dataclass(frozen=True, slots=True)
class Tier:
    """A named rule over two normalised answers: `compare(gold, answer)`."""

    name: str
    compare: Callable[[str, str], bool | None]


def _compare_strings(gold: str, answer: str) -> bool | None:
    return True if key(gold) == key(answer) else None


def _compare_numbers(gold: str, answer: str) -> bool | None:
    """Compare numbers; of a chain `0.56 = 56%` every part must agree with the gold's last."""
    gold_number = parse_number(gold.rpartition("=")[2].strip())
    if gold_number is None or ("=" in gold and parse_number(gold.partition("=")[0]) is None):
        return None
    parts = [parse_number(part.strip()) for part in answer.split("=")]
    if any(part is None for part in parts):
        return None
    return all(numbers_equal(gold_number, part) for part in parts if part is not None)


TIERS: tuple[Tier, ...] = (
    Tier("string", _compare_strings),
    Tier("number", _compare_numbers),
    Tier("base", compare_based),
    Tier("clock", compare_clock_times),
    Tier("choice", compare_choices),
    Tier("text", compare_words),
)


def grade(gold: str, response: str) -> Grade:
    r"""Judge a model's final turn against the reference answer.

    The answer is the last balanced `\boxed{}` outside fenced code and after the last
    `</think>`. Never raises for what the model wrote. `Grade.counts` is False where the
    reference is unusable or the machinery failed: such episodes are excluded, not wrong.
    """
    return grade_answer(gold, extract_answer(response))


def grade_answer(gold: str, answer: str | None) -> Grade:
    """Judge an answer that is already extracted (None or blank: no answer)."""
    gold = unwrap_box(gold)
    if _is_empty(gold):
        return Grade(False, GradeStatus.GOLD_ERROR, answer, "gold", "empty reference answer")
    if answer is None or _is_empty(answer):
        return Grade(False, GradeStatus.NO_ANSWER, None, "extract")
    if gold == answer:
        return Grade(True, GradeStatus.CORRECT, answer, "string")
    if cap := too_big(gold):
        detail = f"reference answer over the {cap} cap"
        return Grade(False, GradeStatus.GOLD_ERROR, answer, "limits", detail)
    if cap := too_big(answer):
        return Grade(False, GradeStatus.LIMIT, answer, "limits", f"over the {cap} cap")
    return _cascade(gold, answer)


def _is_empty(text: str) -> bool:
    return not text.strip() or (len(text) <= MAX_CHARS and not normalize(text))


def _cascade(gold: str, answer: str) -> Grade:
    gold_text, answer_text = normalize(gold), normalize(answer)
    for tier in TIERS:
        verdict = tier.compare(gold_text, answer_text)
        if verdict is not None:
            status = GradeStatus.CORRECT if verdict else GradeStatus.INCORRECT
            return Grade(verdict, status, answer, tier.name)
    reply = shared_comparer()(gold_text, answer_text)
    status = GradeStatus(reply.verdict)
    return Grade(status is GradeStatus.CORRECT, status, answer, "symbolic", reply.detail)
