"""Sandboxed sessions on this Linux machine: the host's side of `runner.py`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import queue
import re
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections import deque
from enum import Enum
from pathlib import Path
from typing import Any

from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter.base import Limits
from mathenv.types import ExecutionResult, ExecutionStatus

TIERS = ("namespaces", "seccomp", "rlimits")  # strongest first
DEFAULT_LIMITS = Limits()
RESTARTED = "[The session was restarted: names defined earlier are gone.]"
UNPRIVILEGED_UID = 65534  # "nobody", used when the host runs as root
START_SECONDS = 60.0  # importing sympy on a busy machine
REQUEST_SECONDS = 30.0
MAX_FRAME = 1 << 20
_RUNNER = Path(__file__).with_name("runner.py")
_CONTROL = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


# ------------------------------------------------------------------------------ text


class OutputBuffer:
    """Head and tail of a byte stream, in bounded memory, with a count of what fell out."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.total = 0
        self._head = b""
        self._tail = b""

    def add(self, data: bytes) -> None:
        self.total += len(data)
        missing = self.keep - len(self._head)
        if missing > 0:
            self._head, data = self._head + data[:missing], data[missing:]
        self._tail = (self._tail + data)[-self.keep :]

    def pieces(self) -> list[str | int]:
        """Text, or text, number of characters left out (counted as bytes), text."""
        gap = self.total - len(self._head) - len(self._tail)
        if not gap:
            return [_clean((self._head + self._tail).decode("utf-8", "replace"))]
        head, tail = (part.decode("utf-8", "replace") for part in (self._head, self._tail))
        return [_clean(head), gap, _clean(tail)]


