"""Trajectories as columns for filtering and chunks for reading.

The page holds the columns (a few bytes per trajectory) ready, and opens a chunk when one of
its trajectories is looked at: that is what lets it open with ten thousands of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.pages.highlight import code_runs, utf16
from mathenv.types import SpanKind, TokenRecord, Trajectory, Turn

CHUNK = 128  # trajectories that are unpacked together
# Bits of a row's role. MEASURED: it has log-ratios. SHOWN: a demonstration of fine-tuning.
CHOSEN, REJECTED, MEASURED, SHOWN = 1, 2, 4, 8
KINDS = tuple(kind.value for kind in SpanKind)


class Names:
    """Text by number, each once, in order of first appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """Return the number of a name, a new one where it is new."""
        return self._numbers.setdefault(name, len(self._numbers))

    def all(self) -> list[str]:
        """Return the names by number."""
        return list(self._numbers)


@dataclass(frozen=True, slots=True)
class Use:
    """What training made of one trajectory.

    `role` is a sum of CHOSEN, REJECTED and SHOWN. `mask` has the trained positions, None where
    it is not known; `ratios` one value per trained position, or none.
    """

    role: int = 0
    mask: Sequence[bool] | None = None
    ratios: Sequence[float] = ()


class TrajectoryIndex:
    """Collects trajectories in the order of the page."""

    def __init__(self) -> None:
        names = ("problem", "source", "agent", "sample", "verdict", "stop", "turns", "tokens")
        self.columns: dict[str, list[int]] = {name: [] for name in (*names, "role")}
        self.details: list[dict[str, Any]] = []
        self.pieces: dict[tuple[str, int], int] = {}  # (fingerprint, token id) -> position
        self.records: dict[str, tuple[TokenRecord, str]] = {}  # one with its first action
        self._problems: dict[tuple[str, str, str], int] = {}
        self._problem_rows: list[list[Any]] = []
        self._names = {name: Names() for name in ("agent", "verdict", "stop", "level", "subject")}

    def __len__(self) -> int:
        return len(self.details)

    def add(self, source: int, trajectory: Trajectory, use: Use) -> int:
        """Add one trajectory of source number `source` and return its row."""
        columns, names = self.columns, self._names
        record = trajectory.tokens
        columns["problem"].append(self._problem(trajectory))
        columns["source"].append(source)
        columns["agent"].append(names["agent"].number(trajectory.agent))
        columns["sample"].append(trajectory.sample)
        columns["verdict"].append(names["verdict"].number(trajectory.grade.status.value))
        columns["stop"].append(names["stop"].number(trajectory.stop_reason.value))
        columns["turns"].append(len(trajectory.turns))
        columns["tokens"].append(len(record.ids) if record else 0)
        columns["role"].append(use.role | (MEASURED if use.ratios else 0))
        self.details.append(self._detail(trajectory, use))
        return len(self) - 1

    def data(self) -> dict[str, Any]:
        """Return everything but the details."""
        fields = ("id", "question", "answer", "source", "level", "subject")
        problems = {f: [row[i] for row in self._problem_rows] for i, f in enumerate(fields)}
        return {
            "rows": self.columns,
            "problems": problems,
            "names": {name: found.all() for name, found in self._names.items()},
            "kinds": KINDS,
            "chunk": CHUNK,
        }

    def _problem(self, trajectory: Trajectory) -> int:
        problem = trajectory.problem
        identity = (problem.id, problem.question, problem.answer)
        number = self._problems.setdefault(identity, len(self._problems))
        if number == len(self._problem_rows):
            level = self._names["level"].number(problem.level)
            subject = self._names["subject"].number(problem.subject)
            self._problem_rows.append([*identity, problem.source, level, subject])
        return number

    def _detail(self, trajectory: Trajectory, use: Use) -> dict[str, Any]:
        grade = trajectory.grade
        detail: dict[str, Any] = {
            "turns": [_turn(turn) for turn in trajectory.turns],
            "grade": [grade.answer, grade.tier, grade.detail],
            "seed": trajectory.seed,
        }
        if trajectory.parent is not None:
            detail["parent"] = [trajectory.parent, trajectory.branch_turn]
        if trajectory.tokens is not None:
            action = trajectory.turns[0].action if trajectory.turns else ""
            detail["tokens"] = self._tokens(trajectory.tokens, action, use)
        return detail

    def _tokens(self, record: TokenRecord, action: str, use: Use) -> dict[str, Any]:
        self.records.setdefault(record.fingerprint, (record, action))
        pieces, fingerprint = self.pieces, record.fingerprint
        tokens: dict[str, Any] = {
            "ids": [pieces.setdefault((fingerprint, i), len(pieces)) for i in record.ids],
            "spans": [n for s in record.spans for n in (KINDS.index(s.kind), s.turn, s.end)],
        }
        if record.logprobs:
            tokens["logprobs"] = [round(value, 3) for value in record.logprobs]
        if use.mask is not None:
            tokens["trained"] = mask_runs(use.mask)
        if use.ratios:
            tokens["ratios"] = [round(value, 3) for value in use.ratios]
        return tokens


def mask_runs(mask: Sequence[bool]) -> list[int]:
    """Return the lengths of runs in turn untrained, trained, untrained, ..."""
    runs, current = [0], False
    for value in mask:
        if bool(value) != current:
            runs.append(0)
            current = not current
        runs[-1] += 1
    return runs


def _turn(turn: Turn) -> dict[str, Any]:
    row: dict[str, Any] = {"action": turn.action}
    if turn.code:
        row["code"] = _code(turn)
    execution = turn.execution
    if execution is not None:
        row["status"] = execution.status.value
        row["output"] = execution.output
        row["seconds"] = round(execution.seconds, 3)
        flags = (("cut", execution.truncated), ("lost", execution.session_lost))
        row |= {name: 1 for name, on in flags if on}
    if turn.observation and (execution is None or turn.observation != execution.output):
        row["observation"] = turn.observation
    if turn.finish.value != "stop":
        row["finish"] = turn.finish.value
    return row


def _code(turn: Turn) -> dict[str, Any]:
    """Return where the cell stands in the action and its runs; its text if it stands nowhere.

    Several blocks are joined to one cell, which then is no part of the action as it is.
    """
    assert turn.code is not None
    runs = code_runs(turn.code)
    start = turn.action.find(turn.code)
    if start < 0:
        return {"text": turn.code, "runs": runs}
    return {"at": utf16(turn.action[:start]), "runs": runs}
