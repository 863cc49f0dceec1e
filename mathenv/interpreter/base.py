"""What an interpreter is. Everything above depends on this file alone."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, fields
from numbers import Real
from typing import Protocol, runtime_checkable

from mathenv.errors import ConfigError, InfraError, MathEnvError, whole
from mathenv.types import ExecutionResult

RESTARTED = "[The session was restarted: names defined earlier are gone.]"


# The wall time of a cell that waits for a busy processor: at most this many times its limit.
WALL_FACTOR = 10
_MOST_SECONDS = 10**7  # some months: what the kernel's timers hold
_MOST_BYTES = 1 << 50


class ForkError(MathEnvError):
    """A session cannot be copied as it stands, such as while its threads run."""


class HostLimitError(InfraError):
    """This process may open no more files or start no more processes: its owner must raise that.

    Unlike other failures of the machinery this reaches the caller of `Session.run`: every
    further session would meet it as well.
    """


@dataclass(frozen=True, slots=True)
class Limits:
    """Per-session limits. Seconds, bytes and characters as named; each is more than 0.

    The seconds of a cell are wall time less the time in which it was ready to run and waited
    for a processor, so that a busy machine takes none of them away. A cell that waits most of
    its time still ends after `WALL_FACTOR` times its limit.

    Raises:
        ConfigError: a value is not a finite number, not a whole one where only those make
            sense, or not more than 0.
    """

    cell_seconds: float = 5.0  # of one cell before it is interrupted
    grace_seconds: float = 0.5  # after the interrupt, before the kill
    session_cpu_seconds: float = 60.0
    memory_bytes: int = 2 * 1024**3
    output_chars: int = 2000  # kept for the agent, head and tail
    output_bytes: int = 64 * 1024**2  # a session that writes more is killed
    file_bytes: int = 64 * 1024**2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("seconds"):
                value = _seconds(field.name, value)
            else:
                value = whole(f"limits: {field.name}", value, 1, _MOST_BYTES)
            object.__setattr__(self, field.name, value)


def _seconds(name: str, value: object) -> float:
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # an integer beyond all numbers of seconds
            number = float(value)
    if not 0 < number <= _MOST_SECONDS:
        raise ConfigError(
            f"limits: {name} must be a number of seconds, more than 0 and at most "
            f"{_MOST_SECONDS}, got {value!r}"
        )
    return number


@runtime_checkable
class Session(Protocol):
    """One notebook-like session: names persist from cell to cell.

    Used by one thread at a time. Never raises for what the code does: that is an
    `ExecutionResult`. After a kill the next `run` starts in a fresh, empty session.
    """

    def run(self, code: str) -> ExecutionResult:
        """Run one cell.

        Raises `ConfigError` if the session or interpreter is closed, `HostLimitError` if this
        process may open no more files (`ulimit -n`), and nothing else.
        """
        ...

    def fork(self) -> Session:
        """An independent session that starts as a copy of this one, in milliseconds.

        Copied: everything in memory (names, modules, the state of every random number
        generator, the cell count), the files of the scratch folder, and open files of that
        folder with their positions. From then on neither can change or end the other; the
        copy has the same limits, with a CPU budget of its own. Not copied: pipes and other
        descriptors (closed in the copy), pending alarms, file locks. The copy's scratch
        folder may have another absolute path; relative paths go on working.

        A session without state copies as one: one that has not started gives another that
        has not, with the same seed; one that was lost gives one that says so.

        Raises `ForkError` if the session's own code prevents it (threads that run, an answer
        that does not come), `InfraError` if the machinery fails, `ConfigError` if the session
        or the interpreter is closed.
        """
        ...

    def close(self) -> None:
        """Release everything. Safe to call twice."""
        ...


@runtime_checkable
class Interpreter(Protocol):
    """Makes sessions. Thread safe: many sessions may be open at once."""

    @property
    def description(self) -> dict[str, str]:
        """What isolates the code, for manifests and `info`: host, tier, Python version."""
        ...

    def session(self, *, seed: int = 0) -> Session: ...

    def close(self) -> None:
        """End all sessions and helper processes. Safe to call twice."""
        ...
