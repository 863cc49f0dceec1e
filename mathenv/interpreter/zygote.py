"""The process that forks sessions, keeps some ready, and decides which of them may fork.

Standard library only, loaded by path by `runner.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import secrets
import select
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from . import cells, memory, sandbox

SCRATCH = "/scratch"
TEMPORARY = "/tmp"  # the home of a session that has namespaces, but for those that are copies
FAMILY_BYTES = 1 << 20  # the folders that hold the folders of a session and its copies
STOP_SECONDS = 1.0
MOST_TASKS = 1000  # threads of a session and all its copies

Answer = tuple[dict[str, Any], list[int]]  # a message, and descriptors that go with it


@dataclass(frozen=True)
class Confinement:
    """What all sessions of an interpreter have in common.

    Attributes:
        scratch: folder on disk for the folders of the sessions; None: each mounts its own.
        paths: what can be read.
        landlock: version of Landlock, 0 to do without.
        kept: capabilities that are kept (bits).
        proc: open descriptor of /proc.
        hot: memory that sessions are likely to write to.
    """

    scratch: str | None
    paths: list[str]
    landlock: int
    kept: int
    proc: int
    hot: list[memory.Range]


@dataclass
class _Family:
    """A session and its copies. They share a mount namespace, open here as `mounts`."""

    root: str
    mounts: int | None = None
    members: int = 0


@dataclass
class _Member:
    """A running session: its folder for files, and the hidden one that holds its copies'."""

    family: _Family
    home: str
    forks: str


@dataclass
class _Spare:
    """A session that the host has not got yet, and what the host will get: pidfd, pipes."""

    pid: int
    limits: dict[str, Any]
    descriptors: list[int]


