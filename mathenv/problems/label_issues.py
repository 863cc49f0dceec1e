"""Known label errors of published data sets: problems that say more about the label than the model.

`label_issues.json` lists them, each with its source: a published list of corrections, an
issue that confirms it, or the row itself (its own reference solution says something else).
A problem is recognised by its question and label, so copies of a row are found wherever they
come from, and a copy with a corrected label is not flagged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import Any

from mathenv.types import Problem

FILE = "label_issues.json"
ISSUE, SOURCE = "label_issue", "label_issue_source"  # the fields in `Problem.metadata`


def flag_label_issue(problem: Problem) -> Problem:
    """Return the problem with `label_issue` and its source in the metadata, if one is known.

    A `label_issue` that the row brings along stays as it is.
    """
    known = _known().get((question_hash(problem.question), problem.answer))
    if known is None or ISSUE in problem.metadata:
        return problem
    noted = {ISSUE: known["issue"], SOURCE: known["source"]}
    return replace(problem, metadata={**problem.metadata, **noted})


def has_label_issue(problem: Problem) -> bool:
    """Say whether the label of this problem is known to be wrong or incomplete."""
    return bool(problem.metadata.get(ISSUE))


def question_hash(question: str) -> str:
    """Return 16 hex digits that identify a question up to white space."""
    return hashlib.sha256(" ".join(question.split()).encode("utf-8", "replace")).hexdigest()[:16]


@cache
def _known() -> Mapping[tuple[str, str], Mapping[str, Any]]:
    text = files("mathenv.problems").joinpath(FILE).read_text(encoding="utf-8")
    return {(row["question_sha256"], row["answer"]): row for row in json.loads(text)}
