"""The host's handles on `runner.py`: the launcher of one tier, and the zygotes below it."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
import resource
import secrets
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter.base import HostLimitError
from mathenv.interpreter.packages import View

UNPRIVILEGED_UID = 65534  # "nobody", used when the host runs as root
START_SECONDS = 60.0  # importing sympy on a busy machine
REQUEST_SECONDS = 30.0
CLOSE_SECONDS = 5.0
PATIENCE = "MATHENV_PATIENCE"
_MOST_LOAD = 5.0  # processes that want each processor; more do not make the wait longer
_RUNNER = Path(__file__).with_name("runner.py")


_REMOVE_SECONDS = 0.2  # spent on the files of one session while somebody waits
_AT_LIMIT = {
    errno.EMFILE: "this process may not open more files; raise the limit (ulimit -n)",
    errno.ENFILE: "this machine has no more open files (sysctl fs.file-max)",
    errno.EAGAIN: "no more processes may be started (ulimit -u, kernel.pid_max, pids.max)",
    errno.ENOMEM: "this machine is out of memory",
}


class SlowStartError(InfraError):
    """Something did not start in time, or for want of memory or the like, on a busy machine.

    That is no sign that it cannot.
    """


class NoSpaceError(InfraError):
    """There was no room on the disk for the folders of a session."""


def host_limit(what: str, number: int = errno.EMFILE) -> HostLimitError:
    """The error for what this process could not do because of a limit of its own."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    count = f": it may open {files}, and a session takes 3" if number == errno.EMFILE else ""
    return HostLimitError(f"{what}: {_AT_LIMIT[number]}, or use fewer sessions{count}")


@contextlib.contextmanager
def refuses_at_limit(what: str) -> Iterator[None]:
    """Raise `HostLimitError` where a call in the block meets a limit of this process."""
    try:
        yield
    except OSError as error:
        if error.errno not in _AT_LIMIT:
            raise
        raise host_limit(what, error.errno) from error


class Launcher:
    """The running launcher and nursery of one tier."""

    def __init__(self, tier: str, view: View) -> None:
        self.tier, self.view = tier, view
        self.host_pid = os.getpid()
        self._lock = threading.Lock()
        self._unused: deque[str] = deque()  # folders that nobody has had the time to remove
        with contextlib.ExitStack() as undo, refuses_at_limit("no sandbox can be started"):
            # Else `tempfile` would say that there is no folder for temporary files.
            os.close(os.open(os.devnull, os.O_RDONLY))
            self.root = tempfile.mkdtemp(prefix="mathenv-") if tier != "namespaces" else None
            undo.callback(lambda: self.root and remove_folder(self.root))
            uid = os.getuid() or UNPRIVILEGED_UID
            config = {"tier": tier, "uid": uid, "scratch": self.root, "host_pid": self.host_pid}
            self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(self.control.close)
            with theirs:
                self._errors = open(os.memfd_create("errors"), "w+b")  # noqa: SIM115 - for `close`
                undo.callback(self._errors.close)
                self._launcher = self._launch(theirs, config)
            undo.pop_all()  # from here on `close` does it
        seconds = patience(START_SECONDS)
        try:
            self.control.settimeout(seconds)
            self.control.send(json.dumps(dataclasses.asdict(self.view)).encode())
            self.hello = _receive(self.control)[0]
        except TimeoutError:
            self._launcher.kill()  # it does not listen: `close` would wait for it in vain
            self.close()
            what = f"the sandbox (tier {tier}), which imports sympy and numpy, was not ready"
            raise SlowStartError(too_slow(what, seconds)) from None
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
        seconds = patience(REQUEST_SECONDS)
        with refuses_at_limit("no sandbox can be started"):
            control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with self._lock:
                socket.send_fds(self.control, [b"{}"], [theirs.fileno()])
            theirs.close()
            control.settimeout(seconds)
            _receive(control)
        except (OSError, InfraError) as error:
            theirs.close()
            control.close()
            late = isinstance(error, TimeoutError)
            said = too_slow("none was ready", seconds) if late else str(error)
            text = f"no zygote could be started: {said} {self._stderr()}".strip()
            raise _kind(error)(text) from None
        return Zygote(self, control)

    def alive(self) -> bool:
        """Whether zygotes can be had: the nursery, which alone holds the other end, is there."""
        mine = os.getpid() == self.host_pid and self._launcher.poll() is None
        return mine and not _hangs_up(self.control, 0)

    def remove(self, path: str) -> None:
        """Remove a folder below `root` in which nothing runs any more; much of it later.

        Code can make more files than are removed while somebody waits: the newest folder comes
        first, and `close` removes the rest. No locks: this also runs in `__del__`.
        """
        self._unused.append(path)
        self.remove_more(_REMOVE_SECONDS)

    def remove_more(self, seconds: float) -> bool:
        """Go on with what is left to be removed; False if there was nothing."""
        deadline, some = time.monotonic() + seconds, bool(self._unused)
        while self._unused and time.monotonic() < deadline:
            with contextlib.suppress(IndexError):  # another thread was faster
                self._unused.extend(remove_folder(self._unused.pop(), deadline))
        return some

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


