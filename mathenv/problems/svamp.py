"""SVAMP (Patel et al., 2021): 1,000 one-step problems, varied to trip shortcuts.

Hub: ChilleD/SVAMP, which cuts the published challenge set into 700 `train` and 300 `test` rows.
Papers report all 1,000, so both together are our split `test`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mathenv.problems.base import read_rows, register_problems
from mathenv.problems.files import Row
from mathenv.problems.values import plain_number
from mathenv.types import Problem

HUB_ID = "ChilleD/SVAMP"
SPLITS = {"test": ("train", "test")}


@register_problems("svamp")
def load(
    split: str, *, data: Path | None = None, limit: int | None = None, seed: int = 0
) -> Iterator[Problem]:
    """Load SVAMP rows as published ({ID, Body, Question, Equation, Answer, Type}) or with ours."""
    for _, row in read_rows(split, data, HUB_ID, splits=SPLITS):
        yield _problem(row, split)


def _problem(row: Row, split: str) -> Problem:
    equation = row.optional("Equation", "solution")
    return Problem(
        id=row.identifier("svamp", "ID", "id"),
        question=_question(row),
        answer=plain_number(row.text("Answer", "answer")),
        source="svamp",
        split=split,
        subject=row.optional("Type", "type"),
        metadata={"solution": equation} if equation else {},
    )


def _question(row: Row) -> str:
    if "Body" not in row.fields:
        return row.text("problem", "question")
    body = row.text("Body")
    return f"{body}{'' if body.endswith(('.', '?', '!', ',')) else '.'} {row.text('Question')}"
