"""The program that runs model-written code: a warm process that forks confined sessions.

Standard library only (with the files beside it that it loads), started by exec, never
imported by `mathenv`. Four roles, each a fork of the one before:

    launcher   enters the namespaces, waits, and ends everything when the host dies
    nursery    imports sympy, numpy and mpmath once, warms them, forks a zygote on request
    zygote     forks sessions, and decides which of them may fork (`zygote.py`)
    session    confines itself, then runs one cell after another (`cells.py`)

The nursery and the zygotes take one JSON object per packet on a SOCK_SEQPACKET socket, with
descriptors attached, and answer each.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import sysconfig
from importlib.machinery import ModuleSpec
from typing import Any


def _load(name: str) -> Any:
    """Import a file beside this one. Nothing else of that folder can be imported by its name."""
    if _PACKAGE not in sys.modules:
        spec = ModuleSpec(_PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [os.path.dirname(os.path.abspath(__file__))]
        sys.modules[_PACKAGE] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"{_PACKAGE}.{name}")


OOM_SCORE = 500  # of 1000: as if half of the machine's memory were a session's, too
_PACKAGE = "_mathenv"
_FILES = ("cells", "memory", "sandbox", "warmup", "zygote")
cells, memory, sandbox, warmup, zygote = map(_load, _FILES)


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
        with contextlib.suppress(OSError):  # out of memory, the kernel ends a session, not the host
            sandbox.write_at(proc, "self/oom_score_adj", str(OOM_SCORE))
        _enter_tier(config, paths, proc)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        child = os.fork()
    except BaseException as error:
        control.send(_failure(error))
        os._exit(1)
    if child == 0:
        os.close(host)
        nursery_main(control, config, paths, proc)
        os._exit(0)
    control.close()
    _outlive(host, child, proc, config["scratch"])


def _failure(error: BaseException) -> bytes:
    """The message that something went wrong."""
    number = error.errno if isinstance(error, OSError) else None
    return json.dumps({"error": cells.one_line(error), "errno": number}).encode()


def _outlive(host: int, child: int, proc: int, scratch: str | None) -> None:
    """Wait until the host or the nursery ends, then leave nothing behind."""
    nursery = os.pidfd_open(child)
    select.select([host, nursery], [], [])
    select.select([nursery], [], [], 2.0)  # its socket closes with the host: let it end in order
    os.kill(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:  # what a dead process leaves becomes our child
            for pid in zygote.children(proc):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)
    host_died = bool(select.select([host], [], [], 0)[0])
    if scratch and host_died:
        # A cell may have locked folders; all may be this user's, who then must open them.
        opened = ["chmod", "-R", "u+rwx", "--", scratch]
        subprocess.run(opened, check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["rm", "-rf", "--", scratch], check=False)
    os._exit(0)


def _enter_tier(config: dict[str, Any], paths: list[str], proc: int) -> None:
    if config["tier"] != "namespaces":
        return
    is_root = os.geteuid() == 0
    if is_root:  # only root can reach libraries below a private home such as /root
        os.setgroups([])
        sandbox.unshare(sandbox.NEWNS)
        sandbox.build_root(paths, zygote.SCRATCH)
    others = sandbox.NEWPID | sandbox.NEWNET | sandbox.NEWIPC | sandbox.NEWUTS | sandbox.NEWNS
    sandbox.enter_user_namespace(others, config["uid"], proc)
    if not is_root:
        sandbox.build_root(paths, zygote.SCRATCH)


def library_paths() -> list[str]:
    """Directories and files that Python code needs to read; nothing above another one."""
    wanted = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo"]
    wanted += ["/etc/ld.so.cache", "/etc/localtime"]
    wanted += [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    wanted += [os.path.join(prefix, "lib") for prefix in (sys.prefix, sys.base_prefix)]
    wanted += [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    for name in warmup.LIBRARIES:
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
        cells.prepare_process()
        hello = {"versions": warmup.warm_up(), "landlock": abi}
        hot = memory.often_written(warmup.TYPICAL, proc)
        memory.use_huge_pages(proc)
        rules = zygote.Confinement(config["scratch"], paths, abi, kept, proc, hot)
        sandbox.forbid_inspection()
        sandbox.no_new_privileges()
    except BaseException as error:
        control.send(_failure(error))
        return
    control.send(json.dumps(hello).encode())
    while True:
        packet, fds, _, _ = socket.recv_fds(control, 1 << 16, 1)
        if not packet:
            return
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        try:
            child = os.fork()
        except OSError as error:
            socket.socket(fileno=fds[0]).send(_failure(error))  # and close it
            continue
        if child == 0:
            control.close()
            sandbox.die_with_parent()
            zygote.Zygote(socket.socket(fileno=fds[0]), rules).serve()
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


if __name__ == "__main__":
    main()