class Zygote:
    """Forks sessions, collects their exit codes, and grants single forks. Single-threaded."""

    def __init__(self, control: socket.socket, confinement: Confinement) -> None:
        self.control, self.rules = control, confinement
        self.namespaces = confinement.scratch is None
        self.sessions: dict[int, _Member] = {}  # not yet waited for
        self.dead: list[int] = []  # those of them that the host has killed
        self.spares: list[_Spare] = []
        self.wanted: tuple[dict[str, Any], int] | None = None  # limits and number of spares
        self.allowed = 0  # the session that may fork once
        self.prepared: _Member | None = None  # folders for its copy
        self.listener = -1
        with contextlib.suppress(OSError):  # a container that has a listener: sessions cannot fork
            self.listener = sandbox.watch_forks()
        self.program = sandbox.seccomp_filter(forks=self.listener >= 0)
        if self.namespaces:
            self.own_mounts = os.open("self/ns/mnt", os.O_RDONLY, dir_fd=self.rules.proc)
        control.send(b"{}")

    def serve(self) -> None:
        """Answer the host and the sessions until the host has gone."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        if self.listener >= 0:
            poll.register(self.listener, select.POLLIN)
        while True:
            ready = dict(poll.poll(0 if self.wanted else None))
            if not ready:
                self._prepare_spare()
            asked = ready.get(self.listener, 0) & select.POLLIN
            if asked and sandbox.decide_fork(self.listener, self.allowed):
                self.allowed = 0
            if self.control.fileno() in ready and not self._serve_one():
                return

    def _serve_one(self) -> bool:
        """Answer one request; False when the host has gone."""
        packet, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 4)
        if not packet:
            while self.spares:
                self._drop(self.spares.pop())
            for pid in tuple(self.sessions):
                self._end(pid)
            return False
        request = json.loads(packet)
        self.dead = [pid for pid in self.dead + request["dead"] if not self._wait(pid, os.WNOHANG)]
        answers = {
            "open": self._open,
            "end": self._autopsy,
            "allow": self._allow,
            "adopt": self._adopt,
        }
        try:
            answer, sent = answers[request["op"]](request)
        except OSError as error:
            answer, sent = {"error": cells.one_line(error), "errno": error.errno}, []
        socket.send_fds(self.control, [json.dumps(answer).encode()], sent)
        for fd in fds + sent:
            os.close(fd)
        return True

    def _wait(self, pid: int, flags: int) -> dict[str, Any] | None:
        """How a child ended (exit code, or minus the signal); None while it runs."""
        done, status, usage = os.wait4(pid, flags)
        if not done:
            return None
        if (member := self.sessions.pop(pid, None)) is not None:
            self._release(member)
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, "cpu": usage.ru_utime + usage.ru_stime, "rss": usage.ru_maxrss * 1024}

    def _end(self, pid: int) -> dict[str, Any]:
        """Kill a session if it still runs and say how it ended."""
        os.kill(pid, signal.SIGKILL)
        return self._wait(pid, 0) or {}

    def _autopsy(self, request: dict[str, Any]) -> Answer:
        return self._end(request["pid"]), []

    # ------------------------------------------------------------------------ folders

    @contextlib.contextmanager
    def _inside(self, family: _Family) -> Iterator[None]:
        """See the mounts of a family."""
        if family.mounts is None:
            yield
            return
        sandbox.setns(family.mounts, sandbox.NEWNS)
        try:
            yield
        finally:
            sandbox.setns(self.own_mounts, sandbox.NEWNS)

    def _make_folders(self, parent: str, family: _Family, size: int) -> _Member:
        """Make the home of a session, and a folder for its copies, in the new folder `parent`."""
        if not self.namespaces or family.members:
            os.mkdir(parent, 0o300)  # no listing: the second name shall stay unknown
        member = _Member(family, f"{parent}/home", f"{parent}/{secrets.token_hex(16)}")
        if self.namespaces and not family.members:
            member.home = TEMPORARY
        else:
            os.mkdir(member.home, 0o700)
        os.mkdir(member.forks, 0o700)
        if self.namespaces:
            sandbox.mount_scratch(member.home, size)
        return member

    def _release(self, member: _Member) -> None:
        """Drop the mounts of a session that has ended. Folders on disk are the host's."""
        family = member.family
        family.members -= 1
        if family.mounts is None:
            return
        with contextlib.suppress(OSError):
            if family.members:
                with self._inside(family):
                    sandbox.unmount(member.home)
            else:
                os.close(family.mounts)

    # ----------------------------------------------------------------------- sessions

    def _open(self, request: dict[str, Any]) -> Answer:
        """Hand out a spare session, or a new one."""
        limits = request["limits"]
        self.wanted = (limits, request["spares"]) if request["spares"] else None
        while self.spares and not self._fits(self.spares[0], limits):
            self._drop(self.spares.pop(0))
        spare = self.spares.pop(0) if self.spares else self._fork_session(limits)
        family = self.sessions[spare.pid].family
        root = None if self.namespaces else family.root
        return {"pid": spare.pid, "scratch": root}, spare.descriptors

    def _prepare_spare(self) -> None:
        """Fork one session ahead of its time, if there are less than wanted."""
        assert self.wanted is not None
        limits, number = self.wanted
        try:
            if len(self.spares) < number:
                self.spares.append(self._fork_session(limits))
        except OSError:  # the next request will meet it too, and tell
            number = 0
        if len(self.spares) >= number:
            self.wanted = None

    def _fits(self, spare: _Spare, limits: dict[str, Any]) -> bool:
        return spare.limits == limits and self._is_child(spare.pid)

    def _drop(self, spare: _Spare) -> None:
        """End a session that nobody needs."""
        for fd in spare.descriptors:
            os.close(fd)
        member = self.sessions[spare.pid]
        self._end(spare.pid)
        if not self.namespaces:
            with contextlib.suppress(OSError):
                for folder in (member.home, member.forks, member.family.root):
                    os.rmdir(folder)

    def _fork_session(self, limits: dict[str, Any]) -> _Spare:
        channel, their_channel = socket.socketpair()
        output, their_output = os.pipe()
        spare = _Spare(0, limits, [channel.detach(), output])
        theirs = [their_channel.detach(), their_output]
        try:
            spare.pid = self._fork_into_family(limits, theirs)
            spare.descriptors.insert(0, os.pidfd_open(spare.pid))
        except BaseException:
            for fd in spare.descriptors:
                os.close(fd)
            if spare.pid:
                self._kill(spare.pid)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        return spare

    def _fork_into_family(self, limits: dict[str, Any], fds: list[int]) -> int:
        """Fork a session that has folders of its own; returns its process id."""
        scratch = self.rules.scratch
        family = _Family(f"{scratch}/{secrets.token_hex(8)}" if scratch else SCRATCH)
        if self.namespaces:
            sandbox.unshare(sandbox.NEWNS)
        try:
            if self.namespaces:
                sandbox.mount_scratch(SCRATCH, FAMILY_BYTES)
                family.mounts = os.open("self/ns/mnt", os.O_RDONLY, dir_fd=self.rules.proc)
            member = self._make_folders(family.root, family, limits["file_bytes"])
            forks = os.open(member.forks, os.O_PATH)
            pid = sandbox.fork_here(sibling=False)
            if pid == 0:
                self._become_session(limits, member, [*fds, forks])
            os.close(forks)
            # The session has seen the old name in our memory, and cannot list the folder.
            hidden = f"{family.root}/{secrets.token_hex(16)}"
            os.rename(member.forks, hidden)
            member.forks = hidden
            os.chmod(family.root, 0o300)
        except BaseException:
            if family.mounts is not None:
                os.close(family.mounts)
            raise
        finally:
            if self.namespaces:
                sandbox.setns(self.own_mounts, sandbox.NEWNS)
        family.members = 1
        self.sessions[pid] = member
        return pid

    def _become_session(self, limits: dict[str, Any], member: _Member, fds: list[int]) -> None:
        status = 70
        try:
            (forks,) = cells.place_descriptors(*fds)
            try:
                self._confine(limits, member.home, forks)
                os.close(forks)
            except BaseException as error:
                cells.send({"setup_error": cells.one_line(error)})
                raise
            memory.populate(self.rules.hot)
            self.sessions, self.spares = {}, []  # a session need not know of others
            arguments = (member.home, limits["memory_bytes"])
            session = cells.Session(*arguments, sandbox.fork_here, self._confine_copy)
            cells.send({"ready": True})
            session.serve()
            status = 0
        finally:
            os._exit(status)

    def _confine(self, limits: dict[str, Any], home: str, forks: int) -> None:
        """Give up everything a cell does not need. The order matters: seccomp comes last."""
        os.setsid()
        if self.namespaces:
            sandbox.unshare(sandbox.NEWUSER)  # own process count; no id is mapped
        os.chdir(home)
        os.environ["HOME"] = os.environ["TMPDIR"] = home
        self._restrict_files(home, forks)
        sandbox.set_capabilities(self.rules.kept)
        _set_limits(limits, count_processes=self.namespaces)
        sandbox.forbid_inspection()
        sandbox.die_with_parent()
        sandbox.seccomp(self.program)

    def _confine_copy(self, home: str, forks: int) -> None:
        """The rest is inherited."""
        self._restrict_files(home, forks)
        sandbox.die_with_parent()

    def _restrict_files(self, home: str, forks: int) -> None:
        if self.rules.landlock:
            sandbox.landlock(self.rules.landlock, self.rules.paths, [home, forks])

    # -------------------------------------------------------------------------- copies

    def _allow(self, request: dict[str, Any]) -> Answer:
        """Let a session fork once, and make the folders of its copy."""
        if self.listener < 0:
            raise OSError("sessions cannot fork here: seccomp allows no further listener")
        parent = self.sessions[request["pid"]]
        name = f"{parent.forks}/{secrets.token_hex(8)}"
        with self._inside(parent.family):
            self.prepared = self._make_folders(name, parent.family, request["file_bytes"])
            forks = os.open(self.prepared.forks, os.O_PATH)
        self.allowed = request["pid"]
        return {"home": self.prepared.home}, [forks]

    def _adopt(self, request: dict[str, Any]) -> Answer:
        """Take the copy that `pid` says it is; without one, make sure that there is none."""
        used, self.allowed = self.allowed == 0, 0
        member, self.prepared = self.prepared, None
        assert member is not None
        member.family.members += 1
        pid = request["copy"]
        known = pid in self.sessions or pid in self.dead
        if pid and used and not known and self._is_child(pid):
            # Forks are granted one at a time: no other process can be unknown to us.
            self.sessions[pid] = member
            return {"pid": pid}, [os.pidfd_open(pid)]
        if used:
            self._end_strangers(request["pid"])
        self._release(member)
        return {"error": "there is no copy"}, []

    def _is_child(self, pid: int) -> bool:
        """Whether it is a child of ours that has not ended."""
        try:
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except (OSError, OverflowError):  # the number comes from a session
            return False

    def _end_strangers(self, parent: int) -> None:
        """Kill what a session has forked without telling."""
        os.kill(parent, signal.SIGSTOP)  # once it has stopped, it is not in the middle of a fork
        if not self._stops(parent):  # a thread of it can be where no signal but this one arrives
            os.kill(parent, signal.SIGKILL)
        for pid in children(self.rules.proc):
            if pid not in self.sessions and pid not in self.dead:
                self._kill(pid)
        os.kill(parent, signal.SIGCONT)

    def _stops(self, pid: int) -> bool:
        """Whether a process that was told to stop or to end does so soon."""
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            how = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
            if os.waitid(os.P_PID, pid, how) is not None:
                return True
            time.sleep(0.001)
        return False

    def _kill(self, pid: int) -> None:
        """Kill a child. It may take its time to end, and is waited for later."""
        os.kill(pid, signal.SIGKILL)
        self.dead.append(pid)


def children(proc: int) -> list[int]:
    """Ids of this process's children as it sees them; `proc` is any view of /proc."""
    own, found = _status("self", proc), []
    depth = len(own["NSpid"])  # of our pid namespace below that of `proc`
    for name in os.listdir(proc):
        with contextlib.suppress(OSError):
            if name.isdigit():
                status = _status(name, proc)
                if status["PPid"] == own["Pid"]:
                    found.append(int(status["NSpid"][depth - 1]))
    return found


def _status(process: str, proc: int) -> dict[str, list[str]]:
    fd = os.open(f"{process}/status", os.O_RDONLY, dir_fd=proc)
    with open(fd, encoding="utf-8", errors="replace") as file:
        pairs = (line.partition(":") for line in file)
        return {name: values.split() for name, _, values in pairs}


def _set_limits(limits: dict[str, Any], *, count_processes: bool) -> None:
    memory_bytes, cpu = int(limits["memory_bytes"]), max(1, round(limits["session_cpu_seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes + cells.REPORT_BYTES))
    # First the signal that says why, then, to those that ignore it, the one that ends them.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    if count_processes:  # elsewhere the user's own processes would count too
        resource.setrlimit(resource.RLIMIT_NPROC, (MOST_TASKS, MOST_TASKS))
