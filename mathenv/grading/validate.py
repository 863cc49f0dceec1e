"""Does the grader accept every reference answer? Run before trusting a data set."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mathenv.grading.grader import grade
from mathenv.types import Grade, Problem


@dataclass(frozen=True, slots=True)
class SelfMismatch:
    """A problem whose own reference answer, put into a box, is not judged correct."""

    problem: Problem
    grade: Grade


def self_mismatches(problems: Iterable[Problem]) -> list[SelfMismatch]:
    r"""Grade `\boxed{answer}` of each problem against its answer; return the failures.

    Equal answers are graded once. An empty list is what a usable data set gives.
    """
    grades: dict[str, Grade] = {}
    mismatches = []
    for problem in problems:
        if problem.answer not in grades:
            response = f"The answer is $\\boxed{{{problem.answer}}}$."
            grades[problem.answer] = grade(problem.answer, response)
        if not grades[problem.answer].correct:
            mismatches.append(SelfMismatch(problem, grades[problem.answer]))
    return mismatches
