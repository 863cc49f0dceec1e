"""Can the grader be trusted on a data set? Run before trusting the data set."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mathenv.grading.grader import grade, grade_answer
from mathenv.grading.policy import STRICT, GradePolicy
from mathenv.types import Grade, Problem


@dataclass(frozen=True, slots=True)
class SelfMismatch:
    """A problem whose own reference answer, put into a box, is not judged correct."""

    problem: Problem
    grade: Grade


def self_mismatches(
    problems: Iterable[Problem], policy: str | GradePolicy = STRICT
) -> list[SelfMismatch]:
    r"""Grade `\boxed{answer}` of each problem against its answer; return the failures.

    Equal answers are graded once. An empty list is what a usable data set gives.
    """
    grades: dict[str, Grade] = {}
    mismatches = []
    for problem in problems:
        if problem.answer not in grades:
            grades[problem.answer] = self_match(problem.answer, policy)
        if not grades[problem.answer].correct:
            mismatches.append(SelfMismatch(problem, grades[problem.answer]))
    return mismatches


def self_match(answer: str, policy: str | GradePolicy = STRICT) -> Grade:
    """Grade a reference answer against itself, as a model would give it."""
    return grade(answer, f"The answer is $\\boxed{{{answer}}}$.", policy)


def perturbed(answers: Iterable[str], seed: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (answer, answer with one digit changed) for each answer that holds a digit."""
    rng = random.Random(seed)
    for answer in answers:
        places = [i for i, char in enumerate(answer) if char in "0123456789"]
        if places:
            place = rng.choice(places)
            digit = rng.choice([d for d in "0123456789" if d != answer[place]])
            yield answer, answer[:place] + digit + answer[place + 1 :]


def accepted_perturbations(
    answers: Iterable[str], policy: str | GradePolicy = STRICT, seed: int = 0
) -> Iterator[tuple[str, str, Grade]]:
    """Yield (answer, wrong answer, grade) for each perturbed answer; `correct` is an error."""
    for answer, wrong in perturbed(answers, seed):
        yield answer, wrong, grade_answer(answer, wrong, policy)
