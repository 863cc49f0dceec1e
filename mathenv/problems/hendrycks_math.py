"""MATH (Hendrycks et al., 2021): competition problems. Hub: EleutherAI/hendrycks_math."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mathenv.problems.base import read_rows, register_problems
from mathenv.problems.files import Row
from mathenv.problems.values import boxed_answer
from mathenv.types import Problem

HUB_ID = "EleutherAI/hendrycks_math"
CONFIGS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


@register_problems("math")
def load(
    split: str, *, data: Path | None = None, limit: int | None = None, seed: int = 0
) -> Iterator[Problem]:
    """Load MATH rows as published ({problem, level, type, solution}) or with an `answer`."""
    for config, row in read_rows(split, data, HUB_ID, CONFIGS):
        yield _problem(row, config, split)


def _problem(row: Row, config: str, split: str) -> Problem:
    solution = row.optional("solution")
    place = "/".join(part for part in ("math", split, config, str(row.index)) if part)
    return Problem(
        id=row.optional("id") or place,
        question=row.text("problem", "question"),
        answer=row.text("answer") if "answer" in row.fields else boxed_answer(row),
        source="math",
        split=row.optional("split") or split,
        level=row.optional("level"),
        subject=row.optional("type") or row.optional("subject"),
        metadata={"solution": solution} if solution else {},
    )
