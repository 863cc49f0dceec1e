r"""The symbolic worker: a program, never imported. Compares LaTeX answers with math-verify.

Reads one JSON object a line from standard input (`id`, `gold`, `answer`, `options`, `cpu`,
`wall`) and writes one a line to standard output (`id`, `verdict`, `detail`, `cpu`). The
process started by `pool.py` imports math-verify once and then only forks: the child gives up
all it does not need and does the work, and a child that overruns its limits dies by signal and
is replaced in milliseconds, without importing sympy again. Model text is parsed as LaTeX only,
never by `sympify` or `eval`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import sysconfig
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

_HERE = os.path.dirname(os.path.abspath(__file__))


def _load(name: str, *path: str) -> ModuleType:
    """Load a file beside this one: `mathenv` itself may not be importable here."""
    spec = importlib.util.spec_from_file_location(name, os.path.join(_HERE, *path))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


_load("_mathenv_evaluate", "evaluate.py")  # `values.py` uses it, and `leaf.py` that
_load("_mathenv_values", "values.py")
leaf = _load("_mathenv_leaf", "leaf.py")
sandbox = _load("_mathenv_sandbox", "..", "interpreter", "sandbox.py")

JOBS_PER_CHILD = 500  # sympy's caches only grow
_RECYCLE = 10  # exit status of a child that has done its jobs
_DESCRIPTORS = 64
_MAX_FAILURES = 3  # children that end without having done anything

IDLE = 0  # other stages: see `leaf.py`
_STATE = struct.Struct("qq")  # job id, stage: shared with the parent across the fork


# ----------------------------------------------------------------------- confinement


def confine(megabytes: int) -> str:
    """Give up what comparing does not need; return what is on, for the run's records.

    Everywhere: memory, no files written, no core. On Linux also: no new process, no socket, no
    file but the libraries, no signal to others (Landlock, seccomp), as for interpreter cells.
    """
    for limit, value in (
        (resource.RLIMIT_AS, megabytes * 1024**2),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS),
        (resource.RLIMIT_NPROC, 0),
    ):
        with contextlib.suppress(ValueError, OSError):  # macOS has no limit on memory
            resource.setrlimit(limit, (value, value))
    active = ["rlimits"]
    try:
        sandbox.no_new_privileges()
        sandbox.die_with_parent()
        sandbox.forbid_inspection()
        if abi := sandbox.landlock_abi():
            sandbox.landlock(abi, _libraries(), [])
            active.append("landlock")
        sandbox.set_capabilities(0)
        sandbox.seccomp(sandbox.seccomp_filter(False))  # no forks
        active.append("seccomp")
    except (OSError, AttributeError):  # an old kernel, another system: what is on stays on
        pass
    return "+".join(active)


def _libraries() -> list[str]:
    """Where sympy's lazy imports find modules."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    wanted = {sysconfig.get_path(name) for name in names}
    wanted |= {path for path in sys.path if path.endswith(("-packages", "lib-dynload"))}
    return sorted(path for path in wanted if path and os.path.isdir(path))


def attempts() -> dict[str, str]:
    """Try what a hijacked worker would try; return how each attempt ended."""
    tries: dict[str, Callable[[], object]] = {
        "read a file": lambda: os.close(os.open("/etc/passwd", os.O_RDONLY)),
        "list a folder": lambda: os.listdir("/"),
        "write a file": lambda: os.close(os.open("/tmp/owned", os.O_CREAT | os.O_WRONLY)),
        "open a socket": lambda: socket.socket().close(),
        "start a process": _start_process,
        "run a program": lambda: os.execv("/bin/true", ["true"]),
        "signal its parent": lambda: os.kill(os.getppid(), 0),
        "take 2 GiB": lambda: bytearray(2 * 1024**3),
    }
    outcome = {}
    for name, attempt in tries.items():
        try:
            attempt()
            outcome[name] = "allowed"
        except (OSError, MemoryError) as error:
            outcome[name] = f"refused: {type(error).__name__}"
    return outcome


def _start_process() -> None:
    if os.fork() == 0:
        os._exit(0)
    os.wait()


# ------------------------------------------------------------------------------ jobs