def _clean(text: str) -> str:
    """Drop terminal sequences, control characters and lone surrogates."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text).encode("utf-8", "backslashreplace").decode()


def clip(pieces: list[str | int], limit: int) -> tuple[str, bool]:
    """Join texts and gaps into at most `limit` characters: head, what was cut, tail."""
    whole = "".join(piece for piece in pieces if isinstance(piece, str)).rstrip("\n")
    gaps = [position for position, piece in enumerate(pieces) if isinstance(piece, int)]
    total = len(whole) + sum(piece for piece in pieces if isinstance(piece, int))
    if not gaps and total <= limit:
        return whole, False
    left = right = whole
    if gaps:
        left = "".join(piece for piece in pieces[: gaps[0]] if isinstance(piece, str))
        right = "".join(piece for piece in pieces[gaps[-1] :] if isinstance(piece, str))
        right = right.rstrip("\n")
    room = max(0, limit - len(f"\n[... {total} characters cut ...]\n"))
    head, tail = left[: room // 2], right[len(right) - min(len(right), room - room // 2) :]
    cut = total - len(head) - len(tail)
    return f"{head}\n[... {cut} characters cut ...]\n{tail}"[:limit], True


# ---------------------------------------------------------------------------- zygote


class _End(Enum):
    """Why no frame came."""

    LATE = "the time is over"
    FLOOD = "too much output"
    GONE = "the process ended"
    GARBAGE = "the channel held something else than a frame"


class _Process:
    """One confined process: its frame channel, output pipe and process descriptor."""

    def __init__(self, zygote: _Zygote, limits: Limits, seed: int) -> None:
        self.zygote = zygote
        self.scratch = zygote.new_scratch()
        self.pid, self.pidfd, self.stopped = 0, -1, False
        self.channel, theirs = socket.socketpair()
        self.output, write_end = os.pipe()
        try:
            request = {"op": "open", "seed": seed, "scratch": self.scratch}
            request["limits"] = dataclasses.asdict(limits)
            reply, fds = zygote.request(request, [theirs.fileno(), write_end])
            self.pid, self.pidfd = int(reply["pid"]), fds[0]
        except BaseException:
            self.kill()
            raise
        finally:
            theirs.close()
            os.close(write_end)
        os.set_blocking(self.output, False)
        self._poll, self._poll_quiet = select.poll(), select.poll()
        for fd in (self.channel.fileno(), self.pidfd):
            self._poll.register(fd, select.POLLIN)
            self._poll_quiet.register(fd, select.POLLIN)
        self._poll.register(self.output, select.POLLIN)
        self._incoming = bytearray()
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        reply = self.receive(time.monotonic() + REQUEST_SECONDS, OutputBuffer(1000), 1 << 20)
        if not isinstance(reply, dict) or "ready" not in reply:
            self.kill()
            detail = reply.get("setup_error") if isinstance(reply, dict) else reply.value
            raise InfraError(f"a session could not be confined: {detail}")

    def send(self, message: dict[str, Any]) -> None:
        """Send one frame. A process that has gone is noticed by `receive`."""
        if self.stopped:
            self.signal(signal.SIGCONT)
            self.stopped = False
        body = json.dumps(message).encode()
        with contextlib.suppress(OSError):
            self.channel.settimeout(REQUEST_SECONDS)
            self.channel.sendall(struct.pack(">I", len(body)) + body)

    def receive(self, deadline: float, output: OutputBuffer, most: int) -> dict[str, Any] | _End:
        """Return the next frame, or why none came by `deadline`, draining output meanwhile."""
        dripping = False
        while True:
            wait = deadline - time.monotonic()
            if wait <= 0:
                return _End.LATE
            # One wake-up per printed line would slow the cell down: let some gather.
            events = self._poll_quiet.poll(2) if dripping else []
            ready = {fd for fd, _ in events or self._poll.poll(math.ceil(wait * 1000))}
            dripping = False
            if self.output in ready:
                dripping = self._read_output(output) < 1 << 14
                if output.total > most:
                    return _End.FLOOD
            if self.channel.fileno() in ready:
                frame = self._read_frame()
                if frame is not None:
                    return frame
            elif self.pidfd in ready:
                return _End.GONE

    def _read_output(self, output: OutputBuffer) -> int:
        """Take what is in the pipe; returns the number of bytes."""
        try:
            data = os.read(self.output, 1 << 20)
        except BlockingIOError:
            return 0
        if data:
            output.add(data)
        else:  # every writer has closed it; poll would report that for ever
            self._poll.unregister(self.output)
        return len(data)

    def drain(self, output: OutputBuffer, most: int) -> None:
        """Take the rest of a finished cell's output. Background threads may add to it."""
        while output.total <= most and self._read_output(output):
            pass

    def _read_frame(self) -> dict[str, Any] | _End | None:
        try:
            data = self.channel.recv(1 << 16, socket.MSG_DONTWAIT)
        except OSError:
            return _End.GONE
        if not data:
            return _End.GONE
        self._incoming += data
        if len(self._incoming) < 4:
            return None
        size = int.from_bytes(self._incoming[:4], "big")
        if size > MAX_FRAME or len(self._incoming) > size + 4:
            return _End.GARBAGE
        if len(self._incoming) < size + 4:
            return None
        body, self._incoming = self._incoming[4:], bytearray()
        try:
            frame = json.loads(body)
        except (ValueError, RecursionError):
            return _End.GARBAGE
        return frame if isinstance(frame, dict) else _End.GARBAGE

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def autopsy(self) -> dict[str, Any]:
        """How the process ended: exit code (negative: signal), CPU seconds, peak bytes."""
        report = self.zygote.request({"op": "end", "pid": self.pid}, [])[0]
        self.pid = 0  # waited for: the number may belong to another process from now on
        return report

    def kill(self) -> None:
        """End the process and release what belongs to it. No locks: also runs in `__del__`."""
        self.channel.close()
        os.close(self.output)
        mine = os.getpid() == self.zygote.host_pid  # not in a forked copy of the host
        if self.pidfd >= 0:
            if mine:
                self.signal(signal.SIGKILL)
                if self.scratch:  # nothing may write there while it is removed
                    select.select([self.pidfd], [], [], 5.0)
            os.close(self.pidfd)
        if self.pid and mine:
            self.zygote.dead.append(self.pid)
        if self.scratch and mine:
            _remove(self.scratch)


def _remove(path: str) -> None:
    """Remove a folder that hostile code may have filled; `shutil.rmtree` recurses and dies."""
    try:
        os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError:
        subprocess.run(["rm", "-rf", "--", path], check=False)


