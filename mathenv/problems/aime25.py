"""AIME 2025: both contests, 30 problems, answers are integers from 0 to 999.

Hub: math-ai/aime25.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mathenv.problems.base import read_rows, register_problems
from mathenv.problems.files import Row
from mathenv.problems.values import boxed_answer, contest, plain_number
from mathenv.types import Problem

HUB_ID = "math-ai/aime25"
SPLITS = {"test": ("test",)}


@register_problems("aime25")
def load(
    split: str, *, data: Path | None = None, limit: int | None = None, seed: int = 0
) -> Iterator[Problem]:
    """Load rows {problem, answer}."""
    for _, row in read_rows(split, data, HUB_ID, splits=SPLITS):
        yield _problem(row, split)


def _problem(row: Row, split: str) -> Problem:
    solution = row.optional("solution")
    answer = row.text("answer") if "answer" in row.fields else boxed_answer(row)
    return Problem(
        id=row.identifier("aime25", "id"),
        question=row.text("problem", "question"),
        answer=plain_number(answer),
        source="aime25",
        split=split,
        subject=contest(row.optional("url")),
        metadata={"solution": solution} if solution else {},
    )
