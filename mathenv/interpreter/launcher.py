"""The host's handles on `runner.py`: the launcher of one tier, and the zygotes below it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections import deque
from pathlib import Path
from typing import Any

from mathenv.errors import InfraError
from mathenv.interpreter.packages import View

UNPRIVILEGED_UID = 65534  # "nobody", used when the host runs as root
START_SECONDS = 60.0  # importing sympy on a busy machine
REQUEST_SECONDS = 30.0
CLOSE_SECONDS = 5.0
_RUNNER = Path(__file__).with_name("runner.py")


class SlowStartError(InfraError):
    """Something did not start in time, as on a busy machine: no sign that it cannot."""


class Launcher:
    """The running launcher and nursery of one tier."""

    def __init__(self, tier: str, view: View) -> None:
        self.tier, self.view = tier, view
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
            self.control.send(json.dumps(dataclasses.asdict(self.view)).encode())
            self.hello = _receive(self.control)[0]
        except (OSError, InfraError) as error:
            text = f"{error} {self._stderr()}".strip()
            self.close()
            raise _kind(error)(text) from None

    def _launch(self, theirs: socket.socket, config: dict[str, Any]) -> subprocess.Popen[bytes]:
        # -s -P with an environment of our own is -I, except that -I would ignore
        # PYTHONHASHSEED and make set order differ from run to run. -S: of `site-packages` the
        # view says what is there, and no code of .pth files runs.
        environment = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "TZ": "UTC", "HOME": "/"}
        environment |= {
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
            "MPLBACKEND": "agg",
        }
        arguments = [str(theirs.fileno()), json.dumps(config)]
        return subprocess.Popen(
            [sys.executable, "-S", "-s", "-P", str(_RUNNER), *arguments],
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
            remove_folder(self.root)


def _kind(error: Exception) -> type[InfraError]:
    return SlowStartError if isinstance(error, TimeoutError) else InfraError


def _receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    packet, fds, _, _ = socket.recv_fds(control, 1 << 16, 3)
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

    def close(self) -> None:
        """End the zygote and its sessions. Safe to call twice."""
        if os.getpid() == self.host_pid:  # a forked copy of the host must not end its parent's
            self.control.close()


def remove_folder(path: str) -> None:
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
