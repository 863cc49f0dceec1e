"""Problems from the user's own file: a question and an answer in columns of the usual names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mathenv.errors import ConfigError, DataError
from mathenv.problems.base import split_file
from mathenv.problems.files import SUFFIXES, Row, file_stem, read_file
from mathenv.problems.gsm8k import solution_cells
from mathenv.problems.values import boxed_answer
from mathenv.types import Problem

# The first of these that a row has, in any case of letters.
QUESTIONS = ("question", "problem", "prompt", "input", "query")
ANSWERS = (
    *("answer", "expected_answer", "final_answer", "ground_truth", "target", "label", "gold"),
    "reward_model",  # verl's: {"ground_truth": ...}
    "solution",  # a written one, which ends in a box or in `#### 72`
)
_OWN = frozenset(
    {"id", "question", "problem", "answer", "source", "split", "level", "subject", "type"}
)
_WORDS = 3  # a solution without a box and with no more words than this is an answer


def load_jsonl(
    path: Path, split: str, *, columns: Mapping[str, str] | None = None
) -> list[Problem]:
    """Read a file of rows (`mathenv.problems.files`), or `<split>.jsonl` etc. in a folder.

    A question and an answer are required (`QUESTIONS`, `ANSWERS`); `id`, `source`, `split`,
    `level` and `subject` (or `type`) are optional; `solution` as a list of strings gives
    code cells. All other columns go into `metadata`. `columns` says which column holds what,
    where that has another name: `{"question": "Aufgabe", "answer": "Ergebnis"}`.

    Raises:
        DataError: with file and line.
        ConfigError: no such file, or `columns` names what there is not.
    """
    unknown = sorted(set(columns or ()) - _OWN - {"solution"})
    if unknown:
        raise ConfigError(f"columns= cannot say what holds {unknown}: use {sorted(_OWN)}")
    file = split_file(path, split)
    if file is None:
        found = sorted(p.name for p in path.iterdir() if p.name.endswith(SUFFIXES))
        raise ConfigError(f"{path} has no {split}.jsonl; it holds {found or 'no .jsonl file'}")
    rows = (_renamed(row, columns or {}) for row in read_file(file))
    problems = [_problem(row, file, split) for row in rows]
    if not problems:
        raise DataError(f"{file}: holds no problem")
    return problems


def reference_answer(row: Row) -> str:
    r"""Return the reference answer of a row.

    Of a text with `####` it is what follows (GSM8K), of a written solution its last box.

    Raises:
        DataError: there is none, or it is no text.
    """
    for name in ANSWERS:
        value = row.fields.get(name)
        if name == "reward_model" and isinstance(value, dict):
            row = Row(row.where, row.index, {name: value.get("ground_truth")})
        if row.fields.get(name) is None or (name == "solution" and isinstance(value, list)):
            continue
        text = row.text(name)
        if "####" in text:
            return _after_marks(row, text)
        return _of_solution(row) if name == "solution" else text
    raise DataError(
        f"{row.where}: no column 'answer'; found {sorted(row.fields)}. An answer may stand in "
        f"{', '.join(ANSWERS)}; say which column holds it with columns="
    )


def _after_marks(row: Row, text: str) -> str:
    answer = text.rsplit("####", 1)[-1].strip().replace(",", "")
    if not answer:
        raise DataError(f"{row.where}: nothing follows '####' in the answer")
    return answer


def _of_solution(row: Row) -> str:
    text = row.text("solution")
    short = len(text.split()) <= _WORDS and not text.endswith(".")
    return text if short and "\\boxed" not in text and "\\fbox" not in text else boxed_answer(row)


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """Return the row with its columns under the names that are looked for."""
    missing = sorted(set(columns.values()) - set(row.fields))
    if missing:
        raise ConfigError(f"{row.where}: no column {missing}; found {sorted(row.fields)}")
    fields: dict[str, Any] = {}
    for name, value in row.fields.items():
        plain = name.strip().lower()
        known = plain in (*QUESTIONS, *ANSWERS, *_OWN) and plain not in row.fields
        if name not in columns.values():
            fields[plain if known else name] = value
    fields |= {name: row.fields[column] for name, column in columns.items()}
    return Row(row.where, row.index, fields)


def _question(row: Row) -> tuple[str, str]:
    """Return the name of the question's column, and the question.

    A conversation with one message of a user, as verl writes it, is that message.
    """
    for name in QUESTIONS:
        value = row.fields.get(name)
        if isinstance(value, list):
            said = [m for m in value if isinstance(m, dict) and m.get("role") == "user"]
            if len(said) == 1 and isinstance(said[0].get("content"), str):
                return name, said[0]["content"].strip()
        if value is not None:
            return name, row.text(name)
    raise DataError(
        f"{row.where}: no column 'question' or 'problem'; found {sorted(row.fields)}. A question "
        f"may stand in {', '.join(QUESTIONS)}; say which column holds it with columns="
    )


def _problem(row: Row, file: Path, split: str) -> Problem:
    solution = row.fields.get("solution")
    cells = tuple(solution) if isinstance(solution, list) else ()
    if not all(isinstance(cell, str) for cell in cells):
        raise DataError(f"{row.where}: a solution given as a list must hold code cells (strings)")
    column, question = _question(row)
    answer = reference_answer(row)
    metadata = _others(row, {column, "solution"} if isinstance(solution, list) else {column})
    written = row.fields.get("answer")
    if isinstance(written, str) and "####" in written:  # GSM8K's: its marks are the program
        cells = cells or solution_cells(written, answer)
        metadata.setdefault("solution", written)
    return Problem(
        id=row.optional("id") or f"{file_stem(file)}/{row.index}",
        question=question,
        answer=answer,
        source=row.optional("source") or file_stem(file),
        split=row.optional("split") or split,
        level=row.optional("level"),
        subject=row.optional("subject") or row.optional("type"),
        solution=cells,
        metadata=metadata,
    )


def _others(row: Row, used: set[str]) -> dict[str, Any]:
    return {name: value for name, value in row.fields.items() if name not in _OWN | used}
