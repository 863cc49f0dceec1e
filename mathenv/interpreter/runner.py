"""The program that runs model-written code: a warm process that forks confined sessions.

Standard library only (plus `sandbox.py` and `cells.py` beside it), started by exec, never
imported by `mathenv`. Four roles, each a fork of the one before:

    launcher   enters the namespaces, waits, and ends everything when the host dies
    nursery    imports sympy, numpy and mpmath once, warms them, forks a zygote on request
    zygote     forks sessions, and decides which of them may fork
    session    confines itself, then runs one cell after another (`cells.py`)

The nursery and the zygotes take one JSON object per packet on a SOCK_SEQPACKET socket, with
descriptors attached, and answer each.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import json
import os
import platform
import random
import resource
import secrets
import select
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

PRELOAD = ("sympy", "numpy", "mpmath")
SCRATCH = "/scratch"
FAMILY_BYTES = 1 << 20  # the folders that hold the folders of a session and its copies
MOST_TASKS = 1000  # threads of a session and all its copies


def _load(name: str) -> Any:
    """Load a file beside this one: nothing is imported from the host's folders."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"_mathenv_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


sandbox, cells = _load("sandbox"), _load("cells")


# -------------------------------------------------------------------------- launcher


def main() -> None:
    """Launch: `runner.py CONTROL_FD CONFIG`, CONFIG being {tier, uid, scratch, host_pid}."""
    control = socket.socket(fileno=int(sys.argv[1]))
    config = json.loads(sys.argv[2])
    try:
        host = os.pidfd_open(os.getppid())
        if os.getppid() != config["host_pid"]:
            os._exit(1)
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        paths = library_paths()
        sandbox.adopt_orphans()
        _enter_tier(config, paths, proc)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        child = os.fork()
    except BaseException as error:
        control.send(json.dumps({"error": cells.one_line(error)}).encode())
        os._exit(1)
    if child == 0:
        os.close(host)
        nursery_main(control, config, paths, proc)
        os._exit(0)
    control.close()
    _outlive(host, child, proc, config["scratch"])


def _outlive(host: int, child: int, proc: int, scratch: str | None) -> None:
    """Wait until the host or the nursery ends, then leave nothing behind."""
    nursery = os.pidfd_open(child)
    select.select([host, nursery], [], [])
    select.select([nursery], [], [], 2.0)  # its socket closes with the host: let it end in order
    os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:  # what a dead process leaves becomes our child
            for pid in _children(proc):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)
    host_died = bool(select.select([host], [], [], 0)[0])
    if scratch and host_died:
        subprocess.run(["rm", "-rf", "--", scratch], check=False)
    os._exit(0)


def _children(proc: int) -> list[int]:
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


def _enter_tier(config: dict[str, Any], paths: list[str], proc: int) -> None:
    if config["tier"] != "namespaces":
        return
    is_root = os.geteuid() == 0
    if is_root:  # only root can reach libraries below a private home such as /root
        os.setgroups([])
        sandbox.unshare(sandbox.NEWNS)
        sandbox.build_root(paths, SCRATCH)
    others = sandbox.NEWPID | sandbox.NEWNET | sandbox.NEWIPC | sandbox.NEWUTS | sandbox.NEWNS
    sandbox.enter_user_namespace(others, config["uid"], proc)
    if not is_root:
        sandbox.build_root(paths, SCRATCH)


