"""`mathenv replay`."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.agent_options import InterpreterName
from benchmarks.console import ResultConsole
from benchmarks.progress import ConsoleReporter
from benchmarks.studies.replay import (
    EXPLAINED,
    RecordedRun,
    Replayed,
    Verdict,
    read_runs,
    replay,
    share,
)
from mathenv.env import INTERPRETERS
from mathenv.errors import ConfigError
from mathenv.files import check_writable
from mathenv.interpreter import Interpreter, Limits
from mathenv.manifest import environment
from mathenv.settings import Count, CountFrom0, Positive, Seed, check_settings
from mathenv.store import write_atomic


@dataclass(frozen=True, slots=True)
class Replay:
    """Run recorded cells again and compare outputs: does this sandbox behave like the record?

    Shows how many cells give the recorded output (white space aside), or for a recorded
    exception its type and message, and every class of difference with its count. "Explained"
    are those that come from paths and versions: another Python's wording of an exception, the
    place of a library, the layout of a traceback.

    Args:
        files: .jsonl files: this project's trajectories, MathCoder's or ToRA's recorded runs.
        limit: draw this many runs of each file.
        seed: which runs are drawn.
        cell_seconds: time limit of a cell.
        interpreter: where cells run.
        sessions: sessions at the same time.
        show: print this many differences of each class.
        json: write the counts and every difference to this file.
    """

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    limit: Count | None = None
    seed: Seed = 0
    cell_seconds: Positive = 20.0
    interpreter: InterpreterName = "local"
    sessions: Count = 2
    show: CountFrom0 = 0
    json: Path | None = None

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self) -> None:
        """Replay the files one after another and print one table."""
        if not self.files:
            raise ConfigError("nothing to replay: name a .jsonl file of recorded runs")
        if self.json is not None:
            check_writable(self.json)
        recorded = {file.name: self._draw(read_runs(file)) for file in self.files}
        reporter, console = ConsoleReporter(), ResultConsole()
        limits = Limits(cell_seconds=self.cell_seconds)
        with closing(INTERPRETERS[self.interpreter](limits)) as interpreter:
            description = interpreter.description
            results = {
                name: self._replay(name, runs, interpreter, reporter)
                for name, runs in recorded.items()
            }
        console.say("interpreter: " + ", ".join(f"{k} {v}" for k, v in description.items()))
        for table in _tables(results):
            console.print(table)
        _print_differences(results, self.show, console)
        if self.json is not None:
            write_atomic(self.json, _as_json(results, description))
            console.say(f"results: {self.json}")

    def _draw(self, runs: list[RecordedRun]) -> list[RecordedRun]:
        if self.limit is None or self.limit >= len(runs):
            return runs
        return random.Random(self.seed).sample(runs, self.limit)

    def _replay(
        self,
        name: str,
        runs: Sequence[RecordedRun],
        interpreter: Interpreter,
        reporter: ConsoleReporter,
    ) -> list[Replayed]:
        cells: list[Replayed] = []
        with (
            reporter.stage(f"replay {name}", len(runs), "runs") as advance,
            ThreadPoolExecutor(self.sessions) as pool,
        ):
            one = partial(replay, interpreter=interpreter)
            for done, outcome in enumerate(pool.map(one, runs), start=1):
                cells += outcome
                advance(done)
        return cells


def _counts(cells: Iterable[Replayed]) -> Counter[Verdict]:
    return Counter(cell.verdict for cell in cells)


def _halves(cells: Sequence[Replayed]) -> list[tuple[str, list[Replayed]]]:
    outputs = [cell for cell in cells if not cell.step.raises]
    exceptions = [cell for cell in cells if cell.step.raises]
    return [(n, c) for n, c in (("output", outputs), ("exception", exceptions)) if c]


def _tables(results: dict[str, list[Replayed]]) -> list[Table]:
    """Return how much is equal, and what differs."""
    shares = _table("file", "recorded", "cells", "equal", "share", "or explained")
    classes = _table("file", "recorded", "cells", "difference")
    for name, cells in results.items():
        for kind, half in _halves(cells):
            counts = _counts(half)
            equal = (str(counts[Verdict.EQUAL]), f"{share(half):.2%}")
            shares.add_row(name, kind, str(len(half)), *equal, f"{share(half, EXPLAINED):.2%}")
            for verdict in Verdict:
                if counts[verdict] and verdict is not Verdict.EQUAL:
                    classes.add_row(name, kind, str(counts[verdict]), verdict.value)
    return [shares, classes] if classes.row_count else [shares]


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for column in columns:
        left = column in ("file", "recorded", "difference")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    return table


def _print_differences(
    results: dict[str, list[Replayed]], show: int, console: ResultConsole
) -> None:
    for name, cells in results.items():
        shown: Counter[Verdict] = Counter()
        for cell in cells:
            shown[cell.verdict] += 1
            if cell.verdict is Verdict.EQUAL or shown[cell.verdict] > show:
                continue
            console.say(f"\n{name} {cell.id} cell {cell.index}: {cell.verdict.value}")
            console.say(f"  record: {(cell.step.output or '')[-300:]!r}")
            console.say(f"  here:   {cell.result.output[-300:]!r}")


def _as_json(results: dict[str, list[Replayed]], description: dict[str, str]) -> str:
    files: dict[str, Any] = {}
    for name, cells in results.items():
        halves = {
            kind: {"cells": len(half), "verdicts": {v.name: n for v, n in _counts(half).items()}}
            for kind, half in _halves(cells)
        }
        differences = [
            {
                "id": cell.id,
                "cell": cell.index,
                "verdict": cell.verdict.name,
                "code": cell.step.code,
                "record": cell.step.output,
                "here": cell.result.output,
                "status": cell.result.status.value,
            }
            for cell in cells
            if cell.verdict is not Verdict.EQUAL
        ]
        files[name] = {"recorded": halves, "differences": differences}
    document = {"environment": environment(), "interpreter": description, "files": files}
    return json.dumps(document, indent=1) + "\n"
