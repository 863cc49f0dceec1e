"""The host's handle on a confined process: its pipes, its copies, its folders."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import secrets
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from functools import partial
from typing import Any

from mathenv.errors import InfraError, MathEnvError
from mathenv.interpreter.base import WALL_FACTOR, ForkError, HostLimitError, Limits
from mathenv.interpreter.launcher import (
    REQUEST_SECONDS,
    SlowStartError,
    Zygote,
    host_limit,
    patience,
    refuses_at_limit,
    too_slow,
)
from mathenv.interpreter.output import OutputBuffer, clean

FORK_SECONDS = 15.0
THREAD_SECONDS = 0.5  # for threads that a cell has joined to have left the kernel as well
MAX_FRAME = 1 << 20
_FIRST_LOOK = 0.05  # most cells are over by then, and need no look at the kernel's figures
_LONGEST_WAIT = 3600.0  # of one call: `poll` counts milliseconds in an int


class End(Enum):
    """Why no frame came."""

    LATE = "the time is over"
    FLOOD = "too much output"
    GONE = "the process ended"
    GARBAGE = "the channel held something else than a frame"


class Deadline:
    """A moment on this machine's clock."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until it is worth asking again; 0 or less when the time is over."""
        return self._end - time.monotonic()


class CellDeadline(Deadline):
    """When a cell has had its seconds, not counting those in which it waited for a processor.

    The kernel counts the waiting (/proc/PID/task/*/schedstat), so a cell cannot lie about it.
    Its threads may wait for each other, which is its own affair: it is charged at least for
    the CPU time it used, up to the wall time. Where /proc shows nothing, wall time counts.
    """

    def __init__(self, process: Process, seconds: float) -> None:
        super().__init__(seconds * WALL_FACTOR)
        self._process, self._seconds = process, seconds
        self._start = time.monotonic()
        self._before: tuple[float, float] | None = None

    def left(self) -> float:
        passed = time.monotonic() - self._start
        if self._before is None:
            first = min(_FIRST_LOOK, self._seconds / 2)
            if passed < first:
                return first - passed
            self._before = self._process.times()
        if passed < self._seconds:
            return self._seconds - passed
        used, waited = (
            now - then for now, then in zip(self._process.times(), self._before, strict=True)
        )
        charged = max(passed - max(0.0, waited), min(passed, used))
        return min(self._seconds - charged, super().left())


class Folders:
    """The folder on disk that a session and its copies share; gone with the last of them."""

    def __init__(self, root: str | None) -> None:
        self.root = root
        self.users: list[None] = []  # a list, because `pop` needs no lock

    def release(self, home: str | None) -> str | None:
        """Let go of the files of one user: the folder that nobody needs from now on."""
        self.users.pop()
        return home if self.users else self.root


