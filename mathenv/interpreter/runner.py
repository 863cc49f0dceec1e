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

import _imp
import contextlib
import json
import os
import resource
import select
import signal
import site
import socket
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from importlib.machinery import FileFinder, SourceFileLoader
from typing import Any

OOM_SCORE = 500  # of 1000: as if half of the machine's memory were a session's, too
_PACKAGE = "_mathenv"
_FILES = ("cells", "memory", "sandbox", "warmup", "zygote")
# What the import system uses on bytecode whose folder has moved; it also reaches running code.
_rename_file: Any = vars(_imp)["_fix_co_filename"]


def _load(name: str) -> Any:
    """Import a file beside this one, without a trace of where it lies.

    A session has these modules in memory: what its code prints of them, such as the stack,
    must not name folders of the host.
    """
    if _PACKAGE not in sys.modules:
        package = sys.modules[_PACKAGE] = types.ModuleType(_PACKAGE)
        package.__path__ = []
    full_name = f"{_PACKAGE}.{name}"
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{name}.py")
    code: Any = SourceFileLoader(full_name, path).get_code(full_name)
    module = sys.modules[full_name] = types.ModuleType(full_name)
    module.__package__, module.__file__ = _PACKAGE, f"<mathenv>/{name}.py"
    _rename_file(code, module.__file__)
    exec(code, vars(module))
    return module


# Python starts with -S, so that no .pth file runs: what else `site` does is wanted.
site.setquit()
site.setcopyright()
site.sethelper()
cells, memory, sandbox, warmup, zygote = map(_load, _FILES)


# -------------------------------------------------------------------------- launcher


def main() -> None:
    """Launch: `runner.py CONTROL_FD CONFIG`, CONFIG being {tier, uid, scratch, host_pid}.

    The first packet on the socket is the `View` (`packages.py`).
    """
    control = socket.socket(fileno=int(sys.argv[1]))
    config = json.loads(sys.argv[2])
    try:
        host = os.pidfd_open(os.getppid())
        if os.getppid() != config["host_pid"]:
            os._exit(1)
        view = json.loads(control.recv(1 << 20))
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        os.umask(0o022)
        sandbox.adopt_orphans()
        with contextlib.suppress(OSError):  # out of memory, the kernel ends a session, not the host
            sandbox.write_at(proc, "self/oom_score_adj", str(OOM_SCORE))
        _enter_tier(config, view, proc)
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        child = os.fork()
    except BaseException as error:
        control.send(_failure(error))
        os._exit(1)
    if child == 0:
        os.close(host)
        nursery_main(control, config, view, proc)
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


def _enter_tier(config: dict[str, Any], view: dict[str, Any], proc: int) -> None:
    folder = _packages_folder(config)
    links = {f"{folder}/{name}": source for name, source in view["packages"].items()}
    if config["tier"] != "namespaces":
        os.mkdir(folder)
        for path, source in links.items():
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.symlink(source, path)
        return
    root = (view["roots"], view["hidden"], links, (zygote.SCRATCH, zygote.TEMPORARY, "/proc"))
    is_root = os.geteuid() == 0
    if is_root:  # only root can reach libraries below a private home such as /root
        os.setgroups([])
        sandbox.unshare(sandbox.NEWNS)
        sandbox.build_root(*root)
    others = sandbox.NEWPID | sandbox.NEWNET | sandbox.NEWIPC | sandbox.NEWUTS | sandbox.NEWNS
    sandbox.enter_user_namespace(others, config["uid"], proc)
    if not is_root:
        sandbox.build_root(*root)


def _packages_folder(config: dict[str, Any]) -> str:
    """Return the one folder of packages on a session's `sys.path`."""
    return f"{config['scratch'] or ''}/packages"


# --------------------------------------------------------------------------- nursery


def nursery_main(
    control: socket.socket, config: dict[str, Any], view: dict[str, Any], proc: int
) -> None:
    """Warm up, say hello, then fork zygotes until the host closes the socket."""
    try:
        sandbox.die_with_parent()
        hello, rules = _prepare(config, view, proc)
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


