"""Worker processes for symbolic comparison: started lazily, killable, usable from threads."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCRIPT = Path(__file__).with_name("worker.py")
_START_SECONDS = 300.0
_CLOSE_SECONDS = 2.0


class WorkerDiedError(Exception):
    """The worker process itself is gone or does not answer: not the answer's fault."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the worker says: see `worker.compare` for verdicts, plus timeout, limit, infra."""

    verdict: str
    detail: str = ""
    cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Limits of one comparison. CPU seconds decide, so that load does not change verdicts.

    The wall limit only catches a worker that no longer gets anywhere. Ten times the CPU limit
    was reached on two processors with thirty busy processes, so it is thirty times.
    """

    cpu_seconds: float = 1.9  # a grade takes 2 s at most, with what else it does
    wall_seconds: float = 60.0
    memory_megabytes: int = 1024


class Worker:
    """One worker process, used by one thread at a time."""

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits
        self._next_id = 1
        self._buffer = b""
        # -P keeps the script's folder off sys.path, where `numbers.py` would shadow the
        # standard library. Not -I: that would ignore PYTHONHASHSEED.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_SCRIPT), str(limits.memory_megabytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_environment(),
            start_new_session=True,
        )
        try:
            self.confinement = self._read(0, _START_SECONDS).detail
        except WorkerDiedError:
            self.kill()
            raise

    def compare(
        self, gold: str, answer: str, options: Mapping[str, Any], cpu_seconds: float
    ) -> Reply:
        """Send one pair and wait. Raises `WorkerDiedError` if no verdict can come any more."""
        limits = self._limits
        message = {
            "gold": gold,
            "answer": answer,
            "options": dict(options),
            "cpu": min(limits.cpu_seconds, cpu_seconds),
            "wall": limits.wall_seconds,
        }
        return self._ask(message)

    def self_check(self) -> Reply:
        """Let the worker try what it must not be able to do; the detail is a JSON object."""
        return self._ask({"check": True, "cpu": 10.0, "wall": self._limits.wall_seconds})

    def _ask(self, message: dict[str, Any]) -> Reply:
        job, self._next_id = self._next_id, self._next_id + 1
        message["id"] = job
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise WorkerDiedError(f"cannot reach the grading worker: {error}") from error
        return self._read(job, 2 * self._limits.wall_seconds)

    def _read(self, job: int, seconds: float) -> Reply:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + seconds
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                message = json.loads(line)
                if message["id"] == job:
                    return Reply(message["verdict"], message["detail"], message["cpu"])
                continue
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                raise WorkerDiedError(f"the grading worker did not answer in {seconds:.0f} s")
            chunk = os.read(descriptor, 65536)
            if not chunk:
                raise WorkerDiedError(
                    "the grading worker ended; try it by hand: "
                    f"python -P {_SCRIPT} {self._limits.memory_megabytes}"
                )
            self._buffer += chunk

    def interrupt(self) -> None:
        """Kill the process and its children. A thread that waits for a reply gets an error."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End an idle worker: at end of input it collects its child, so no zombie is left."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_CLOSE_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill and release everything: only for the thread that uses the worker."""
        self.interrupt()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def _environment() -> dict[str, str]:
    """Return an environment without the user's secrets, with a fixed hash seed."""
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "PATH") if name in os.environ}
    return kept | {"PYTHONHASHSEED": "0", "SYMPY_GROUND_TYPES": "python", "LC_ALL": "C.UTF-8"}


class WorkerPool:
    """At most `size` workers, each started when first needed."""

    def __init__(self, size: int | None = None, limits: WorkerLimits | None = None) -> None:
        self._limits = limits or WorkerLimits()
        self.size = size or min(4, os.cpu_count() or 1)
        self._free = threading.Condition()
        self._busy = 0
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._closed = False

    def compare(
        self,
        gold: str,
        answer: str,
        options: Mapping[str, Any] | None = None,
        cpu_seconds: float = math.inf,
    ) -> Reply:
        """Compare in a free worker; waits for one. A lost worker is replaced once.

        Args:
            gold: LaTeX of the reference.
            answer: LaTeX of the answer.
            options: the fields of `symbolic.Options` that differ from the preset `strict`.
            cpu_seconds: where less than `WorkerLimits.cpu_seconds` is left.
        """
        return self._served(lambda worker: worker.compare(gold, answer, options or {}, cpu_seconds))

    def self_check(self) -> dict[str, str]:
        """Return what a worker could do that it must not: each attempt and how it ended."""
        reply = self._served(Worker.self_check)
        if reply.verdict != "checked":
            return {"worker": f"{reply.verdict}: {reply.detail}"}
        outcome: dict[str, str] = json.loads(reply.detail)
        return outcome

    def _served(self, ask: Callable[[Worker], Reply]) -> Reply:
        with self._slot():
            for attempt in (1, 2):
                try:
                    reply = self._attempt(self._take(), ask)
                except WorkerDiedError as error:
                    reply = Reply("infra", str(error))
                if reply.verdict != "infra" or attempt == 2:
                    break
        return reply

    @contextlib.contextmanager
    def _slot(self) -> Iterator[None]:
        with self._free:
            self._free.wait_for(lambda: self._busy < self.size)
            self._busy += 1
        try:
            yield
        finally:
            with self._free:
                self._busy -= 1
                self._free.notify()

    def resize(self, size: int) -> None:
        """Change how many workers may run; surplus idle ones stay for the next resize."""
        with self._free:
            self.size = size
            self._free.notify_all()

    def _attempt(self, worker: Worker, ask: Callable[[Worker], Reply]) -> Reply:
        try:
            reply = ask(worker)
        except BaseException:  # also KeyboardInterrupt: a reply would be left in the pipe
            self._discard(worker)
            raise
        with self._lock:
            if not self._closed:
                self._idle.append(worker)
                return reply
        worker.kill()
        return reply

    def _take(self) -> Worker:
        with self._lock:
            if self._closed:
                raise WorkerDiedError("the grading workers are closed")
            if self._idle:
                return self._idle.pop()
        worker = Worker(self._limits)
        with self._lock:
            if not self._closed:
                self._all.add(worker)
                return worker
        worker.kill()
        raise WorkerDiedError("the grading workers are closed")

    def _discard(self, worker: Worker) -> None:
        worker.kill()
        with self._lock:
            self._all.discard(worker)

    @property
    def confinement(self) -> str:
        """What confines the workers, as in `rlimits+landlock+seccomp`; empty before the first."""
        return next((worker.confinement for worker in self._all), "")

    @property
    def started(self) -> int:
        """Number of live worker processes."""
        return len(self._all)

    def close(self) -> None:
        """Kill all workers. Safe to call twice; later comparisons report `infra`."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
            self._all = set()
        for worker in idle:
            worker.close()
        for worker in busy:  # its thread releases it: closing a pipe that is read is a race
            worker.interrupt()
