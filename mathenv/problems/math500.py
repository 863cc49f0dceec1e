"""MATH-500: the 500 MATH test problems of Lightman et al. (2023). Hub: HuggingFaceH4/MATH-500."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mathenv.problems.base import read_rows, register_problems
from mathenv.problems.files import Row
from mathenv.problems.values import boxed_answer
from mathenv.types import Problem

HUB_ID = "HuggingFaceH4/MATH-500"
SPLITS = {"test": ("test",)}


@register_problems("math500")
def load(
    split: str, *, data: Path | None = None, limit: int | None = None, seed: int = 0
) -> Iterator[Problem]:
    """Load rows {problem, solution, answer, subject or type, level, unique_id}."""
    for _, row in read_rows(split, data, HUB_ID, splits=SPLITS):
        yield _problem(row, split)


def _problem(row: Row, split: str) -> Problem:
    solution = row.optional("solution")
    level = row.optional("level")
    return Problem(
        id=row.identifier("math500", "unique_id", "id"),
        question=row.text("problem", "question"),
        answer=row.text("answer") if "answer" in row.fields else boxed_answer(row),
        source="math500",
        split=split,
        level=f"Level {level}" if level.isdigit() else level,
        subject=row.optional("subject", "type"),
        metadata={"solution": solution} if solution else {},
    )
