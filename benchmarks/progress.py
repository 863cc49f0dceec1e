"""Progress of long work: a bar on a terminal, a plain line now and then anywhere else.

`ConsoleReporter` has the two methods that every long command uses; the learners' online
loop takes it as its reporter.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

PLAIN_SECONDS = 15.0  # between two lines where the output is not a terminal


class Advance(Protocol):
    """Tells how far a stage is: `done` of `total` units, with figures worth showing."""

    def __call__(
        self, done: int, total: int | None = None, figures: Mapping[str, float] | None = None
    ) -> None: ...


class ConsoleReporter:
    """Shows stages and remarks on a console (default: standard error).

    Standard output stays free for results, so that a command can be piped.

    Args:
        console: where to write.
        plain_seconds: least seconds between two lines on something that is no terminal.
    """

    def __init__(
        self, console: Console | None = None, *, plain_seconds: float = PLAIN_SECONDS
    ) -> None:
        self.console = console or Console(stderr=True)
        self._plain_seconds = plain_seconds

    def say(self, text: str) -> None:
        """Print a remark."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Show one stage. `total` may be unknown at first and given with the first advance."""
        view = _Bar if self.console.is_terminal else _Lines
        stage = view(self.console, name, total, unit, self._plain_seconds)
        try:
            yield stage.advance
        finally:
            stage.close()


class _Clock:
    """Rate and time left. Work that an earlier run finished is not counted as ours."""

    def __init__(self, total: int | None, unit: str) -> None:
        self.total, self.unit = total, unit
        self.done = 0
        self._started = time.monotonic()
        self._first: int | None = None

    def advance(self, done: int, total: int | None) -> None:
        if self._first is None:
            self._first = done - 1  # the first report comes when one unit is finished
        self.done = done
        self.total = total if total is not None else self.total

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def rate(self) -> float:
        new = self.done - (self._first or 0)
        return new / self.seconds if self.seconds > 0 else 0.0

    def text(self) -> str:
        """Return e.g. `37/1319  12.1 trajectories/s  1:46 left`."""
        parts = [str(self.done) if self.total is None else f"{self.done}/{self.total}"]
        if self.done:
            parts.append(f"{self.rate:.3g} {self.unit}/s")
        if self.total is not None and self.rate > 0 and self.done < self.total:
            parts.append(f"{_duration((self.total - self.done) / self.rate)} left")
        elif self.done:
            parts.append(f"took {_duration(self.seconds)}")
        return "  ".join(parts)


class _Bar:
    """The view for terminals."""

    def __init__(
        self, console: Console, title: str, total: int | None, unit: str, _seconds: float
    ) -> None:
        self._clock = _Clock(total, unit)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
        )
        self._task = self._progress.add_task(title, total=total, text="")
        self._progress.start()

    def advance(
        self, done: int, total: int | None = None, figures: Mapping[str, float] | None = None
    ) -> None:
        self._clock.advance(done, total)
        text = f"{self._clock.text()}  {_figures(figures)}".rstrip()
        self._progress.update(self._task, completed=done, total=self._clock.total, text=text)

    def close(self) -> None:
        self._progress.stop()


class _Lines:
    """The view for files and pipes: no control characters."""

    def __init__(
        self, console: Console, title: str, total: int | None, unit: str, seconds: float
    ) -> None:
        self._console, self._title, self._seconds = console, title, seconds
        self._clock = _Clock(total, unit)
        self._printed = time.monotonic()
        self._pending = ""

    def advance(
        self, done: int, total: int | None = None, figures: Mapping[str, float] | None = None
    ) -> None:
        self._clock.advance(done, total)
        self._pending = f"{self._title}: {self._clock.text()}  {_figures(figures)}".rstrip()
        if time.monotonic() - self._printed >= self._seconds:
            self._print()

    def close(self) -> None:
        if self._pending:
            self._print()

    def _print(self) -> None:
        self._console.print(self._pending, markup=False, highlight=False, soft_wrap=True)
        self._printed, self._pending = time.monotonic(), ""


_SHOWN = ("loss", "rewards/accuracies", "rewards/margins")


def _figures(figures: Mapping[str, float] | None) -> str:
    return "  ".join(
        f"{name} {figures[name]:.3g}" for name in _SHOWN if figures and name in figures
    )


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
