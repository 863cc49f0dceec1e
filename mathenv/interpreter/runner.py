"""The program that runs model-written code: a warm process that forks confined sessions.

One file, standard library only (plus `sandbox.py` beside it), started by exec, never
imported by `mathenv`. Three roles, each a fork of the one before:

    launcher   enters the namespaces, waits, and ends everything when the host dies
    zygote     imports sympy, numpy and mpmath once, warms them, forks a session on request
    session    confines itself, then runs one cell after another

Wire formats: the zygote takes one JSON object per packet on a SOCK_SEQPACKET socket, with
the session's descriptors attached. A session takes and sends frames: 4 bytes of length,
big-endian, then JSON.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ast
import builtins
import contextlib
import gc
import importlib.util
import json
import linecache
import mmap
import os
import platform
import random
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
import traceback
import types
import warnings
from typing import Any, TextIO

MAX_FRAME = 1 << 20
PRELOAD = ("sympy", "numpy", "mpmath")
SCRATCH = "/scratch"
REPORT_BYTES = 64 << 20  # address space a session may use to report that it has run out
ERROR_CHARS = 4000

# Code that runs in a cell may replace any of these in their modules.
_repr, _settrace, _setprofile = repr, sys.settrace, sys.setprofile
_set_handler, _ignore = _signal.signal, _signal.SIG_IGN  # in C: not seen by a trace hook
_raise_interrupt = signal.default_int_handler
_saved_builtins = dict(vars(builtins))
_restore_builtins = vars(builtins).update


def _load_sandbox() -> Any:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sandbox.py")
    spec = importlib.util.spec_from_file_location("_mathenv_sandbox", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -------------------------------------------------------------------------- launcher


def main() -> None:
    """Launch: `runner.py CONTROL_FD CONFIG`, CONFIG being {tier, uid, scratch, host_pid}."""
    control = socket.socket(fileno=int(sys.argv[1]))
    config = json.loads(sys.argv[2])
    try:
        host = os.pidfd_open(os.getppid())
        if os.getppid() != config["host_pid"]:
            os._exit(1)
        sandbox = _load_sandbox()
        paths = library_paths()
        _enter_tier(sandbox, config, paths)
        child = os.fork()
    except BaseException as error:
        control.send(json.dumps({"error": _one_line(error)}).encode())
        os._exit(1)
    if child == 0:
        os.close(host)
        zygote_main(sandbox, control, config, paths)
        os._exit(0)
    control.close()
    _outlive(host, child, config["scratch"])


def _outlive(host: int, child: int, scratch: str | None) -> None:
    """Wait until the host or the zygote ends, then leave nothing behind."""
    zygote = os.pidfd_open(child)
    select.select([host, zygote], [], [])
    select.select([zygote], [], [], 2.0)  # its socket closes with the host: let it end in order
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    host_died = bool(select.select([host], [], [], 0)[0])
    if scratch and host_died:
        subprocess.run(["rm", "-rf", "--", scratch], check=False)
    os._exit(0)


def _enter_tier(sandbox: Any, config: dict[str, Any], paths: list[str]) -> None:
    if config["tier"] != "namespaces":
        return
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    is_root = os.geteuid() == 0
    if is_root:  # only root can reach libraries below a private home such as /root
        os.setgroups([])
        sandbox.unshare(sandbox.NEWNS)
        sandbox.build_root(paths, SCRATCH)
    others = sandbox.NEWPID | sandbox.NEWNET | sandbox.NEWIPC | sandbox.NEWUTS | sandbox.NEWNS
    sandbox.enter_user_namespace(others, config["uid"], proc)
    if not is_root:
        sandbox.build_root(paths, SCRATCH)
    os.close(proc)


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


# ---------------------------------------------------------------------------- zygote


def zygote_main(
    sandbox: Any, control: socket.socket, config: dict[str, Any], paths: list[str]
) -> None:
    """Warm up, say hello, then serve requests until the host closes the socket."""
    try:
        sandbox.die_with_parent()
        abi = 0 if config["tier"] == "rlimits" else sandbox.landlock_abi()
        if config["tier"] == "seccomp" and abi == 0:
            raise OSError("this kernel has no Landlock (needs 5.13 with CONFIG_SECURITY_LANDLOCK)")
        kept = 0
        if config["tier"] != "namespaces" and os.geteuid() == 0:
            kept = _leave_root(sandbox, config, paths)
        sandbox.die_with_parent()  # a change of user clears it
        sys.path[:] = [p for p in sys.path if any(f"{p}/".startswith(f"{k}/") for k in paths)]
        hello = {"versions": _warm_up(), "landlock": abi}
        sandbox.forbid_inspection()
    except BaseException as error:
        control.send(json.dumps({"error": _one_line(error)}).encode())
        return
    control.send(json.dumps(hello).encode())
    zygote = _Zygote(sandbox, control, paths, config["tier"] == "namespaces", abi, kept)
    while zygote.serve_one():
        pass


def _leave_root(sandbox: Any, config: dict[str, Any], paths: list[str]) -> int:
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


def _warm_up() -> dict[str, str]:
    """Import the libraries and run them once, so that every session starts with warm caches."""
    import mpmath  # type: ignore[import-untyped]
    import numpy
    import sympy

    x = sympy.Symbol("x")
    sympy.factor(x**3 - 1)
    sympy.solve(x**3 - 8, x)
    sympy.solve([x**2 - 2], [x])
    sympy.simplify(sympy.sin(x) ** 2 + sympy.cos(x) ** 2)
    sympy.integrate(x * sympy.exp(x), x)
    sympy.latex(sympy.Rational(1, 3) + sympy.sqrt(2))
    sympy.limit(sympy.sin(x) / x, x, 0)
    sympy.Matrix([[1, 2], [3, 4]]).inv()
    sympy.factorint(10**9 + 8)
    sympy.N(sympy.pi, 30)
    numpy.random.seed(0)
    numpy.linalg.solve(numpy.eye(2), numpy.ones(2))
    mpmath.quad(mpmath.sin, [0, 1])
    gc.collect()
    gc.freeze()  # the collector leaves these objects alone: their pages stay shared
    modules = (sympy, numpy, mpmath)
    return {"python": platform.python_version()} | {m.__name__: m.__version__ for m in modules}


class _Zygote:
    """Forks sessions and collects their exit codes. Single-threaded."""

    def __init__(
        self,
        sandbox: Any,
        control: socket.socket,
        paths: list[str],
        namespaces: bool,
        abi: int,
        kept: int,
    ) -> None:
        self.sandbox, self.control, self.paths = sandbox, control, paths
        self.namespaces, self.abi, self.kept = namespaces, abi, kept
        self.children: set[int] = set()  # not yet waited for
        self.dead: list[int] = []  # those of them that the host has killed
        if namespaces:
            self.own_pids = os.pidfd_open(os.getpid())
            self.program = sandbox.seccomp_filter(1)

    def serve_one(self) -> bool:
        """Answer one request; False when the host has gone."""
        packet, fds, _, _ = socket.recv_fds(self.control, 1 << 16, 4)
        if not packet:
            for pid in tuple(self.children):
                self._end(pid)
            return False
        request = json.loads(packet)
        self.dead = [pid for pid in self.dead + request["dead"] if not self._wait(pid, os.WNOHANG)]
        try:
            if request["op"] == "open":
                pid, pidfd = self._open(request, fds)
                socket.send_fds(self.control, [json.dumps({"pid": pid}).encode()], [pidfd])
                os.close(pidfd)
            else:
                self.control.send(json.dumps(self._end(request["pid"])).encode())
        except OSError as error:
            self.control.send(json.dumps({"error": _one_line(error)}).encode())
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _wait(self, pid: int, flags: int) -> dict[str, float] | None:
        """How a child ended (exit code, or minus the signal); None while it runs."""
        done, status, usage = os.wait4(pid, flags)
        if not done:
            return None
        self.children.discard(pid)
        code = os.waitstatus_to_exitcode(status)
        return {"code": code, "cpu": usage.ru_utime + usage.ru_stime, "rss": usage.ru_maxrss * 1024}

    def _end(self, pid: int) -> dict[str, float] | None:
        """Kill a session if it still runs and say how it ended."""
        os.kill(pid, signal.SIGKILL)
        return self._wait(pid, 0)

    def _open(self, request: dict[str, Any], fds: list[int]) -> tuple[int, int]:
        if self.namespaces:
            self.sandbox.unshare(self.sandbox.NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                self._become_session(request, fds)
        finally:
            if self.namespaces:
                self.sandbox.setns(self.own_pids, self.sandbox.NEWPID)
        self.children.add(pid)
        return pid, os.pidfd_open(pid)

    def _become_session(self, request: dict[str, Any], fds: list[int]) -> None:
        status = 70
        try:
            channel, output = _place_descriptors(*fds)
            try:
                scratch = self._confine(request)
            except BaseException as error:
                _send(channel, {"setup_error": _one_line(error)})
                raise
            _seed(request["seed"])
            session = Session(channel, output, scratch, request["limits"]["memory_bytes"])
            _send(channel, {"ready": True})
            session.serve()
            status = 0
        finally:
            os._exit(status)

    def _confine(self, request: dict[str, Any]) -> str:
        """Give up everything a cell does not need. The order matters: seccomp comes last."""
        sandbox, limits = self.sandbox, request["limits"]
        os.setsid()
        scratch: str = request["scratch"] or SCRATCH
        if self.namespaces:
            sandbox.unshare(sandbox.NEWNS)
            sandbox.mount_scratch(SCRATCH, limits["file_bytes"])
            sandbox.unshare(sandbox.NEWUSER)  # own process count; no id is mapped
        else:
            os.mkdir(scratch, 0o700)
        os.chdir(scratch)
        os.environ["HOME"] = os.environ["TMPDIR"] = scratch
        sandbox.no_new_privileges()
        if self.abi:
            empty = ["/proc"] if self.namespaces else []  # listing it shows no process
            sandbox.landlock(self.abi, self.paths + empty, [scratch])
        sandbox.set_capabilities(self.kept)
        _set_limits(limits, count_processes=self.namespaces)
        sandbox.forbid_inspection()
        sandbox.die_with_parent()
        program = self.program if self.namespaces else sandbox.seccomp_filter(os.getpid())
        sandbox.seccomp(program)
        return scratch


# --------------------------------------------------------------------------- session


def _place_descriptors(channel: int, output: int) -> tuple[int, int]:
    """Put the frame channel at 3 and the output at 1, 2 and 4; close everything else."""
    channel, output = os.dup(channel), os.dup(output)
    while channel < 5 or output < 5:
        channel, output = os.dup(channel), os.dup(output)
    for source, target in ((output, 1), (output, 2), (channel, 3), (output, 4)):
        os.dup2(source, target)
    os.closerange(5, 1 << 16)
    return 3, 4


def _show_unraisable(event: Any) -> None:
    """Report an exception from a finaliser without frames of ours."""
    print(f"Exception ignored: {_report(event.exc_value)}", file=sys.stderr)


def _set_limits(limits: dict[str, Any], *, count_processes: bool) -> None:
    memory, cpu = int(limits["memory_bytes"]), max(1, round(limits["session_cpu_seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory + REPORT_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits["file_bytes"],) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    if count_processes:  # threads count too; elsewhere the user's own processes would
        resource.setrlimit(resource.RLIMIT_NPROC, (256, 256))


def _seed(seed: int) -> None:
    import numpy
    import sympy.core.random

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    sympy.core.random.seed(seed)


def _read_exactly(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(fd, size - len(data))
        if not chunk:
            os._exit(0)  # the host closed the session
        data += chunk
    return data


def _receive(fd: int) -> dict[str, Any]:
    (size,) = struct.unpack(">I", _read_exactly(fd, 4))
    request: dict[str, Any] = json.loads(_read_exactly(fd, size))
    return request


def _send(fd: int, message: dict[str, Any]) -> None:
    body = json.dumps(message).encode()
    data = struct.pack(">I", len(body)) + body
    while data:
        data = data[os.write(fd, data) :]


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:ERROR_CHARS]


class Session:
    """Runs cells in one namespace and answers each with a frame."""

    def __init__(self, channel: int, output: int, scratch: str, memory: int) -> None:
        self.channel, self.output, self.scratch, self.memory = channel, output, scratch, memory
        self.count = 0
        self.runner = sys.modules["__main__"]
        self.module = sys.modules["__main__"] = types.ModuleType("__main__")
        self.streams: dict[str, TextIO] = {}
        sys.argv[:] = [""]
        sys.set_int_max_str_digits(0)  # the time limit bounds long conversions
        sys.unraisablehook = _show_unraisable
        for category in (DeprecationWarning, FutureWarning, SyntaxWarning):
            warnings.simplefilter("ignore", category)

    def serve(self) -> None:
        """Answer requests until the host closes the channel."""
        while True:
            try:
                request = _receive(self.channel)
                reply = self.run_cell(request["code"])
                _send(self.channel, {"nonce": request["nonce"], **reply})
            except KeyboardInterrupt:  # too late to stop the cell: the host will decide
                continue

    def run_cell(self, code: str) -> dict[str, Any]:
        """Run one cell; the reply holds status, text, lost, threads."""
        self.count += 1
        self._prepare()
        status, text, lost = "ok", "", False
        try:
            try:
                # The C handler leaves no frame of ours in a traceback.
                _set_handler(signal.SIGINT, _raise_interrupt)
                text = self._evaluate(code, f"<cell {self.count}>")
            finally:
                _set_handler(signal.SIGINT, _ignore)
                _restore_builtins(_saved_builtins)
                _settrace(None)
                _setprofile(None)
        except MemoryError as error:
            status, text, lost = "memory", *self._report_memory(error)
        except BaseException as error:
            _set_handler(signal.SIGINT, _ignore)
            _restore_builtins(_saved_builtins)
            status, text = "error", _report(error)
        self._flush()
        text, omitted = _cut(text, ERROR_CHARS if status != "ok" else MAX_FRAME // 16)
        threads = threading.active_count()
        return {
            "status": status,
            "text": text,
            "omitted": omitted,
            "lost": lost,
            "threads": threads,
        }

    def _prepare(self) -> None:
        """Undo what an earlier cell may have done to the process."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
            stream = self.streams.get(name)
            if stream is None or stream.closed:
                if number:
                    os.dup2(self.output, number)
                self.streams[name] = stream = _open_stream(number)
            setattr(sys, name, stream)
        with contextlib.suppress(OSError):  # the cell removed it
            os.chdir(self.scratch)
        namespace = vars(self.module)
        namespace["__name__"], namespace["__builtins__"] = "__main__", builtins

    def _evaluate(self, code: str, name: str) -> str:
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree = ast.parse(code, name)
        last = tree.body[-1] if tree.body else None
        echo = isinstance(last, ast.Expr) and not code.rstrip().endswith(";")
        if isinstance(last, ast.Expr) and echo:
            tree.body.pop()
        namespace = vars(self.module)
        exec(compile(tree, name, "exec", dont_inherit=True), namespace)
        if not (isinstance(last, ast.Expr) and echo):
            return ""
        value = eval(
            compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace
        )
        return "" if value is None else _repr(value)

    def _report_memory(self, error: MemoryError) -> tuple[str, bool]:
        """Describe the error with some spare memory; say whether the session is still usable."""
        hard = self.memory + REPORT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        text = _report(error)
        error.__traceback__ = None  # frees what the failed call had built
        gc.collect()
        resource.setrlimit(resource.RLIMIT_AS, (self.memory, hard))
        try:
            mmap.mmap(-1, self.memory // 4).close()
        except OSError:
            return text, True
        return text, False

    def _flush(self) -> None:
        for name in ("stdout", "stderr"):
            with contextlib.suppress(OSError, ValueError):  # closed by the cell
                self.streams[name].flush()


def _open_stream(number: int) -> TextIO:
    if number == 0:
        return open(0, encoding="utf-8", closefd=False)
    # Line-buffered: a cell that is killed has shown what it printed until then.
    return open(number, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _report(error: BaseException) -> str:
    """Traceback from the cell's own frame on: its first two frames and the last four."""
    try:
        frames = list(traceback.walk_tb(error.__traceback__))
        while frames and not frames[0][0].f_code.co_filename.startswith("<cell "):
            frames.pop(0)
        lines = ["Traceback (most recent call last):\n"] if frames else []
        skipped = max(0, len(frames) - 6)
        shown = frames[:2] + frames[2 + skipped :] if skipped else frames
        for position, (frame, line) in enumerate(shown):
            if skipped and position == 2:
                lines.append(f"  [... {skipped} frames cut ...]\n")
            code = frame.f_code
            lines.append(
                f'  File "{_short_path(code.co_filename)}", line {line}, in {code.co_name}\n'
            )
            source = linecache.getline(code.co_filename, line).strip()
            lines += [f"    {source}\n"] if source else []
        return "".join(lines + traceback.format_exception_only(error)).rstrip("\n")
    except Exception:  # the exception's own code failed while being shown
        return type(error).__name__


def _short_path(path: str) -> str:
    for directory in sys.path:
        if isinstance(directory, str) and path.startswith(directory + "/"):
            return path[len(directory) + 1 :]
    return path


def _cut(text: str, limit: int) -> tuple[str, int]:
    """Keep head and tail; the cut is between the halves. Returns the characters left out."""
    if len(text) <= limit:
        return text, 0
    half = limit // 2
    return text[:half] + text[-half:], len(text) - 2 * half


if __name__ == "__main__":
    main()
