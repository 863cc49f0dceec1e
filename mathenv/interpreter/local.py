"""Sandboxed sessions on this Linux machine."""

from __future__ import annotations

import contextlib
import itertools
import platform
import queue
import secrets
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mathenv.errors import ConfigError, InfraError, whole
from mathenv.interpreter.base import RESTARTED, ForkError, HostLimitError, Limits
from mathenv.interpreter.launcher import (
    REQUEST_SECONDS,
    START_SECONDS,
    Launcher,
    NoSpaceError,
    SlowStartError,
    Zygote,
    patience,
    refuses_at_limit,
    too_slow,
)
from mathenv.interpreter.output import OutputBuffer, clean, clip
from mathenv.interpreter.packages import View, describe, make_view
from mathenv.interpreter.process import MAX_FRAME, CellDeadline, Deadline, End, Process
from mathenv.types import ExecutionResult, ExecutionStatus

TIERS = ("namespaces", "seccomp", "rlimits")  # strongest first
DEFAULT_LIMITS = Limits()
ORPHAN_SECONDS = 0.1  # between the ends of a session and of its zygote, where one kills the other


class LocalSession:
    """A session of `LocalInterpreter`. Its process starts with the first cell."""

    def __init__(self, interpreter: LocalInterpreter, seed: int) -> None:
        self._interpreter, self._seed = interpreter, seed
        self._process: Process | None = None
        self._lost = self._restarted = self._closed = False

    def run(self, code: str) -> ExecutionResult:
        """Run one cell. See `Session.run` for what it may raise.

        Returns at the latest some seconds after the time and the grace of the cell are over,
        whatever its code does.
        """
        started = time.monotonic()
        if self._closed:
            raise ConfigError("the session is closed: open a new one with Interpreter.session()")
        status, pieces = self._run(code)
        limit = self._interpreter.limits.output_chars
        notice = RESTARTED if self._restarted else ""
        output, truncated = clip(pieces, max(0, limit - len(notice) - 1) if notice else limit)
        return ExecutionResult(
            status,
            "\n".join(part for part in (notice, output) if part),
            truncated=truncated,
            session_lost=self._lost,
            seconds=time.monotonic() - started,
        )

    def fork(self) -> LocalSession:
        """Copy the live session. See `Session.fork`; also raises as it does."""
        if self._closed:
            raise ConfigError("the session is closed: open a new one with Interpreter.session()")
        copy = LocalSession(self._interpreter, self._seed)
        copy._lost = self._lost
        if self._process is not None:
            try:
                copy._process = self._interpreter._copy_process(self._process)
            except (ForkError, InfraError):
                if self._process.ended(0):
                    self._discard()
                raise
            except BaseException:  # such as Ctrl-C in the host: it may still divide
                self._discard()
                raise
        return copy

    def close(self) -> None:
        """End the process. Safe to call twice."""
        self._closed = True
        self._discard()

    def __deepcopy__(self, memo: object) -> LocalSession:
        """A copy of the session is a fork. Raises as `fork` does."""
        return self.fork()

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "a session that runs cannot be pickled: end the episode first, or branch from it "
            "with copy.deepcopy or Session.fork()"
        )

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
            self._lost = True
            process.kill()
            self._interpreter._release_slot()

    def _run(self, code: str) -> tuple[ExecutionStatus, list[str | int]]:
        self._restarted = False
        if len(code) > MAX_FRAME // 8:
            return ExecutionStatus.ERROR, [f"ValueError: the cell has {len(code)} characters"]
        output = OutputBuffer(4 * self._interpreter.limits.output_chars)
        try:
            if self._process is None:
                self._process = self._interpreter._start_process(self._seed)
                self._restarted, self._lost = self._lost, False
            elif not self._process.zygote.alive():
                raise InfraError("the interpreter process has ended")
            status, report = self._run_in(self._process, code, output)
        except HostLimitError:
            self._discard()
            raise
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
        self, process: Process, code: str, output: OutputBuffer
    ) -> tuple[ExecutionStatus, list[str | int]]:
        limits = self._interpreter.limits
        nonce, interrupted = secrets.token_hex(8), False
        deadline = CellDeadline(process, limits.cell_seconds)
        reply: dict[str, Any] | End = End.LATE
        if process.send({"nonce": nonce, "code": code}, deadline):
            reply = process.receive(deadline, output, limits.output_bytes)
            if reply is End.LATE:
                interrupted = True
                process.signal(signal.SIGINT)
                grace = CellDeadline(process, limits.grace_seconds)
                reply = process.receive(grace, output, limits.output_bytes)
        if isinstance(reply, dict) and reply.get("nonce") == nonce:
            process.rest()
            process.drain(output, limits.output_bytes)
            return self._finished(reply, interrupted)
        verdict = self._verdict(process, End.GARBAGE if isinstance(reply, dict) else reply)
        self._discard()
        return verdict

    def _finished(
        self, reply: dict[str, Any], interrupted: bool
    ) -> tuple[ExecutionStatus, list[str | int]]:
        status, text, omitted = reply.get("status"), reply.get("text"), reply.get("omitted")
        # A text is no longer than the memory; a number of 4,301 digits could not be printed.
        sound = type(omitted) is int and 0 <= omitted <= self._interpreter.limits.memory_bytes
        if status not in ("ok", "error", "memory") or not isinstance(text, str) or not sound:
            status, text, omitted = "died", "SessionDied: the session sent an unreadable reply", 0
        if status == "died" or reply.get("lost"):
            self._discard()
        if interrupted:
            seconds = self._interpreter.limits.cell_seconds
            names = "kept" if self._process else "lost"
            text = f"TimeoutError: the cell was interrupted after {seconds:g} s; names are {names}"
            return ExecutionStatus.TIMEOUT, [text]
        half = len(text) // 2
        if omitted:
            return ExecutionStatus(status), [clean(text[:half]), omitted, clean(text[half:])]
        return ExecutionStatus(status), [clean(text)]

    def _verdict(self, process: Process, end: End) -> tuple[ExecutionStatus, list[str | int]]:
        """Name what ended a session that did not answer.

        Raises `InfraError` only where our own processes have failed, never for what became of
        the session's: a cell that can arrange an end that looks like none of its own would drop
        out of what is counted. So a session that an operator or the kernel, out of memory,
        has killed counts as `died`, unless its own use of memory or CPU time explains it.
        """
        limits = self._interpreter.limits
        if end is End.LATE:
            text = f"TimeoutError: the cell ran longer than {limits.cell_seconds:g} s"
            return ExecutionStatus.TIMEOUT, [f"{text} and its session was killed"]
        if end is End.FLOOD:
            text = f"OutputLimitError: more than {limits.output_bytes} bytes of output"
            return ExecutionStatus.OUTPUT_LIMIT, [f"{text}; the session was killed"]
        if end is End.GARBAGE or not process.ended(1.0):
            return ExecutionStatus.DIED, [
                "SessionDied: the cell used or closed the control channel"
            ]
        report = process.autopsy()
        if report["code"] == -signal.SIGKILL and process.zygote.ends(ORPHAN_SECONDS):
            raise InfraError("the interpreter process has ended, and the session with it")
        return _cause_of_death(report, limits)


