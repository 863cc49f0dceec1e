"""The host's handle on a confined process: its pipes, its copies, its folders."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import secrets
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any

from mathenv.errors import InfraError, MathEnvError
from mathenv.interpreter.base import ForkError, Limits
from mathenv.interpreter.launcher import (
    PATIENCE,
    REQUEST_SECONDS,
    SlowStartError,
    Zygote,
    patience,
    remove_folder,
)
from mathenv.interpreter.output import OutputBuffer, clean

FORK_SECONDS = 15.0
MAX_FRAME = 1 << 20


class End(Enum):
    """Why no frame came."""

    LATE = "the time is over"
    FLOOD = "too much output"
    GONE = "the process ended"
    GARBAGE = "the channel held something else than a frame"


class Folders:
    """The folder on disk that a session and its copies share; gone with the last of them."""

    def __init__(self, root: str | None) -> None:
        self.root = root
        self.users: list[None] = []  # a list, because `pop` needs no lock

    def release(self, home: str | None) -> None:
        """Remove the files of one user, and everything if it was the last."""
        self.users.pop()
        path = home if self.users else self.root
        if path is not None:
            remove_folder(path)


class Process:
    """One confined process: its frame channel, output pipe and process descriptor."""

    def __init__(self, zygote: Zygote, folders: Folders, channel: socket.socket, output: int):
        self.zygote, self.folders, self.channel, self.output = zygote, folders, channel, output
        self.pid, self.pidfd, self.stopped = 0, -1, False
        self.home = f"{folders.root}/home" if folders.root else None
        self._incoming = bytearray()
        folders.users.append(None)
        os.set_blocking(output, False)

    @classmethod
    def start(cls, zygote: Zygote, limits: Limits, seed: int, spares: int = 0) -> Process:
        """A new session; the zygote then prepares `spares` for the next calls.

        Raises `InfraError`.
        """
        request = {"op": "open", "limits": dataclasses.asdict(limits), "spares": spares}
        answer, (pidfd, channel, output) = zygote.request(request, [])
        folders = Folders(answer["scratch"])
        process = cls(zygote, folders, socket.socket(fileno=channel), output)
        try:
            process._attach(answer["pid"], pidfd)
            process._wait_until_ready()
            process.send({"seed": seed})
        except BaseException:
            process.kill()
            raise
        return process

    def fork(self, limits: Limits) -> Process:
        """A copy of the session that this process runs.

        Raises `ForkError`, after which this process may have been killed, or `InfraError`.
        """
        if self.stopped:
            raise ForkError("threads still run in the session: join them in a cell first")
        with _pipes() as (channel, output, theirs):
            copy = Process(self.zygote, self.folders, channel, output)
            copy.home, hidden = None, -1
            try:
                with self.zygote.forking:  # so that there is at most one process yet unknown
                    request = {"op": "allow", "pid": self.pid, "file_bytes": limits.file_bytes}
                    answer, (hidden,) = self.zygote.request(request, [])
                    copy.home = answer["home"] if self.folders.root else None
                    problem = self._split(copy, theirs)
                if problem:
                    raise ForkError(f"the session cannot be copied: {problem}")
                copy.send({"home": answer["home"]}, [hidden])
                copy._wait_until_ready(ForkError if self.zygote.alive() else InfraError)
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
        self.send({"nonce": nonce}, theirs)
        deadline = time.monotonic() + FORK_SECONDS
        reply = self.receive(deadline, OutputBuffer(0), 1 << 20)
        if isinstance(reply, End) or reply.get("nonce") != nonce:
            reply = {"error": "it did not answer as it should, and was killed"}
            self.signal(signal.SIGKILL)
            self.ended(FORK_SECONDS)
        pid = reply.get("pid")
        possible = type(pid) is int and 0 < pid < 1 << 22  # the kernel's PID_MAX_LIMIT
        adopt = {"op": "adopt", "pid": self.pid, "copy": pid if possible else 0}
        try:
            answer, (pidfd,) = self.zygote.request(adopt, [])
            copy._attach(answer["pid"], pidfd)
        except InfraError as error:
            if not self.zygote.alive():
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
        reply = self.receive(time.monotonic() + seconds, OutputBuffer(1000), 1 << 20)
        if isinstance(reply, dict) and "ready" in reply:
            return
        said = reply.get("setup_error") if isinstance(reply, dict) else reply.value
        detail = clean(said)[:500] if isinstance(said, str) else "an unreadable reply"
        if reply is End.LATE and failure is InfraError:
            failure = SlowStartError
            detail = f"not ready within {seconds:.0f} s on this busy machine ({PATIENCE}=4: longer)"
        raise failure(f"the session could not be set up: {detail}")

    def send(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one frame, then descriptors. A process that has gone is noticed by `receive`."""
        if self.stopped:
            self.signal(signal.SIGCONT)
            self.stopped = False
        body = json.dumps(message).encode()
        with contextlib.suppress(OSError):
            self.channel.settimeout(REQUEST_SECONDS)
            self.channel.sendall(struct.pack(">I", len(body)) + body)
            if fds:
                socket.send_fds(self.channel, [b"\0"], fds)

    def receive(self, deadline: float, output: OutputBuffer, most: int) -> dict[str, Any] | End:
        """Return the next frame, or why none came by `deadline`, draining output meanwhile."""
        dripping = False
        while True:
            wait = deadline - time.monotonic()
            if wait <= 0:
                return End.LATE
            # One wake-up per printed line would slow the cell down: let some gather.
            events = self._poll_quiet.poll(2) if dripping else []
            ready = {fd for fd, _ in events or self._poll.poll(math.ceil(wait * 1000))}
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
        """Take the rest of a finished cell's output. Background threads may add to it."""
        while output.total <= most and self._read_output(output):
            pass

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
        if mine:
            self.folders.release(self.home)


@contextlib.contextmanager
def _pipes() -> Iterator[tuple[socket.socket, int, list[int]]]:
    """Our ends of a channel and of an output pipe, and theirs, which are closed at the end."""
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
