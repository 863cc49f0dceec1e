"""What people use instead of a warm sandbox: a fresh process, a Jupyter kernel, a pool.

None of them isolates the code it runs, so they get the fixed snippets of this file only.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter import Interpreter, Session
from mathenv.types import ExecutionStatus

JUPYTER = "Jupyter kernel"
CELL_SECONDS = 60.0
POOL_BATCH = 64


@dataclass(frozen=True, slots=True)
class Snippet:
    """The same work as a cell that echoes and as a script that prints, and its output."""

    cell: str
    script: str
    output: str

    def check(self, output: str) -> None:
        """Raise `InfraError` unless the output is right: a fast wrong answer is no result."""
        if output.strip() != self.output:
            raise InfraError(f"a benchmark cell gave {output[-500:]!r}, not {self.output!r}")


TRIVIAL = Snippet("1 + 1", "print(1 + 1)", "2")
_SETUP = "from sympy import *\nx = symbols('x')\n"
SYMPY = Snippet(
    _SETUP + "solve(x**3 - 8, x)",
    _SETUP + "print(solve(x**3 - 8, x))",
    "[2, -1 - sqrt(3)*I, -1 + sqrt(3)*I]",
)


class Live(Protocol):
    """A live session of any subject."""

    def run(self, snippet: Snippet) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """Something that runs snippets.

    Attributes:
        batch: run a snippet about `count` times, each in a session of its own, `threads` at a
            time; returns how often it ran.
        open: open a session that keeps names; None where the subject keeps none.
        fork: copy a live session; None where the subject cannot.
        slow: a session costs hundreds of milliseconds: fewer repeats.
        below: its processes are below this one, so that their CPU time and memory can be read.
    """

    name: str
    batch: Callable[[Snippet, int, int], int]
    open: Callable[[], Live] | None = None
    fork: Callable[[Live], Live] | None = None
    slow: bool = True
    below: bool = True


def one_by_one(one_shot: Callable[[Snippet], None]) -> Callable[[Snippet, int, int], int]:
    """Return a `Subject.batch` that calls `one_shot` from that many threads."""

    def batch(snippet: Snippet, count: int, threads: int) -> int:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one_shot, [snippet] * count))
        return count

    return batch


def in_sessions(open_session: Callable[[], Live]) -> Callable[[Snippet, int, int], int]:
    """Return a `Subject.batch` that opens a session, runs the snippet and closes it."""

    def one_shot(snippet: Snippet) -> None:
        with closing(open_session()) as session:
            session.run(snippet)

    return one_by_one(one_shot)


# ------------------------------------------------------------------------------- ours


class SandboxSession:
    """A session of an interpreter of this project."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def run(self, snippet: Snippet) -> None:
        result = self.session.run(snippet.cell)
        if result.status is not ExecutionStatus.OK:
            raise InfraError(f"a benchmark cell ended with {result.status}: {result.output}")
        snippet.check(result.output)

    def close(self) -> None:
        self.session.close()


def sandbox(name: str, interpreter: Interpreter, *, below: bool) -> Subject:
    """An interpreter of this project."""

    def open_session() -> Live:
        return SandboxSession(interpreter.session())

    def fork(live: Live) -> Live:
        assert isinstance(live, SandboxSession)
        return SandboxSession(live.session.fork())

    batch = in_sessions(open_session)
    return Subject(name, batch, open_session, fork, slow=False, below=below)


# ------------------------------------------------------------------------------ peers


def fresh_process() -> Subject:
    """A new `python -c` for each program."""

    def one_shot(snippet: Snippet) -> None:
        done = subprocess.run(
            [sys.executable, "-c", snippet.script],
            capture_output=True,
            text=True,
            timeout=CELL_SECONDS,
            check=False,
        )
        snippet.check(done.stdout or done.stderr)

    return Subject("python -c", one_by_one(one_shot))


class _Kernel:
    def __init__(self, start: Callable[..., tuple[Any, Any]]) -> None:
        # History is a SQLite file of the user, which kernels side by side would wait for.
        self._manager, self._client = start(
            startup_timeout=CELL_SECONDS,
            extra_arguments=["--HistoryManager.enabled=False"],
            stderr=subprocess.DEVNULL,
        )

    def run(self, snippet: Snippet) -> None:
        parts: list[str] = []

        def collect(message: dict[str, Any]) -> None:
            content = message["content"]
            parts.append(content.get("text") or content.get("data", {}).get("text/plain", ""))

        self._client.execute_interactive(
            snippet.cell, timeout=CELL_SECONDS, output_hook=collect, allow_stdin=False
        )
        snippet.check("".join(parts))

    def close(self) -> None:
        self._client.stop_channels()
        self._manager.shutdown_kernel(now=True)


def jupyter() -> Subject:
    """A Jupyter kernel per session (jupyter_client, ipykernel).

    Raises `ConfigError` where they are not installed.
    """
    try:
        start = import_module("jupyter_client.manager").start_new_kernel
        import_module("ipykernel")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"no {error.name}: pip install jupyter_client ipykernel to compare with it"
        ) from None

    def open_session() -> Live:
        return _Kernel(start)

    return Subject(JUPYTER, in_sessions(open_session), open_session)


def _run_script(script: str) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(script, {})
    return output.getvalue()


def _run_in_new_pool(snippet: Snippet, count: int, workers: int) -> None:
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("fork")) as pool:
        for output in pool.map(_run_script, [snippet.script] * count, timeout=CELL_SECONDS):
            snippet.check(output)


def process_pool() -> Subject:
    """A new process pool for each batch of snippets, as ToRA's executor does.

    One thread: batches of one. More: one batch of `POOL_BATCH` for that many workers, which
    are forks of this process and run many snippets each: nothing is isolated.
    """

    def batch(snippet: Snippet, count: int, threads: int) -> int:
        if threads > 1:
            _run_in_new_pool(snippet, POOL_BATCH, threads)
            return POOL_BATCH
        for _ in range(count):
            _run_in_new_pool(snippet, 1, 1)
        return count

    return Subject("process pool", batch)
