"""MAWPS (Koncel-Kedziorski et al., 2016): the four parts that papers report, 2,065 problems.

The split `test` is all four in the order of `PARTS`; each part is a split of its own. No hub
repository holds these four, so without local data they are read by `datasets` from the files
that the Qwen2.5-Math evaluation publishes ({input, target}, as PAL wrote them).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mathenv.errors import ConfigError
from mathenv.problems.base import read_dataset, register_problems, split_file
from mathenv.problems.files import Row, read_file
from mathenv.problems.values import plain_number
from mathenv.types import Problem

PARTS = ("singleeq", "singleop", "addsub", "multiarith")
FILES = "https://raw.githubusercontent.com/QwenLM/Qwen2.5-Math/main/evaluation/data/mawps"


@register_problems("mawps")
def load(
    split: str, *, data: Path | None = None, limit: int | None = None, seed: int = 0
) -> Iterator[Problem]:
    """Load MAWPS rows as published ({input, target}) or {problem, answer, type}."""
    if data is not None:
        path = split_file(data, split)
        if path is not None:
            yield from (_problem(row, split) for row in read_file(path))
            return
    if split not in ("test", *PARTS):
        raise ConfigError(f"mawps has the splits test, {', '.join(PARTS)}, not {split!r}")
    for part in PARTS if split == "test" else (split,):
        yield from (_problem(row, part) for row in _part(part, data))


def _part(part: str, data: Path | None) -> Iterator[Row]:
    if data is None:
        return read_dataset("json", "", "train", data_files=f"{FILES}/{part}.jsonl")
    path = split_file(data, part)
    if path is None:
        raise ConfigError(f"{data} has neither test.jsonl nor {part}.jsonl")
    return read_file(path)


def _problem(row: Row, split: str) -> Problem:
    return Problem(
        id=row.identifier(f"mawps/{split}") if "id" not in row.fields else row.text("id"),
        question=row.text("problem", "question", "input"),
        answer=plain_number(row.text("answer", "target")),
        source="mawps",
        split=row.optional("split") or split,
        subject=row.optional("type") or (split if split in PARTS else ""),
    )
