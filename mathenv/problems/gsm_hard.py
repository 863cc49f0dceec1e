"""GSM-Hard (Gao et al., PAL, 2023): the GSM8K test with large numbers.

Hub: reasoning-machines/gsm-hard.
The answers were computed by programs with one number replaced, so some make no sense in the
story; `solution` in the metadata is that program. Negative answers are flagged, as their authors
confirm (reasoning-machines/pal, issue 12), but for questions about temperatures, which may have
them by right. That leaves wrong labels unflagged: about one in ten is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mathenv.problems.base import read_rows, register_problems
from mathenv.problems.files import Row
from mathenv.problems.label_issues import ISSUE, SOURCE
from mathenv.problems.values import plain_number
from mathenv.types import Problem

HUB_ID = "reasoning-machines/gsm-hard"
SPLITS = {"test": ("train",)}


@register_problems("gsm_hard")
def load(
    split: str, *, data: Path | None = None, limit: int | None = None, seed: int = 0
) -> Iterator[Problem]:
    """Load GSM-Hard rows as published ({input, code, target}) or {problem, solution, answer}."""
    for _, row in read_rows(split, data, HUB_ID, splits=SPLITS):
        yield _problem(row, split)


def _problem(row: Row, split: str) -> Problem:
    program = row.optional("code", "solution")
    answer = plain_number(row.text("answer", "target"))
    metadata = {"solution": program} if program else {}
    if answer.startswith("-") and "degrees" not in row.text("problem", "question", "input"):
        metadata |= {ISSUE: "the label is negative", SOURCE: "reasoning-machines/pal, issue 12"}
    return Problem(
        id=row.identifier("gsm_hard", "id"),
        question=row.text("problem", "question", "input"),
        answer=answer,
        source="gsm_hard",
        split=split,
        metadata=metadata,
    )