def _prepare(config: dict[str, Any], view: dict[str, Any], proc: int) -> tuple[dict[str, Any], Any]:
    """Confine this process as far as all sessions are, and warm it up.

    Returns what the host is told, and the `Confinement` of the sessions.
    """
    tier = config["tier"]
    abi = 0 if tier == "rlimits" else sandbox.landlock_abi()
    if tier == "seccomp" and abi == 0:
        raise OSError("this kernel has no Landlock (needs 5.13 with CONFIG_SECURITY_LANDLOCK)")
    kept = 0
    if tier != "namespaces" and os.geteuid() == 0:
        kept = _leave_root(config, [*view["roots"], *view["packages"].values()])
    sandbox.die_with_parent()  # a change of user clears it
    sandbox.no_new_privileges()
    paths = _readable(config, view)
    if tier == "seccomp":
        exact = _exactly_readable(config, view)
        sandbox.landlock(abi, [*exact, "/proc"], [config["scratch"]])
    sys.path.append(_packages_folder(config))
    cells.prepare_process()
    with _temporary_folder(config) as folder:
        versions = warmup.warm_up(view["preload"], view["numpy_legacy"], folder)
    if tier == "seccomp":
        _keep_listings()
    if _threads(proc) > 1:
        raise RuntimeError(f"preload={view['preload']}: one of them starts threads")
    hot = memory.often_written(warmup.TYPICAL, proc)
    memory.use_huge_pages(proc)
    sandbox.forbid_inspection()
    rules = zygote.Confinement(config["scratch"], paths, abi, kept, proc, hot)
    return {"versions": versions, "landlock": abi}, rules


def _keep_listings() -> None:
    """Keep what the import system knows of folders that sessions may not list.

    `importlib.invalidate_caches()` in a cell would make it forget, and it could not look again: no
    further module of the standard library would be found.
    """
    for finder in sys.path_importer_cache.values():
        if isinstance(finder, FileFinder):
            vars(finder)["invalidate_caches"] = lambda: None


def _threads(proc: int) -> int:
    """Number of threads of this process, those of C code among them."""
    folder = os.open("self/task", os.O_RDONLY, dir_fd=proc)
    try:
        return len(os.listdir(folder))
    finally:
        os.close(folder)


def _readable(config: dict[str, Any], view: dict[str, Any]) -> list[str]:
    """Return what a session may read, as few places as possible.

    With namespaces the file system holds nothing else. In the tier `seccomp` they hold more
    than is on the list: what is on it is left by `_exactly_readable`.
    """
    if config["tier"] == "namespaces":
        return [*view["roots"], _packages_folder(config), "/proc"]  # the last one is empty
    places = {*view["roots"], _packages_folder(config)}
    for source in view["packages"].values():
        folder, name = os.path.split(source)
        while name and name not in ("site-packages", "dist-packages"):
            folder, name = os.path.split(folder)
        places.add(os.path.join(folder, name) if name else source)
    return sorted(places)


def _exactly_readable(config: dict[str, Any], view: dict[str, Any]) -> list[str]:
    """Return what the sessions of the tier `seccomp` may read: hundreds of files and folders.

    The nursery is confined to them, once, and so is all that is forked from it.
    """
    exact = [_packages_folder(config), *view["packages"].values()]
    for root in view["roots"]:
        exact += sandbox.without(os.path.realpath(root), view["hidden"])
    return exact


@contextlib.contextmanager
def _temporary_folder(config: dict[str, Any]) -> Iterator[str]:
    """A folder to write to while libraries are imported."""
    if config["tier"] == "namespaces":
        sandbox.mount_scratch(zygote.TEMPORARY, 16 << 20)
        yield zygote.TEMPORARY
        sandbox.unmount(zygote.TEMPORARY)
        return
    with tempfile.TemporaryDirectory(dir=config["scratch"]) as folder:
        yield folder


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
    _rename_file(sys._getframe().f_code, "<mathenv>/runner.py")
    __file__ = "<mathenv>/runner.py"
    main()
