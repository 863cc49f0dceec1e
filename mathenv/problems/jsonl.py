"""Problems from the user's own .jsonl file: `question` or `problem`, and `answer`."""

from __future__ import annotations

from pathlib import Path

from mathenv.errors import ConfigError, DataError
from mathenv.problems.base import Row, read_jsonl, split_file
from mathenv.types import Problem

_OWN = frozenset(
    {"id", "question", "problem", "answer", "source", "split", "level", "subject", "type"}
)


def load_jsonl(path: Path, split: str) -> list[Problem]:
    """Read a .jsonl file, or `<split>.jsonl` in a folder.

    Columns: `question` (or `problem`) and `answer` are required; `id`, `source`, `split`,
    `level` and `subject` (or `type`) are optional; `solution` as a list of strings gives
    code cells. All other columns go into `metadata`. Raises `DataError` with file and line.
    """
    file = split_file(path, split)
    if file is None:
        found = sorted(p.name for p in path.glob("*.jsonl"))
        raise ConfigError(f"{path} has no {split}.jsonl; it holds {found or 'no .jsonl file'}")
    problems = [_problem(row, file, split) for row in read_jsonl(file)]
    if not problems:
        raise DataError(f"{file}: holds no problem")
    return problems


def _problem(row: Row, file: Path, split: str) -> Problem:
    solution = row.fields.get("solution")
    cells = tuple(solution) if isinstance(solution, list) else ()
    if not all(isinstance(cell, str) for cell in cells):
        raise DataError(f"{row.where}: a solution given as a list must hold code cells (strings)")
    kept = _OWN | {"solution"} if isinstance(solution, list) else _OWN
    return Problem(
        id=row.optional("id") or f"{file.stem}/{row.index}",
        question=row.text("question", "problem"),
        answer=row.text("answer"),
        source=row.optional("source") or file.stem,
        split=row.optional("split") or split,
        level=row.optional("level"),
        subject=row.optional("subject") or row.optional("type"),
        solution=cells,
        metadata={name: value for name, value in row.fields.items() if name not in kept},
    )