def _cause_of_death(
    report: dict[str, Any], limits: Limits
) -> tuple[ExecutionStatus, list[str | int]]:
    code = int(report["code"])
    # No code can send SIGXCPU: only the kernel does, at the soft limit. Code that ignores it is
    # killed at the hard one. Half, because the kernel enforces the limit by counting ticks, and
    # reports what it has measured.
    killed = code == -signal.SIGKILL
    if code == -signal.SIGXCPU or (killed and report["cpu"] >= limits.session_cpu_seconds / 2):
        text = f"TimeoutError: the session used its {limits.session_cpu_seconds:g} s of CPU time"
        return ExecutionStatus.TIMEOUT, [text]
    if killed and report["rss"] >= limits.memory_bytes / 2:
        return ExecutionStatus.MEMORY, ["MemoryError: the session was killed, out of memory"]
    if code == -signal.SIGSYS:
        return ExecutionStatus.BLOCKED, ["SessionDied: forbidden system call"]
    how = f"with exit code {code}" if code >= 0 else f"by {_name_of(-code)}"
    return ExecutionStatus.DIED, [f"SessionDied: the Python process ended {how}"]


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have no name
        return f"signal {number}"


class LocalInterpreter:
    """Sessions on this Linux machine, each a confined fork of one warm process.

    Takes the strongest tier of `TIERS` that works here and refuses to go below `min_tier`;
    `tier` names one, to test it.
    At most `max_sessions` processes live at once; a session that needs one more waits.
    The sessions are shared out among `zygotes`: if one dies, only its own sessions do. Each
    keeps `spares` sessions ready for the next calls, once it has been asked for one.
    Sessions can import sympy, numpy, scipy, mpmath, pandas and matplotlib, as far as these are
    installed, and `packages`. The modules `preload` are imported before there are sessions.
    `numpy_legacy="1.25"` lets NumPy print scalars as its versions 1 did: `3.0`, not
    `np.float64(3.0)`.

    Raises `InfraError` if no allowed tier works, `ConfigError` for a wrong argument.
    """

    def __init__(
        self,
        limits: Limits = DEFAULT_LIMITS,
        *,
        max_sessions: int | None = None,
        min_tier: str | None = None,
        tier: str | None = None,
        zygotes: int = 2,
        spares: int = 1,
        packages: Sequence[str] = (),
        preload: Sequence[str] = (),
        numpy_legacy: str | None = None,
    ) -> None:
        for name, value in (("min_tier", min_tier), ("tier", tier)):
            if value is not None and value not in TIERS:
                raise ConfigError(f"{name}={value!r}: choose one of {', '.join(TIERS)}")
        if tier and min_tier and TIERS.index(tier) > TIERS.index(min_tier):
            raise ConfigError(f"tier={tier!r} is weaker than min_tier={min_tier!r}")
        if max_sessions is not None:
            max_sessions = whole("max_sessions", max_sessions, 1)
        zygotes, spares = whole("zygotes", zygotes, 1), whole("spares", spares, 0)
        if sys.platform != "linux":
            raise InfraError("LocalInterpreter needs Linux: use the Docker interpreter here")
        with refuses_at_limit("no sandbox can be started"):  # it opens files too
            view = make_view(packages, preload, numpy_legacy)
        self._described = describe(packages, preload, numpy_legacy)
        self.limits, self._spares = limits, spares
        self._lock = threading.Lock()
        self._closed = False
        # A queue, not a semaphore: its `put` may run inside a finaliser.
        self._slots: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._bounded = max_sessions is not None
        for _ in range(max_sessions or 0):
            self._slots.put(None)
        allowed = TIERS[: TIERS.index(min_tier) + 1] if min_tier else TIERS
        allowed = (tier,) if tier else allowed
        # Lists that the finaliser shares: what they hold may be replaced.
        self._launchers = [_strongest(allowed, limits, view)]
        self._zygotes: list[Zygote | None] = [None] * zygotes
        self._turn = itertools.cycle(range(zygotes))
        self._finalizer = weakref.finalize(self, _close_all, self._launchers, self._zygotes)

    @property
    def description(self) -> dict[str, str]:
        """What isolates the code: host, tier, versions, kernel, Landlock version."""
        launcher = self._launchers[-1]
        return {
            "host": "local",
            "tier": launcher.tier,
            "landlock": str(launcher.hello["landlock"]),
            "kernel": platform.release(),
            "machine": platform.machine(),
            **launcher.hello["versions"],
            **self._described,
        }

    def session(self, *, seed: int = 0) -> LocalSession:
        """A new empty session; `seed` sets `random`, `numpy.random` and sympy's generator."""
        return LocalSession(self, whole("seed", seed))

    @property
    def closed(self) -> bool:
        """Whether `close` was called: it takes no further cells."""
        return self._closed

    def __copy__(self) -> LocalInterpreter:
        """Processes have no copies: whoever copies what uses an interpreter shares it."""
        return self

    def __deepcopy__(self, memo: object) -> LocalInterpreter:
        return self

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "an interpreter cannot be pickled: its processes are this one's. Name it, as in "
            "interpreter='local', and each process starts its own"
        )

    def close(self) -> None:
        """End all sessions and helper processes. Safe to call twice."""
        self._closed = True
        self._finalizer()

    def __enter__(self) -> LocalInterpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_process(self, seed: int) -> Process:
        def start() -> Process:
            # A helper or the spare session may have been killed: nothing has run yet, so the start
            # is tried again. Of helpers that were killed one after the other some still answer.
            for last in (False, False, True):
                zygote = None
                try:
                    zygote = self._live_zygote()
                    return Process.start(zygote, self.limits, seed, self._spares)
                except NoSpaceError:  # a session that has ended may have filled the disk
                    if last or not zygote or not zygote.launcher.remove_more(REQUEST_SECONDS):
                        raise
                except (SlowStartError, HostLimitError):  # would be no better at once
                    raise
                except InfraError:
                    if last:
                        raise
                    if zygote is not None:
                        zygote.ends(ORPHAN_SECONDS)
            raise AssertionError("the last try returns or raises")

        return self._in_slot(start)

    def _copy_process(self, process: Process) -> Process:
        return self._in_slot(lambda: process.fork(self.limits))

    def _in_slot(self, make: Callable[[], Process]) -> Process:
        """Make a process when fewer than `max_sessions` live."""
        if self._closed:
            raise ConfigError("the interpreter is closed: make a new one")
        if self._bounded:
            try:
                self._slots.get(timeout=START_SECONDS)
            except queue.Empty:
                raise InfraError("no free session: raise max_sessions or close some") from None
        try:
            return make()
        except BaseException:
            self._release_slot()
            raise

    def _release_slot(self) -> None:
        if self._bounded:
            self._slots.put(None)

    def _live_zygote(self) -> Zygote:
        """The next zygote in turn, made anew if it died or the host has forked."""
        with self._lock:
            if not self._launchers[-1].alive():
                old = self._launchers.pop()
                old.close()
                self._launchers.append(Launcher(old.tier, old.view))
            number = next(self._turn)
            zygote = self._zygotes[number]
            if zygote is None or not zygote.alive():
                if zygote is not None:
                    zygote.close()
                zygote = self._zygotes[number] = self._launchers[-1].new_zygote()
            return zygote


