"""The host's handle on `runner.py`: the warm zygote and the confined processes it forks."""

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
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from mathenv.errors import InfraError, MathEnvError
from mathenv.interpreter.base import ForkError, Limits
from mathenv.interpreter.output import OutputBuffer, clean

UNPRIVILEGED_UID = 65534  # "nobody", used when the host runs as root
START_SECONDS = 60.0  # importing sympy on a busy machine
REQUEST_SECONDS = 30.0
FORK_SECONDS = 15.0
CLOSE_SECONDS = 5.0
MAX_FRAME = 1 << 20
_RUNNER = Path(__file__).with_name("runner.py")


class SlowStartError(InfraError):
    """Something did not start in time, as on a busy machine: no sign that it cannot."""


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
            _remove(path)


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
    def start(cls, zygote: Zygote, limits: Limits, seed: int) -> Process:
        """A new session. Raises `InfraError`."""
        folders = Folders(zygote.new_scratch())
        with _pipes() as (channel, output, theirs):
            process = cls(zygote, folders, channel, output)
            request = {"op": "open", "seed": seed, "scratch": folders.root}
            request["limits"] = dataclasses.asdict(limits)
            try:
                process._attach(*zygote.request(request, theirs))
                process._wait_until_ready()
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
        adopt = {"op": "adopt", "pid": self.pid, "copy": pid if isinstance(pid, int) else 0}
        try:
            copy._attach(*self.zygote.request(adopt, []))
        except InfraError as error:
            if not self.zygote.alive():
                raise
            return clean(str(reply.get("error", error)))[:500]
        return ""

    def _attach(self, reply: dict[str, Any], fds: list[int]) -> None:
        self.pid, self.pidfd = int(reply["pid"]), fds[0]
        self._poll, self._poll_quiet = select.poll(), select.poll()
        for fd in (self.channel.fileno(), self.pidfd):
            self._poll.register(fd, select.POLLIN)
            self._poll_quiet.register(fd, select.POLLIN)
        self._poll.register(self.output, select.POLLIN)

    def _wait_until_ready(self, failure: type[MathEnvError] = InfraError) -> None:
        reply = self.receive(time.monotonic() + REQUEST_SECONDS, OutputBuffer(1000), 1 << 20)
        if isinstance(reply, dict) and "ready" in reply:
            return
        detail = reply.get("setup_error") if isinstance(reply, dict) else reply.value
        if reply is End.LATE and failure is InfraError:
            failure = SlowStartError
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


def _remove(path: str) -> None:
    """Remove a folder that hostile code may have filled.

    Subfolders move up before they are emptied, so that depth does not matter
    (`shutil.rmtree` fails with RecursionError at 3,000 levels), and folders that the cell
    has locked are opened. Nothing may run in the folder any more.
    """
    pending, moved = [path], 0
    with contextlib.suppress(OSError):
        os.chmod(path, 0o700)
        while pending:
            folder = pending.pop()
            with os.scandir(folder) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)
                        continue
                    moved += 1
                    os.chmod(entry.path, 0o700)  # the cell may have locked it
                    os.rename(entry.path, f"{path}-{moved}")
                    pending.append(f"{path}-{moved}")
            os.rmdir(folder)


class Launcher:
    """The running launcher and nursery of one tier."""

    def __init__(self, tier: str) -> None:
        self.tier = tier
        self.host_pid = os.getpid()
        self._lock = threading.Lock()
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
            self.hello = _receive(self.control)[0]
        except (OSError, InfraError) as error:
            text = f"{error} {self._stderr()}".strip()
            self.close()
            raise _kind(error)(text) from None

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

    def new_zygote(self) -> Zygote:
        """Fork a zygote from the nursery. Raises `InfraError`."""
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with self._lock:
                socket.send_fds(self.control, [b"{}"], [theirs.fileno()])
            theirs.close()
            control.settimeout(REQUEST_SECONDS)
            _receive(control)
        except (OSError, InfraError) as error:
            theirs.close()
            control.close()
            text = f"no zygote could be started: {error} {self._stderr()}"
            raise _kind(error)(text) from None
        return Zygote(self, control)

    def alive(self) -> bool:
        return os.getpid() == self.host_pid and self._launcher.poll() is None

    def close(self) -> None:
        """End the launcher and everything below it. Safe to call twice."""
        if os.getpid() != self.host_pid:  # a forked copy of the host must not end its parent's
            return
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)  # the zygote ends its sessions and exits
        try:
            self._launcher.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._launcher.kill()
            self._launcher.wait()
        self.control.close()
        self._errors.close()
        if self.root is not None:
            _remove(self.root)


def _kind(error: Exception) -> type[InfraError]:
    return SlowStartError if isinstance(error, TimeoutError) else InfraError


def _receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    packet, fds, _, _ = socket.recv_fds(control, 1 << 16, 2)
    if not packet:
        raise InfraError("the interpreter process ended")
    reply: dict[str, Any] = json.loads(packet)
    if "error" in reply:
        raise InfraError(reply["error"])
    return reply, fds


class Zygote:
    """A process that forks sessions. Requests are serialised by a lock."""

    def __init__(self, launcher: Launcher, control: socket.socket) -> None:
        self.launcher, self.control = launcher, control
        self.host_pid = launcher.host_pid
        self.dead: deque[int] = deque()  # appended to without the lock
        self.forking = threading.Lock()
        self._lock = threading.Lock()

    def request(self, message: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Ask the zygote. Raises `InfraError`, after which `alive` may be False."""
        with self._lock:
            dead = [self.dead.popleft() for _ in range(len(self.dead))]
            data = json.dumps({**message, "dead": dead}).encode()
            try:
                self.control.settimeout(REQUEST_SECONDS)
                socket.send_fds(self.control, [data], fds)
                return _receive(self.control)
            except OSError as error:
                self.close()
                text = f"the interpreter process does not answer: {error}"
                raise _kind(error)(text) from error
            except InfraError:
                raise
            except BaseException:  # such as Ctrl-C: the answer would be taken for the next one
                self.close()
                raise

    def alive(self) -> bool:
        if os.getpid() != self.host_pid or self.control.fileno() < 0:
            return False
        poll = select.poll()
        poll.register(self.control, 0)  # POLLHUP is always reported
        return not poll.poll(0)

    def new_scratch(self) -> str | None:
        """Name of a folder the next session will make; None where it mounts its own."""
        if self.launcher.root is None:
            return None
        return f"{self.launcher.root}/{secrets.token_hex(8)}"

    def close(self) -> None:
        """End the zygote and its sessions. Safe to call twice."""
        if os.getpid() == self.host_pid:  # a forked copy of the host must not end its parent's
            self.control.close()