class _Zygote:
    """The running launcher and zygote of one tier. Requests are serialised by a lock."""

    def __init__(self, tier: str) -> None:
        self.tier = tier
        self.host_pid = os.getpid()
        self.dead: deque[int] = deque()  # appended to without the lock
        self._lock = threading.Lock()
        self._count = 0
        self.root = tempfile.mkdtemp(prefix="mathenv-") if tier != "namespaces" else None
        uid = os.getuid() or UNPRIVILEGED_UID
        config = {"tier": tier, "uid": uid, "scratch": self.root, "host_pid": self.host_pid}
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        try:
            self._launcher = self._launch(theirs, config)
        finally:
            theirs.close()
        try:
            self.control.settimeout(START_SECONDS)
            self.hello = self._receive()[0]
        except (OSError, InfraError) as error:
            text = f"{error} {self._stderr()}".strip()
            self.close()
            raise InfraError(text) from None

    def _launch(self, theirs: socket.socket, config: dict[str, Any]) -> subprocess.Popen[bytes]:
        # -s -P with an environment of our own is -I, except that -I would ignore
        # PYTHONHASHSEED and make set order differ from run to run.
        environment = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "TZ": "UTC", "HOME": "/"}
        environment |= {
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
        }
        arguments = [str(theirs.fileno()), json.dumps(config)]
        return subprocess.Popen(
            [sys.executable, "-s", "-P", str(_RUNNER), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=[theirs.fileno()],
            env=environment,
            start_new_session=True,
            cwd="/",
        )

    def _stderr(self) -> str:
        self._errors.seek(0)
        return self._errors.read(4000).decode("utf-8", "replace").strip()

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        packet, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 2)
        if not packet:
            raise InfraError("the interpreter process ended")
        reply: dict[str, Any] = json.loads(packet)
        if "error" in reply:
            raise InfraError(reply["error"])
        return reply, fds

    def request(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Ask the zygote. Raises `InfraError`, after which `alive` may be False."""
        with self._lock:
            dead = [self.dead.popleft() for _ in range(len(self.dead))]
            data = json.dumps({**message, "dead": dead}).encode()
            try:
                self.control.settimeout(REQUEST_SECONDS)
                socket.send_fds(self.control, [data], fds)
                return self._receive()
            except OSError as error:
                self.close()
                raise InfraError(f"the interpreter process does not answer: {error}") from error

    def alive(self) -> bool:
        return os.getpid() == self.host_pid and self._launcher.poll() is None

    def new_scratch(self) -> str | None:
        """Name of a folder the next session will make; None where it mounts its own."""
        if self.root is None:
            return None
        return f"{self.root}/{secrets.token_hex(8)}"

    def close(self) -> None:
        """Kill the launcher; everything below it dies with it. Safe to call twice."""
        if os.getpid() != self.host_pid:  # a forked copy of the host must not end its parent's
            return
        self._launcher.kill()
        self._launcher.wait()
        self.control.close()
        self._errors.close()
        if self.root is not None:
            _remove(self.root)


# ---------------------------------------------------------------------- public classes


class LocalSession:
    """A session of `LocalInterpreter`. Its process starts with the first cell."""

    def __init__(self, interpreter: LocalInterpreter, seed: int) -> None:
        self._interpreter, self._seed = interpreter, seed
        self._process: _Process | None = None
        self._lost = self._closed = False

    def run(self, code: str) -> ExecutionResult:
        """Run one cell. Raises `ConfigError` only if the session or interpreter is closed."""
        started = time.monotonic()
        if self._closed:
            raise ConfigError("the session is closed: open a new one with Interpreter.session()")
        status, pieces = self._run(code)
        lost = self._process is None
        limit = self._interpreter.limits.output_chars
        notice = RESTARTED if self._lost else ""
        output, truncated = clip(pieces, max(0, limit - len(notice) - 1) if notice else limit)
        self._lost = lost
        return ExecutionResult(
            status,
            "\n".join(part for part in (notice, output) if part),
            truncated=truncated,
            session_lost=lost,
            seconds=time.monotonic() - started,
        )

    def close(self) -> None:
        """End the process. Safe to call twice."""
        self._closed = True
        self._discard()

    def __enter__(self) -> LocalSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._discard()

    def _discard(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            self._interpreter._release_slot()

    def _run(self, code: str) -> tuple[ExecutionStatus, list[str | int]]:
        if len(code) > MAX_FRAME // 8:
            return ExecutionStatus.ERROR, [f"ValueError: the cell has {len(code)} characters"]
        output = OutputBuffer(4 * self._interpreter.limits.output_chars)
        try:
            if self._process is None:
                self._process = self._interpreter._start_process(self._seed)
            status, report = self._run_in(self._process, code, output)
        except InfraError as error:
            self._discard()
            return ExecutionStatus.INFRA, [f"InfraError: {error}"]
        except BaseException:  # such as Ctrl-C in the host: the cell may still run
            self._discard()
            raise
        shown = output.pieces()
        newline = [] if not isinstance(shown[-1], str) or shown[-1][-1:] in ("", "\n") else ["\n"]
        return status, [*shown, *(newline if report else []), *report]

    def _run_in(
        self, process: _Process, code: str, output: OutputBuffer
    ) -> tuple[ExecutionStatus, list[str | int]]:
        limits = self._interpreter.limits
        nonce, interrupted = secrets.token_hex(8), False
        process.send({"nonce": nonce, "code": code})
        reply = process.receive(time.monotonic() + limits.cell_seconds, output, limits.output_bytes)
        if reply is _End.LATE:
            interrupted = True
            process.signal(signal.SIGINT)
            grace = time.monotonic() + limits.grace_seconds
            reply = process.receive(grace, output, limits.output_bytes)
        if isinstance(reply, dict) and reply.get("nonce") == nonce:
            process.drain(output, limits.output_bytes)
            return self._finished(process, reply, interrupted)
        verdict = self._verdict(process, _End.GARBAGE if isinstance(reply, dict) else reply)
        self._discard()
        return verdict

    def _finished(
        self, process: _Process, reply: dict[str, Any], interrupted: bool
    ) -> tuple[ExecutionStatus, list[str | int]]:
        status, text, omitted = reply.get("status"), reply.get("text"), reply.get("omitted")
        if status not in ("ok", "error", "memory") or not isinstance(text, str):
            status, text = "died", "SessionDied: the session sent an unreadable reply"
        if status == "died" or reply.get("lost"):
            self._discard()
        elif reply.get("threads") != 1:  # threads of this cell must not use CPU between cells
            process.signal(signal.SIGSTOP)
            process.stopped = True
        if interrupted:
            seconds = self._interpreter.limits.cell_seconds
            names = "kept" if self._process else "lost"
            text = f"TimeoutError: the cell was interrupted after {seconds:g} s; names are {names}"
            return ExecutionStatus.TIMEOUT, [text]
        half = len(text) // 2
        if isinstance(omitted, int) and omitted > 0:
            return ExecutionStatus(status), [_clean(text[:half]), omitted, _clean(text[half:])]
        return ExecutionStatus(status), [_clean(text)]

    def _verdict(self, process: _Process, end: _End) -> tuple[ExecutionStatus, list[str | int]]:
        """Name what ended a session that did not answer."""
        limits = self._interpreter.limits
        if end is _End.LATE:
            text = f"TimeoutError: the cell ran longer than {limits.cell_seconds:g} s"
            return ExecutionStatus.TIMEOUT, [f"{text} and its session was killed"]
        if end is _End.FLOOD:
            text = f"OutputLimitError: more than {limits.output_bytes} bytes of output"
            return ExecutionStatus.OUTPUT_LIMIT, [f"{text}; the session was killed"]
        if end is _End.GARBAGE:
            return ExecutionStatus.DIED, ["SessionDied: the cell wrote to the control channel"]
        return _cause_of_death(process.autopsy(), limits)


def _cause_of_death(
    report: dict[str, Any], limits: Limits
) -> tuple[ExecutionStatus, list[str | int]]:
    code = int(report["code"])
    if code == -signal.SIGKILL:  # a cell cannot send this: the kernel or an operator did
        if report["cpu"] >= 0.9 * limits.session_cpu_seconds:
            text = (
                f"TimeoutError: the session used its {limits.session_cpu_seconds:g} s of CPU time"
            )
            return ExecutionStatus.TIMEOUT, [text]
        if report["rss"] >= limits.memory_bytes / 2:
            return ExecutionStatus.MEMORY, ["MemoryError: the session was killed, out of memory"]
        raise InfraError("the session was killed from outside")
    if code == -signal.SIGSYS:
        return ExecutionStatus.BLOCKED, ["SessionDied: forbidden system call"]
    how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
    return ExecutionStatus.DIED, [f"SessionDied: the Python process ended {how}"]


class LocalInterpreter:
    """Sessions on this Linux machine, each a confined fork of one warm process.

    Takes the strongest tier of `TIERS` that works here and refuses to go below `min_tier`.
    At most `max_sessions` processes live at once; a session that needs one more waits.

    Raises `InfraError` if no allowed tier works, `ConfigError` for an unknown `min_tier`.
    """

    def __init__(
        self,
        limits: Limits = DEFAULT_LIMITS,
        *,
        max_sessions: int | None = None,
        min_tier: str | None = None,
    ) -> None:
        if min_tier is not None and min_tier not in TIERS:
            raise ConfigError(f"min_tier={min_tier!r}: choose one of {', '.join(TIERS)}")
        if max_sessions is not None and max_sessions < 1:
            raise ConfigError(f"max_sessions={max_sessions}: must be at least 1, or None")
        if sys.platform != "linux":
            raise InfraError("LocalInterpreter needs Linux: use the Docker interpreter here")
        self.limits = limits
        self._lock = threading.Lock()
        self._closed = False
        # A queue, not a semaphore: its `put` may run inside a finaliser.
        self._slots: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._bounded = max_sessions is not None
        for _ in range(max_sessions or 0):
            self._slots.put(None)
        allowed = TIERS[: TIERS.index(min_tier) + 1] if min_tier else TIERS
        self._zygotes = [_strongest(allowed, limits)]
        self._finalizer = weakref.finalize(self, _close_all, self._zygotes)

    @property
    def description(self) -> dict[str, str]:
        """What isolates the code: host, tier, versions, kernel, Landlock version."""
        zygote = self._zygotes[-1]
        return {
            "host": "local",
            "tier": zygote.tier,
            "landlock": str(zygote.hello["landlock"]),
            "kernel": platform.release(),
            "machine": platform.machine(),
            **zygote.hello["versions"],
        }

    def session(self, *, seed: int = 0) -> LocalSession:
        """A new empty session; `seed` sets `random`, `numpy.random` and sympy's generator."""
        return LocalSession(self, seed)

    def close(self) -> None:
        """End all sessions and helper processes. Safe to call twice."""
        self._closed = True
        self._finalizer()

    def __enter__(self) -> LocalInterpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_process(self, seed: int) -> _Process:
        if self._closed:
            raise ConfigError("the interpreter is closed: make a new one")
        if self._bounded:
            try:
                self._slots.get(timeout=START_SECONDS)
            except queue.Empty:
                raise InfraError("no free session: raise max_sessions or close some") from None
        try:
            return _Process(self._live_zygote(), self.limits, seed)
        except BaseException:
            self._release_slot()
            raise

    def _release_slot(self) -> None:
        if self._bounded:
            self._slots.put(None)

    def _live_zygote(self) -> _Zygote:
        """The zygote, or a new one of the same tier if it died or the host has forked."""
        with self._lock:
            if not self._zygotes[-1].alive():
                old = self._zygotes.pop()
                old.close()
                self._zygotes.append(_Zygote(old.tier))
            return self._zygotes[-1]


def _strongest(tiers: tuple[str, ...], limits: Limits) -> _Zygote:
    """Start the first tier in which a session really runs; the attempt is the test."""
    failures = []
    for tier in tiers:
        try:
            zygote = _Zygote(tier)
        except InfraError as error:
            failures.append(f"{tier}: {error}")
            continue
        try:
            _try_cell(zygote, limits)
        except InfraError as error:
            zygote.close()
            failures.append(f"{tier}: {error}")
            continue
        if tier == "rlimits":
            warnings.warn(
                "sandbox tier 'rlimits': model-written code can read this user's files. "
                f"Use Docker or a kernel with Landlock. ({'; '.join(failures)})",
                RuntimeWarning,
                stacklevel=3,
            )
        return zygote
    raise InfraError(
        "no sandbox of the required strength works here; lower min_tier or use the Docker "
        f"interpreter. Tried {'; '.join(failures)}"
    )


def _try_cell(zygote: _Zygote, limits: Limits) -> None:
    process = _Process(zygote, limits, 0)
    try:
        process.send({"nonce": "", "code": "1 + 1"})
        deadline = time.monotonic() + REQUEST_SECONDS
        reply = process.receive(deadline, OutputBuffer(1000), 1 << 20)
    finally:
        process.kill()
    if not isinstance(reply, dict) or reply.get("text") != "2":
        raise InfraError(f"1 + 1 gave {reply}")


def _close_all(zygotes: list[_Zygote]) -> None:
    for zygote in zygotes:
        zygote.close()