class Process:
    """One confined process: its frame channel, output pipe and process descriptor."""

    def __init__(self, zygote: Zygote, folders: Folders, channel: socket.socket, output: int):
        self.zygote, self.folders, self.channel, self.output = zygote, folders, channel, output
        self.pid, self.pidfd = 0, -1
        self._rests = False
        self._host_pid = 0  # as /proc here names it; 0 until somebody asks
        self.home = f"{folders.root}/home" if folders.root else None
        self._incoming = bytearray()
        folders.users.append(None)
        os.set_blocking(output, False)
        channel.setblocking(False)

    @classmethod
    def start(cls, zygote: Zygote, limits: Limits, seed: int, spares: int = 0) -> Process:
        """A new session; the zygote then prepares `spares` for the next calls.

        Raises `InfraError`.
        """
        request = {"op": "open", "limits": dataclasses.asdict(limits), "spares": spares}
        answer, fds = zygote.request(request, [])
        if len(fds) != 3:
            zygote.refuse(answer["pid"], fds)
            if answer["scratch"]:
                zygote.launcher.remove(answer["scratch"])
            raise host_limit("no session can be started")
        pidfd, channel, output = fds
        folders = Folders(answer["scratch"])
        process = cls(zygote, folders, socket.socket(fileno=channel), output)
        try:
            process._attach(answer["pid"], pidfd)
            process._wait_until_ready()
            process.send({"seed": seed}, Deadline(REQUEST_SECONDS))
        except BaseException:
            process.kill()
            raise
        return process

    def fork(self, limits: Limits) -> Process:
        """A copy of the session that this process runs.

        Raises `ForkError`, after which this process may have been killed, or `InfraError`.
        """
        self.resume()  # a thread that is about to end must be able to
        try:
            return self._fork(limits)
        finally:
            self.rest()

    def _fork(self, limits: Limits) -> Process:
        if self._other_threads():
            raise ForkError("threads still run in the session: join them in a cell first")
        with _pipes() as (channel, output, theirs):
            copy = Process(self.zygote, self.folders, channel, output)
            copy.home, hidden = None, -1
            try:
                with self.zygote.forking:  # so that there is at most one process yet unknown
                    request = {"op": "allow", "pid": self.pid, "file_bytes": limits.file_bytes}
                    answer, fds = self.zygote.request(request, [])
                    copy.home = answer["home"] if self.folders.root else None
                    (hidden,) = fds or (-1,)
                    problem = self._split(copy, theirs)
                if problem:
                    raise ForkError(f"the session cannot be copied: {problem}")
                if hidden < 0:
                    raise host_limit("no session can be copied")
                copy.send({"home": answer["home"]}, Deadline(FORK_SECONDS), [hidden])
                copy._wait_until_ready(ForkError if self.zygote.alive() else InfraError)
                copy.rest()
            except BaseException:
                copy.kill()
                raise
            finally:
                if hidden >= 0:
                    os.close(hidden)
        return copy

    def _split(self, copy: Process, theirs: list[int]) -> str:
        """Make the process divide and take charge of the copy; what went wrong, or ""."""
        nonce = secrets.token_hex(8)
        deadline = Deadline(FORK_SECONDS)
        self.send({"nonce": nonce}, deadline, theirs)
        reply = self.receive(deadline, OutputBuffer(0), 1 << 20)
        if isinstance(reply, End) or reply.get("nonce") != nonce:
            reply = {"error": "it did not answer as it should, and was killed"}
            self.signal(signal.SIGKILL)
            self.ended(FORK_SECONDS)
        pid = reply.get("pid")
        possible = type(pid) is int and 0 < pid < 1 << 22  # the kernel's PID_MAX_LIMIT
        adopt = {"op": "adopt", "pid": self.pid, "copy": pid if possible else 0}
        try:
            answer, fds = self.zygote.request(adopt, [])
            if not fds:
                self.zygote.refuse(answer["pid"], [])
                raise host_limit("no session can be copied")
            copy._attach(answer["pid"], *fds)
        except InfraError as error:
            if isinstance(error, HostLimitError) or not self.zygote.alive():
                raise
            said = reply.get("error")
            return clean(said if isinstance(said, str) else str(error))[:500]
        return ""

    def _attach(self, pid: int, pidfd: int) -> None:
        self.pid, self.pidfd = pid, pidfd
        self._poll, self._poll_quiet = select.poll(), select.poll()
        for fd in (self.channel.fileno(), self.pidfd):
            self._poll.register(fd, select.POLLIN)
            self._poll_quiet.register(fd, select.POLLIN)
        self._poll.register(self.output, select.POLLIN)

    def _wait_until_ready(self, failure: type[MathEnvError] = InfraError) -> None:
        seconds = patience(REQUEST_SECONDS)
        reply = self.receive(Deadline(seconds), OutputBuffer(1000), 1 << 20)
        if isinstance(reply, dict) and "ready" in reply:
            return
        said = reply.get("setup_error") if isinstance(reply, dict) else reply.value
        detail = clean(said)[:500] if isinstance(said, str) else "an unreadable reply"
        if reply is End.LATE and failure is InfraError:
            failure = SlowStartError
            detail = too_slow("it was not ready", seconds)
        raise failure(f"the session could not be set up: {detail}")

    def rest(self) -> None:
        """Stop the process until something is sent to it.

        Whatever a cell has left behind (threads of any kind, or the main one where it does not
        wait for the next cell) uses no CPU time meanwhile.
        """
        self.signal(signal.SIGSTOP)
        self._rests = True

    def resume(self) -> None:
        """Let it run again."""
        if self._rests:
            self.signal(signal.SIGCONT)
            self._rests = False

    def send(self, message: dict[str, Any], deadline: Deadline, fds: Sequence[int] = ()) -> bool:
        """Send one frame, then descriptors, to a process that may not take them.

        Returns False if `deadline` passed first, with the frame sent in part. A process that
        has gone is noticed by `receive`.
        """
        self.resume()
        body = json.dumps(message).encode()
        data = memoryview(struct.pack(">I", len(body)) + body)
        try:
            while data:
                sent = self._when_writable(partial(self.channel.send, data), deadline)
                if not sent:
                    return False
                data = data[sent:]
            if fds:
                fill = [b"\0"]
                sent = self._when_writable(
                    lambda: socket.send_fds(self.channel, fill, fds), deadline
                )
                return bool(sent)
        except OSError:  # it has gone
            pass
        return True

    def _when_writable(self, send: Callable[[], int], deadline: Deadline) -> int:
        """The number of bytes sent; 0 if none could be until `deadline`."""
        while True:
            with contextlib.suppress(BlockingIOError):
                return send()
            poll = select.poll()
            poll.register(self.channel, select.POLLOUT)
            if not poll.poll(_milliseconds(deadline.left())) and deadline.left() <= 0:
                return 0

    def receive(self, deadline: Deadline, output: OutputBuffer, most: int) -> dict[str, Any] | End:
        """Return the next frame, or why none came by `deadline`, draining output meanwhile."""
        dripping = False
        while True:
            wait = deadline.left()
            # One wake-up per printed line would slow the cell down: let some gather.
            events = self._poll_quiet.poll(2) if dripping and wait > 0 else []
            ready = {fd for fd, _ in events or self._poll.poll(_milliseconds(wait))}
            dripping = False
            if self.output in ready:
                dripping = self._read_output(output) < 1 << 14
                if output.total > most:
                    return End.FLOOD
            if self.channel.fileno() in ready:
                frame = self._read_frame()
                if frame is not None:
                    return frame
            elif self.pidfd in ready:
                return End.GONE
            if wait <= 0:  # after a last look: this process may have been late as well
                return End.LATE

    def _read_output(self, output: OutputBuffer) -> int:
        """Take what is in the pipe; returns the number of bytes."""
        try:
            data = os.read(self.output, 1 << 20)
        except BlockingIOError:
            return 0
        if data:
            output.add(data)
        else:  # every writer has closed it; poll would report that for ever
            with contextlib.suppress(KeyError):  # taken off already: `drain` looks again
                self._poll.unregister(self.output)
        return len(data)

    def drain(self, output: OutputBuffer, most: int) -> None:
        """Take what a finished cell has left in the pipe.

        No more than a pipe holds: what the cell has started may add to it without end.
        """
        room = fcntl.fcntl(self.output, fcntl.F_GETPIPE_SZ)
        while room > 0 and output.total <= most:
            taken = self._read_output(output)
            if not taken:
                return
            room -= taken

    def _read_frame(self) -> dict[str, Any] | End | None:
        try:
            data = self.channel.recv(1 << 16, socket.MSG_DONTWAIT)
        except OSError:
            return End.GONE
        if not data:
            return End.GONE
        self._incoming += data
        if len(self._incoming) < 4:
            return None
        size = int.from_bytes(self._incoming[:4], "big")
        if size > MAX_FRAME or len(self._incoming) > size + 4:
            return End.GARBAGE
        if len(self._incoming) < size + 4:
            return None
        body, self._incoming = self._incoming[4:], bytearray()
        try:
            frame = json.loads(body)
        except (ValueError, RecursionError):
            return End.GARBAGE
        return frame if isinstance(frame, dict) else End.GARBAGE

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def ended(self, seconds: float) -> bool:
        """Whether the process ends within `seconds`: its channel may close before, or alone."""
        poll = select.poll()  # not select(), which refuses descriptors above 1023
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(math.ceil(seconds * 1000)))

    def times(self) -> tuple[float, float]:
        """Seconds of CPU time used, and of waiting for a processor, as the kernel counts them.

        Of all threads; the waiting of those that have ended is forgotten. Zeros where /proc is
        not to be read. The number of a process is its own until it has been waited for.
        """
        ticks, waited = 0, 0
        with contextlib.suppress(OSError, ValueError, IndexError):
            folder = self._folder()
            fields = _read(f"{folder}/stat").rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            for task in os.listdir(f"{folder}/task"):
                with contextlib.suppress(OSError):
                    waited += int(_read(f"{folder}/task/{task}/schedstat").split()[1])
        return ticks / _TICKS, waited / 1e9

    def _other_threads(self) -> bool:
        """Whether the process has threads besides its main one, also such as Python does not know.

        Threads that were joined a moment ago may still be on their way out.
        """
        deadline = Deadline(THREAD_SECONDS)
        with contextlib.suppress(OSError):
            tasks = f"{self._folder()}/task"
            while os.stat(tasks).st_nlink > 3:  # two, and one for each thread
                if deadline.left() <= 0:
                    return True
                time.sleep(0.002)
        return False

    def _folder(self) -> str:
        """Where /proc tells about the process, which has another number in its own namespace."""
        if not self._host_pid:
            about = _read(f"/proc/self/fdinfo/{self.pidfd}")
            self._host_pid = int(about.partition("\nPid:")[2].split()[0])
        return f"/proc/{self._host_pid}"

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
                if self.folders.root:  # nothing may write there while it is removed
                    self.ended(5.0)
            os.close(self.pidfd)
        if self.pid and mine:
            self.zygote.dead.append(self.pid)
        if mine and (unused := self.folders.release(self.home)):
            self.zygote.launcher.remove(unused)


_TICKS = os.sysconf("SC_CLK_TCK")


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def _milliseconds(seconds: float) -> int:
    """For `poll`; its caller looks at the clock again."""
    return math.ceil(min(max(seconds, 0.0), _LONGEST_WAIT) * 1000)


@contextlib.contextmanager
def _pipes() -> Iterator[tuple[socket.socket, int, list[int]]]:
    """Our ends of a channel and of an output pipe, and theirs, which are closed at the end."""
    with refuses_at_limit("no session can be copied"):
        channel, theirs = socket.socketpair()
        try:
            output, write_end = os.pipe()
        except OSError:
            channel.close()
            theirs.close()
            raise
    try:
        yield channel, output, [theirs.fileno(), write_end]
    finally:
        theirs.close()
        os.close(write_end)