def library_paths() -> list[str]:
    """Directories and files that Python code needs to read; nothing above another one."""
    wanted = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo"]
    wanted += ["/etc/ld.so.cache", "/etc/localtime"]
    wanted += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    wanted += [os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix)]
    wanted += [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    for name in PRELOAD:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            wanted.append(os.path.dirname(os.path.realpath(spec.origin)))
    kept: list[str] = []
    for path in sorted({os.path.abspath(p) for p in wanted if os.path.exists(p)}):
        if not any(path.startswith(other + "/") for other in kept):
            kept.append(path)
    return kept


# --------------------------------------------------------------------------- nursery


def nursery_main(
    control: socket.socket, config: dict[str, Any], paths: list[str], proc: int
) -> None:
    """Warm up, say hello, then fork zygotes until the host closes the socket."""
    try:
        sandbox.die_with_parent()
        abi = 0 if config["tier"] == "rlimits" else sandbox.landlock_abi()
        if config["tier"] == "seccomp" and abi == 0:
            raise OSError("this kernel has no Landlock (needs 5.13 with CONFIG_SECURITY_LANDLOCK)")
        kept = 0
        if config["tier"] != "namespaces" and os.geteuid() == 0:
            kept = _leave_root(config, paths)
        sandbox.die_with_parent()  # a change of user clears it
        sys.path[:] = [p for p in sys.path if any(f"{p}/".startswith(f"{k}/") for k in paths)]
        hello = {"versions": _warm_up(), "landlock": abi}
        with contextlib.suppress(OSError):  # only faster
            with open(os.open("self/maps", os.O_RDONLY, dir_fd=proc), encoding="utf-8") as maps:
                sandbox.use_huge_pages(maps.read())
        sandbox.forbid_inspection()
        sandbox.no_new_privileges()
    except BaseException as error:
        control.send(json.dumps({"error": cells.one_line(error)}).encode())
        return
    control.send(json.dumps(hello).encode())
    while True:
        packet, fds, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not packet:
            return
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            control.close()
            sandbox.die_with_parent()
            zygote = Zygote(socket.socket(fileno=fds[0]), paths, proc, config["tier"], abi, kept)
            zygote.serve()
            os._exit(0)
        os.close(fds[0])


def _leave_root(config: dict[str, Any], paths: list[str]) -> int:
    """Become an unprivileged user; return the capabilities kept.

    The right to read any file is kept where the libraries lie below a private directory.
    Landlock bounds it, so without Landlock this is an error instead.
    """
    os.chown(config["scratch"], config["uid"], config["uid"])
    private = [path for path in paths if not _world_readable(path)]
    if private and config["tier"] != "seccomp":
        raise PermissionError(
            f"uid {config['uid']} cannot read {private[0]}: open its parents to all"
        )
    kept = 1 << sandbox.CAP_DAC_READ_SEARCH if private else 0
    sandbox.become(config["uid"], kept)
    return kept


def _world_readable(path: str) -> bool:
    path = os.path.realpath(path)
    while path != "/":
        if not os.stat(path).st_mode & 0o001 and os.path.isdir(path):
            return False
        path = os.path.dirname(path)
    return True


# What sessions often do. The first time is slow: sympy imports and fills caches inside functions.
_REHEARSAL = (
    "from sympy import *; import math, itertools, fractions, decimal, functools, collections",
    "x, y, z = symbols('x y z'); n = symbols('n', integer=True, positive=True)",
    "print(solve(x**3 - 4*x**2 + x + 6, x), solve(x**2 - 2, x), solve(x**2 + x + 1))",
    "print(solve([x + y - 3, x - y - 1], [x, y]), solve(Eq(2*x + 1, 7), x))",
    "print(solve([x**2 + y**2 - 25, x + y - 7], (x, y)), solve(sqrt(x + 3) - x + 3, x))",
    "print(solve(x**3 - 2, x), solve(x**3 + 1, x), solve(x**4 - 16, x), solve(2*x**3 - x, x))",
    "print(solve(x**3 - 3*x + 1, x), solve([2*x + y - 5, x + 3*y - 5], [x, y]))",
    "print(integrate(x**2*cos(x), x), factor(x**4 - 1))",
    "print(solveset(x**2 - 5*x + 6, x), solve(x**2 - 4 > 0, x), nsolve(cos(x) - x, x, 1))",
    "print(factor(x**3 - 1), expand((x + y)**3), simplify((x**2 - 1)/(x - 1)))",
    "print(simplify(sin(x)**2 + cos(x)**2), trigsimp(sin(2*x)/sin(x)), sqrt(8) + Rational(2, 6))",
    "print(diff(x**2*sin(x), x), integrate(x*exp(x), x), integrate(x**2, (x, 0, 1)))",
    "print(apart(1/(x**2 - 1)), limit(sin(x)/x, x, 0), summation(n**2, (n, 1, 10)))",
    "print(Matrix([[1, 2], [3, 4]]).inv(), Matrix([[2, 0], [0, 3]]).det(), latex(sqrt(x)/3))",
    "print(factorint(360), isprime(97), gcd(12, 18), lcm(4, 6), binomial(10, 3), divisors(28))",
    "print(N(pi, 20), sqrt(2).evalf(), Poly(x**2 - 1, x).all_roots(), nsimplify(0.25))",
    "print(sympify('x + 1'), series(exp(x), x, 0, 3), floor(Rational(7, 2)), log(8, 2), I**2)",
    "import numpy as np; np.random.seed(0); print(np.linalg.solve(np.eye(2), np.ones(2)))",
    "print(np.array([1, 2]).sum(), np.roots([1, -3, 2]), np.arange(3).mean())",
    "import mpmath; mpmath.quad(mpmath.sin, [0, 1])",
)


def _warm_up() -> dict[str, str]:
    """Import the libraries and run them once, so that every session starts with warm caches."""
    import mpmath  # type: ignore[import-untyped]
    import numpy
    import sympy

    namespace: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in _REHEARSAL:
            exec(cell, namespace)
    namespace.clear()
    gc.collect()
    gc.freeze()  # the collector leaves these objects alone: their pages stay shared
    modules = (sympy, numpy, mpmath)
    return {"python": platform.python_version()} | {m.__name__: m.__version__ for m in modules}


# ---------------------------------------------------------------------------- zygote


@dataclass
class _Family:
    """A session and its copies. They share a mount namespace, open here as `mounts`."""

    mounts: int | None
    members: int = 0


@dataclass
class _Member:
    """A running session: its folder for files, and the hidden one that holds its copies'."""

    family: _Family
    home: str
    forks: str


class Zygote:
    """Forks sessions, collects their exit codes, and grants single forks. Single-threaded."""

    def __init__(
        self,
        control: socket.socket,
        paths: list[str],
        proc: int,
        tier: str,
        abi: int,
        kept: int,
    ) -> None:
        self.control, self.paths, self.proc, self.abi, self.kept = control, paths, proc, abi, kept
        self.namespaces = tier == "namespaces"
        self.sessions: dict[int, _Member] = {}  # not yet waited for
        self.dead: list[int] = []  # those of them that the host has killed
        self.allowed = 0  # the session that may fork once
        self.prepared: _Member | None = None  # folders for its copy
        self.listener = -1
        with contextlib.suppress(OSError):  # a container that has a listener: sessions cannot fork
            self.listener = sandbox.watch_forks()
        self.program = sandbox.seccomp_filter(forks=self.listener >= 0)
        if self.namespaces:
            self.own_mounts = os.open("self/ns/mnt", os.O_RDONLY, dir_fd=proc)
        control.send(b"{}")

    def serve(self) -> None:
        """Answer the host and the sessions until the host has gone."""
        poll = select.poll()
        poll.register(self.control, select.POLLIN)
        if self.listener >= 0:
            poll.register(self.listener, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            asked = ready.get(self.listener, 0) & select.POLLIN
            if asked and sandbox.decide_fork(self.listener, self.allowed):
                self.allowed = 0
            if self.control.fileno() in ready and not self._serve_one():
                return

    def _serve_one(self) -> bool:
        """Answer one request; False when the host has gone."""
        packet, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 4)
        if not packet:
            for pid in tuple(self.sessions):
                self._end(pid)
            return False
        request = json.loads(packet)
        self.dead = [pid for pid in self.dead + request["dead"] if not self._wait(pid, os.WNOHANG)]
        answers = {"open": self._open, "end": self._autopsy, "allow": self._allow}
        try:
            answer, sent = answers.get(request["op"], self._adopt)(request, fds)
        except OSError as error:
            answer, sent = {"error": cells.one_line(error)}, []
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

    def _autopsy(self, request: dict[str, Any], _: list[int]) -> tuple[dict[str, Any], list[int]]:
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

    def _open(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
        family, scratch = _Family(None), request["scratch"] or SCRATCH
        if self.namespaces:
            sandbox.unshare(sandbox.NEWNS)
        try:
            if self.namespaces:
                sandbox.mount_scratch(SCRATCH, FAMILY_BYTES)
                family.mounts = os.open("self/ns/mnt", os.O_RDONLY, dir_fd=self.proc)
            member = self._make_folders(scratch, family, request["limits"]["file_bytes"])
            forks = os.open(member.forks, os.O_PATH)
            pid = os.fork()
            if pid == 0:
                self._become_session(request, member, [*fds, forks])
            os.close(forks)
            # The session has seen the old name in our memory, and cannot list the folder.
            hidden = f"{scratch}/{secrets.token_hex(16)}"
            os.rename(member.forks, hidden)
            member.forks = hidden
            os.chmod(scratch, 0o300)
        except BaseException:
            if family.mounts is not None:
                os.close(family.mounts)
            raise
        finally:
            if self.namespaces:
                sandbox.setns(self.own_mounts, sandbox.NEWNS)
        family.members = 1
        self.sessions[pid] = member
        return {"pid": pid}, [os.pidfd_open(pid)]

    def _become_session(self, request: dict[str, Any], member: _Member, fds: list[int]) -> None:
        status = 70
        try:
            (forks,) = cells.place_descriptors(*fds)
            try:
                self._confine(request["limits"], member.home, forks)
                os.close(forks)
            except BaseException as error:
                cells.send({"setup_error": cells.one_line(error)})
                raise
            _seed(request["seed"])
            memory = request["limits"]["memory_bytes"]
            session = cells.Session(member.home, memory, sandbox.fork_here, self._confine_copy)
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
        sandbox.set_capabilities(self.kept)
        _set_limits(limits, count_processes=self.namespaces)
        sandbox.forbid_inspection()
        sandbox.die_with_parent()
        sandbox.seccomp(self.program)

    def _confine_copy(self, home: str, forks: int) -> None:
        """The rest is inherited."""
        self._restrict_files(home, forks)
        sandbox.die_with_parent()

    def _restrict_files(self, home: str, forks: int) -> None:
        if self.abi:
            sandbox.landlock(self.abi, self.paths, [home, forks])

    # -------------------------------------------------------------------------- copies

    def _allow(self, request: dict[str, Any], _: list[int]) -> tuple[dict[str, Any], list[int]]:
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

    def _adopt(self, request: dict[str, Any], _: list[int]) -> tuple[dict[str, Any], list[int]]:
        """Take the copy that `pid` says it is; without one, make sure that there is none."""
        used, self.allowed = self.allowed == 0, 0
        member, self.prepared = self.prepared, None
        assert member is not None
        member.family.members += 1
        pid = request["copy"]
        if pid and used and pid not in self.sessions and self._is_child(pid):
            # Forks are granted one at a time: no other process can be unknown to us.
            self.sessions[pid] = member
            return {"pid": pid}, [os.pidfd_open(pid)]
        if used:
            self._end_strangers(request["pid"])
        self._release(member)
        return {"error": "there is no copy"}, []

    def _is_child(self, pid: int) -> bool:
        try:
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False

    def _end_strangers(self, parent: int) -> None:
        """Kill what a session has forked without telling."""
        os.kill(parent, signal.SIGSTOP)  # now it is not in the middle of a fork
        os.waitid(os.P_PID, parent, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        for pid in _children(self.proc):
            if pid not in self.sessions:
                self._end(pid)
        os.kill(parent, signal.SIGCONT)


def _set_limits(limits: dict[str, Any], *, count_processes: bool) -> None:
    memory, cpu = int(limits["memory_bytes"]), max(1, round(limits["session_cpu_seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory + cells.REPORT_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    if count_processes:  # elsewhere the user's own processes would count too
        resource.setrlimit(resource.RLIMIT_NPROC, (MOST_TASKS, MOST_TASKS))


def _seed(seed: int) -> None:
    import numpy
    import sympy.core.random

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    sympy.core.random.seed(seed)


if __name__ == "__main__":
    main()