def _serve(job: dict[str, Any], state: mmap.mmap) -> tuple[str, str]:
    if job.get("check"):
        return "checked", json.dumps(attempts())

    def stage(number: int) -> None:
        state[:] = _STATE.pack(job["id"], number)

    stage(leaf.COMPARING)
    verdict, detail = leaf.compare(job["gold"], job["answer"], job["options"], stage)
    return str(verdict), str(detail)


def _work(replies: int, state: mmap.mmap, megabytes: int) -> NoReturn:
    """Serve jobs until end of input or `JOBS_PER_CHILD`. Never returns."""
    confine(megabytes)
    with open(0, "rb", closefd=False) as jobs:
        for _ in range(JOBS_PER_CHILD):
            line = jobs.readline()
            if not line:
                os._exit(0)
            job = json.loads(line)
            started = time.process_time()
            # Default actions: the kernel ends the process even inside C code.
            signal.setitimer(signal.ITIMER_PROF, job["cpu"])
            signal.setitimer(signal.ITIMER_REAL, job["wall"])
            try:
                verdict, detail = _serve(job, state)
            except MemoryError:
                os._exit(1)
            except RecursionError:
                verdict, detail = "limit", "nested too deeply"
            except Exception as error:
                verdict, detail = "unparsed", f"{type(error).__name__}: {error}"[:200]
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            state[:] = _STATE.pack(0, IDLE)
            spent = time.process_time() - started
            _reply(replies, {"id": job["id"], "verdict": verdict, "detail": detail, "cpu": spent})
    os._exit(_RECYCLE)


def _reply(replies: int, message: dict[str, Any]) -> None:
    os.write(replies, json.dumps(message).encode() + b"\n")  # below PIPE_BUF: atomic


# What no comparison brings upon itself: a child has no limit that ends in one of these.
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def _obituary(status: int, peak: int, state: mmap.mmap, most: int) -> dict[str, Any] | None:
    """Describe the job that the dead child was working on, if any.

    `peak` and `most` are the bytes it used and those it may use: where it is near the limit, the
    kernel that has run out of memory killed the right one.
    """
    job, stage = _STATE.unpack(state[:])
    if stage == IDLE:
        return None
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in _FROM_OUTSIDE and peak < most / 2:
        name = signal.Signals(number).name
        verdict, detail = "infra", f"the grading worker was killed from outside ({name})"
    elif number == signal.SIGALRM:
        verdict, detail = "infra", "wall limit reached before the CPU limit: overloaded machine"
    elif stage == leaf.PARSING_GOLD:
        verdict, detail = "gold_error", "the reference answer takes too long to parse"
    elif number == signal.SIGPROF:
        verdict, detail = "timeout", "CPU limit reached"
    else:
        verdict, detail = "limit", f"memory limit or crash (signal {number})"
    return {"id": job, "verdict": verdict, "detail": detail, "cpu": math.inf}


def main() -> None:
    """Fork children until the input ends."""
    leaf.check_ground_types()
    megabytes = int(sys.argv[1])
    replies = os.dup(1)
    os.dup2(2, 1)  # a stray print must not look like a reply
    leaf.warm_up()
    state = mmap.mmap(-1, _STATE.size)
    active = _confinement(megabytes)
    if not active:
        sys.exit("the worker could not confine itself")
    _reply(replies, {"id": 0, "verdict": "ready", "detail": active, "cpu": 0.0})
    failures = 0
    while failures < _MAX_FAILURES:
        state[:] = _STATE.pack(0, IDLE)
        child = os.fork()
        if child == 0:
            _work(replies, state, megabytes)
        _, status, usage = os.wait4(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            return
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        message = _obituary(status, peak, state, megabytes * 1024**2)
        if message is not None:
            _reply(replies, message)
        served = message is not None or os.waitstatus_to_exitcode(status) == _RECYCLE
        failures = 0 if served else failures + 1


def _confinement(megabytes: int) -> str:
    """Confine a child only to learn what this machine offers."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, confine(megabytes).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        active = stream.read().decode()
    os.waitpid(child, 0)
    return active


if __name__ == "__main__":
    main()
