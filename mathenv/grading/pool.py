"""Worker processes for symbolic comparison: started lazily, killable, usable from threads."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

_SCRIPT = Path(__file__).with_name("worker.py")
_START_SECONDS = 120.0
_CLOSE_SECONDS = 2.0


class WorkerDiedError(Exception):
    """The worker process itself is gone or does not answer: not the answer's fault."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the worker says: see `worker.compare` for verdicts, plus timeout, limit, infra."""

    verdict: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Limits of one comparison. CPU seconds decide, so that load does not change verdicts."""

    cpu_seconds: float = 2.0
    wall_seconds: float = 20.0
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
            self._read(0, _START_SECONDS)
        except WorkerDiedError:
            self.kill()
            raise

    def compare(self, gold: str, answer: str) -> Reply:
        """Send one pair and wait. Raises `WorkerDiedError` if no verdict can come any more."""
        job, self._next_id = self._next_id, self._next_id + 1
        limits = self._limits
        message = {
            "id": job,
            "gold": gold,
            "answer": answer,
            "cpu": limits.cpu_seconds,
            "wall": limits.wall_seconds,
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError) as error:
            raise WorkerDiedError(f"cannot reach the grading worker: {error}") from error
        return self._read(job, 2 * limits.wall_seconds)

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
                    return Reply(message["verdict"], message["detail"])
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
        self._slots = threading.Semaphore(size or min(4, os.cpu_count() or 1))
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._all: set[Worker] = set()
        self._closed = False

    def compare(self, gold: str, answer: str) -> Reply:
        """Compare in a free worker; waits for one. A lost worker is replaced once."""
        with self._slots:
            for attempt in (1, 2):
                try:
                    worker = self._take()
                    reply = self._attempt(worker, gold, answer)
                except WorkerDiedError as error:
                    reply = Reply("infra", str(error))
                if reply.verdict != "infra" or attempt == 2:
                    break
        return reply

    def _attempt(self, worker: Worker, gold: str, answer: str) -> Reply:
        try:
            reply = worker.compare(gold, answer)
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
