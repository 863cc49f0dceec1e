"""Measurements with median and spread, goals, and how they are shown and stored.

CPU seconds are those of this process and all processes below it, ended ones included.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mathenv.manifest import environment
from mathenv.store import write_atomic

Unit = Literal["ms", "/s", "MB"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """Repeated measurements of one quantity of one subject.

    Attributes:
        values: one per repeat: milliseconds, units per second, or megabytes (10^6 bytes).
        cpu_ms: CPU milliseconds per repeat (per unit, for a rate); None where not measured.
    """

    quantity: str
    subject: str
    unit: Unit
    values: tuple[float, ...]
    cpu_ms: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def p90(self) -> float:
        """The value that nine of ten repeats reach or better (for a rate: at least)."""
        if len(self.values) == 1:
            return self.values[0]
        tenths = statistics.quantiles(self.values, n=10, method="inclusive")
        return tenths[0] if self.unit == "/s" else tenths[-1]

    def worse_than(self, other: Measurement) -> float:
        """How many times as slow, or as large, as `other`."""
        if self.unit == "/s":
            return other.median / self.median
        return self.median / other.median


@dataclass(frozen=True, slots=True)
class Goal:
    """`subjects` reach `limit` in `quantity`, or are `limit` times as good as `peer`."""

    quantity: str
    subjects: frozenset[str]
    limit: float
    peer: str | None = None

    def verdict(self, mine: Measurement, all_of: Sequence[Measurement]) -> tuple[str, bool] | None:
        """Return the goal in words and whether it is met; None where it does not apply."""
        if mine.quantity != self.quantity or mine.subject not in self.subjects:
            return None
        if self.peer is None:
            return f"<= {self.limit:g} {mine.unit}", mine.median <= self.limit
        for other in all_of:
            if (other.quantity, other.subject) == (mine.quantity, self.peer):
                times = other.worse_than(mine)
                return f">= {self.limit:g}x: {times:.3g}x", times >= self.limit
        return None


@dataclass(slots=True)
class Report:
    """Collects measurements in the order in which quantities first appear."""

    goals: Sequence[Goal] = ()
    reference: str = ""
    remarks: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)
    _samples: dict[tuple[str, str], _Samples] = field(default_factory=dict)

    def add(
        self, quantity: str, subject: str, unit: Unit, values: Iterable[float], cpu_ms: float | None
    ) -> None:
        """Add repeats; `cpu_ms` is per repeat. Repeats of several rounds are pooled."""
        samples = self._samples.setdefault((quantity, subject), _Samples(unit))
        new = list(values)
        samples.values += new
        if cpu_ms is not None:
            samples.cpu_ms += [cpu_ms] * len(new)

    @property
    def measurements(self) -> list[Measurement]:
        order = list(dict.fromkeys(quantity for quantity, _ in self._samples))
        rows = [
            Measurement(quantity, subject, s.unit, tuple(s.values), s.mean_cpu)
            for (quantity, subject), s in self._samples.items()
        ]
        return sorted(rows, key=lambda row: order.index(row.quantity))

    def tables(self) -> list[Table]:
        """Return a table per quantity: medians, spreads, goals.

        "ratio" says how many times as slow, or as large, as `reference`.
        """
        rows = self.measurements
        tables: dict[str, Table] = {}
        for row in rows:
            table = tables.get(row.quantity)
            if table is None:
                table = tables[row.quantity] = self._empty_table(row.quantity)
            table.add_row(*self._cells(row, rows))
        return list(tables.values())

    def _empty_table(self, quantity: str) -> Table:
        peers = {goal.peer for goal in self.goals if goal.peer and goal.quantity == quantity}
        title = f"{quantity}; goal against {', '.join(peers)}" if peers else quantity
        table = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column("subject", min_width=14)
        for name in ("median", "p90", "CPU", "n", "ratio"):
            table.add_column(name, justify="right", min_width=4 if name == "n" else 7)
        table.add_column("goal", no_wrap=True)
        return table

    def _cells(self, row: Measurement, rows: Sequence[Measurement]) -> list[str]:
        base = next(
            (r for r in rows if (r.quantity, r.subject) == (row.quantity, self.reference)), None
        )
        goals = [found for goal in self.goals if (found := goal.verdict(row, rows))]
        return [
            row.subject,
            _figure(row.median, row.unit),
            _figure(row.p90, row.unit),
            "" if row.cpu_ms is None else _figure(row.cpu_ms, "ms"),
            str(len(row.values)),
            "" if base is None or base is row else f"{row.worse_than(base):.3g}",
            "\n".join(f"{words} {'met' if met else 'MISSED'}" for words, met in goals),
        ]

    def write(self, file: Path) -> None:
        """Write all measurements with environment and load as JSON."""
        rows = self.measurements
        document = {
            "environment": environment(),
            "load_before": self.load_before,
            "load_after": os.getloadavg(),
            **self.details,
            "remarks": self.remarks,
            "measurements": [
                {
                    "quantity": row.quantity,
                    "subject": row.subject,
                    "unit": row.unit,
                    "median": row.median,
                    "p90": row.p90,
                    "cpu_ms": row.cpu_ms,
                    "values": row.values,
                    "goals": [
                        {"goal": found[0], "against": goal.peer, "met": found[1]}
                        for goal in self.goals
                        if (found := goal.verdict(row, rows))
                    ],
                }
                for row in rows
            ],
        }
        write_atomic(file, json.dumps(document, indent=1) + "\n")


@dataclass(slots=True)
class _Samples:
    unit: Unit
    values: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    @property
    def mean_cpu(self) -> float | None:
        return statistics.fmean(self.cpu_ms) if self.cpu_ms else None


def _figure(value: float, unit: Unit) -> str:
    return f"{value:.3g} {unit}" if value < 999.5 else f"{value:.0f} {unit}"


# -------------------------------------------------------------------------- measuring


def time_each(actions: Sequence[Callable[[], object]]) -> tuple[list[float], float]:
    """Run the actions one after another: wall milliseconds of each, mean CPU milliseconds."""
    walls = []
    clock = CpuClock()
    for action in actions:
        started = time.perf_counter()
        action()
        walls.append(1000 * (time.perf_counter() - started))
    return walls, 1000 * clock.seconds() / len(actions)


class CpuClock:
    """CPU time of this process and all below it since the clock was made."""

    def __init__(self) -> None:
        self._below = _seconds_below()  # before our own time: looking takes time too
        self._own = _own_seconds()

    def seconds(self) -> float:
        own = _own_seconds() - self._own
        return own + _seconds_below() - self._below


def _own_seconds() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _seconds_below() -> float:
    """CPU seconds of live processes, and in ticks of 10 ms of those they have waited for."""
    total = 0.0
    for pid, fields in descendants().items():
        total += sum(map(int, fields[13:15])) / os.sysconf("SC_CLK_TCK")  # cutime, cstime
        # Not utime and stime: their ticks are cut off for each process.
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(file.read_text().split()[0]) / 1e9
    return total


def descendants() -> dict[int, list[str]]:
    """Return all processes below this one: id -> fields of /proc/PID/stat after the name."""
    stats = dict(_stats())
    found: dict[int, list[str]] = {}
    pending = [os.getpid()]
    while pending:
        parent = str(pending.pop())
        below = {pid: fields for pid, fields in stats.items() if fields[1] == parent}
        found |= below
        pending += below
    return found


def pss_bytes(pids: Iterable[int]) -> int | None:
    """Proportional set size of processes; None where the kernel does not tell this user."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        except OSError:
            return None
        total += 1024 * int(text.partition("\nPss:")[2].split()[0])
    return total


def _stats() -> Iterable[tuple[int, list[str]]]:
    """Yield (pid, fields of /proc/PID/stat after the name: state, parent, ...)."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue
            yield int(name), text.rpartition(")")[2].split()
