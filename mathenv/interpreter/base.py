"""What an interpreter is. Everything above depends on this file alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mathenv.errors import MathEnvError
from mathenv.types import ExecutionResult

RESTARTED = "[The session was restarted: names defined earlier are gone.]"


class ForkError(MathEnvError):
    """A session cannot be copied as it stands, such as while its threads run."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Per-session limits. Seconds, bytes and characters as named."""

    cell_seconds: float = 5.0  # wall time of one cell before it is interrupted
    grace_seconds: float = 0.5  # after the interrupt, before the kill
    session_cpu_seconds: float = 60.0
    memory_bytes: int = 2 * 1024**3
    output_chars: int = 2000  # kept for the agent, head and tail
    output_bytes: int = 64 * 1024**2  # a session that writes more is killed
    file_bytes: int = 64 * 1024**2


@runtime_checkable
class Session(Protocol):
    """One notebook-like session: names persist from cell to cell.

    Used by one thread at a time. Never raises for what the code does: that is an
    `ExecutionResult`. After a kill the next `run` starts in a fresh, empty session.
    """

    def run(self, code: str) -> ExecutionResult:
        """Run one cell. Raises `ConfigError` only if the session or interpreter is closed."""
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
