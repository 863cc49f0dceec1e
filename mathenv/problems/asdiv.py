"""ASDiv (Miao et al., 2020): 2,305 diverse elementary word problems. Hub: EleutherAI/asdiv.

Rows with several answers (`5; 3`) are left out, as ToRA and its successors do: 2,215 stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mathenv.problems.base import read_rows, register_problems
from mathenv.problems.files import Row
from mathenv.problems.values import plain_number
from mathenv.types import Problem

HUB_ID = "EleutherAI/asdiv"
SPLITS = {"test": ("validation",)}

_UNIT = re.compile(r"\s+\([^()]*\)$")  # "9 (apples)", but not "-(1/3)"
_NEGATIVE_FRACTION = re.compile(r"-\((\d+/\d+)\)")


@register_problems("asdiv")
def load(
    split: str, *, data: Path | None = None, limit: int | None = None, seed: int = 0
) -> Iterator[Problem]:
    """Load ASDiv rows as published ({body, question, answer, formula, solution_type}) or ours."""
    for _, row in read_rows(split, data, HUB_ID, splits=SPLITS):
        if ";" not in row.text("answer_raw", "answer"):
            yield _problem(row, split)


def _problem(row: Row, split: str) -> Problem:
    formula = row.optional("formula", "solution")
    body = row.optional("body")
    raw = row.text("answer_raw", "answer")
    return Problem(
        id=row.identifier("asdiv", "id"),
        question=f"{body} {row.text('question')}" if body else row.text("problem", "question"),
        answer=_answer(raw),
        source="asdiv",
        split=split,
        subject=row.optional("solution_type", "type"),
        metadata={"answer_raw": raw, **({"solution": formula} if formula else {})},
    )


def _answer(raw: str) -> str:
    return plain_number(_NEGATIVE_FRACTION.sub(r"-\1", _UNIT.sub("", raw)))