def patience(seconds: float) -> float:
    """Return how long to wait for a process of ours that takes `seconds` at most when idle.

    Longer by the load of this machine, and by the factor in the variable MATHENV_PATIENCE.

    Raises:
        ConfigError: the variable is no positive number.
    """
    told = os.environ.get(PATIENCE, "1")
    try:
        factor = float(told)
    except ValueError:
        factor = 0.0
    if not 0 < factor < math.inf:
        raise ConfigError(f"{PATIENCE} is a factor, such as 4, and not {told!r}")
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return seconds * factor * min(max(1.0, load), _MOST_LOAD)


def too_slow(what: str, seconds: float) -> str:
    """The sentence for something that was not there after `seconds`, and what to do."""
    load, processors = os.getloadavg()[0], os.cpu_count()
    return (
        f"{what} within {seconds:.3g} s: this machine is too busy (load {load:.1f} on "
        f"{processors} processors) or its disk too slow. Try again when less runs beside it, or "
        f"set {PATIENCE}=4 to wait four times as long"
    )


def _hangs_up(control: socket.socket, seconds: float) -> bool:
    """Whether the process at the other end has closed its socket, or does so in some seconds."""
    poll = select.poll()
    poll.register(control, 0)  # POLLHUP is always reported
    return bool(poll.poll(seconds * 1000))


def _kind(error: Exception) -> type[InfraError]:
    slow = isinstance(error, TimeoutError | SlowStartError)
    return SlowStartError if slow else InfraError


def _receive(control: socket.socket) -> tuple[dict[str, Any], list[int]]:
    packet, fds, _, _ = socket.recv_fds(control, 1 << 16, 3)
    if not packet:
        raise InfraError("the interpreter process ended")
    reply: dict[str, Any] = json.loads(packet)
    if "error" in reply:
        number = reply.get("errno", 0)
        hint = _AT_LIMIT.get(number)
        kind = SlowStartError if hint else InfraError
        if number in (errno.ENOSPC, errno.EDQUOT):
            kind = NoSpaceError
        raise kind(reply["error"] + (f" ({hint})" if hint else ""))
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
        """Ask the zygote. Raises `InfraError`, after which `alive` may be False.

        Fewer descriptors than expected come with the answer where this process may not open more.
        """
        with self._lock:
            dead = [self.dead.popleft() for _ in range(len(self.dead))]
            data = json.dumps({**message, "dead": dead}).encode()
            seconds = patience(REQUEST_SECONDS)
            try:
                self.control.settimeout(seconds)
                socket.send_fds(self.control, [data], fds)
                return _receive(self.control)
            except OSError as error:
                self.close()
                late = isinstance(error, TimeoutError)
                said = too_slow("it said nothing", seconds) if late else str(error)
                text = f"the interpreter process does not answer: {said}"
                raise _kind(error)(text) from error
            except InfraError:
                raise
            except BaseException:  # such as Ctrl-C: the answer would be taken for the next one
                self.close()
                raise

    def refuse(self, pid: int, fds: list[int]) -> None:
        """End a process that this one cannot take over, having got only these descriptors."""
        for fd in fds:
            os.close(fd)
        self.request({"op": "end", "pid": pid}, [])

    def alive(self) -> bool:
        return not self.ends(0)

    def ends(self, seconds: float) -> bool:
        """Whether the zygote is not there any more, or ends within some seconds."""
        if os.getpid() != self.host_pid or self.control.fileno() < 0:
            return True
        return _hangs_up(self.control, seconds)

    def close(self) -> None:
        """End the zygote and its sessions. Safe to call twice."""
        if os.getpid() == self.host_pid:  # a forked copy of the host must not end its parent's
            self.control.close()


def remove_folder(path: str, deadline: float = math.inf) -> list[str]:
    """Remove a folder that hostile code may have filled; what is left at `deadline`, if any.

    Subfolders move up before they are emptied, so that depth does not matter
    (`shutil.rmtree` fails with RecursionError at 3,000 levels), and folders that the cell
    has locked are opened. Nothing may run in the folder any more.
    """
    pending = [path]
    with contextlib.suppress(OSError):
        while pending:
            folder = pending.pop()
            os.chmod(folder, 0o700)  # the cell may have locked it
            with os.scandir(folder) as entries:
                for entry in entries:
                    if time.monotonic() > deadline:
                        return [folder, *pending]
                    if not entry.is_dir(follow_symlinks=False):
                        os.unlink(entry.path)
                        continue
                    moved = f"{os.path.dirname(path)}/mathenv-{secrets.token_hex(8)}"
                    os.chmod(entry.path, 0o700)
                    os.rename(entry.path, moved)
                    pending.append(moved)
            os.rmdir(folder)
    return []