def _strongest(tiers: tuple[str, ...], limits: Limits, view: View) -> Launcher:
    """Start the first tier in which a session really runs; the attempt is the test.

    One that is too slow is an error, and so is a limit of this process: a busy machine must not
    get a weaker sandbox.
    """
    failures = []
    for tier in tiers:
        try:
            launcher = Launcher(tier, view)
        except (SlowStartError, HostLimitError):
            raise
        except InfraError as error:
            failures.append(f"{tier}: {error}")
            continue
        try:
            _try_cell(launcher, limits)
        except InfraError as error:
            launcher.close()
            if isinstance(error, SlowStartError | HostLimitError):
                raise
            failures.append(f"{tier}: {error}")
            continue
        if tier == "rlimits":
            warnings.warn(
                "sandbox tier 'rlimits': model-written code can read this user's files, the "
                "answers of problem sets among them. "
                f"Use Docker or a kernel with Landlock. {'; '.join(failures)}".strip(),
                RuntimeWarning,
                stacklevel=3,
            )
        return launcher
    raise InfraError(
        "no sandbox of the required strength works here; lower min_tier or use the Docker "
        f"interpreter. Tried {'; '.join(failures)}"
    )


def _try_cell(launcher: Launcher, limits: Limits) -> None:
    zygote = launcher.new_zygote()
    try:
        process = Process.start(zygote, limits, 0)
        try:
            seconds = patience(REQUEST_SECONDS)
            deadline = Deadline(seconds)
            process.send({"nonce": "", "code": "1 + 1"}, deadline)
            reply = process.receive(deadline, OutputBuffer(1000), 1 << 20)
        finally:
            process.kill()
    finally:
        zygote.close()
    if reply is End.LATE:
        raise SlowStartError(too_slow("the sandbox's first cell, 1 + 1, was not done", seconds))
    if not isinstance(reply, dict) or reply.get("text") != "2":
        raise InfraError(f"1 + 1 gave {reply}")


def _close_all(launchers: list[Launcher], zygotes: list[Zygote | None]) -> None:
    for zygote in zygotes:
        if zygote is not None:
            zygote.close()
    for launcher in launchers:
        launcher.close()
