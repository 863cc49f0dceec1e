"""Interpreters shared by the tests of this folder.

A test that takes `interpreter` or `make_interpreter` speaks only to the protocols of
`mathenv.interpreter.base`, so it runs over every host in `HOSTS`.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

from mathenv.interpreter import DockerInterpreter, Interpreter, Limits, LocalInterpreter

HOSTS: dict[str, Callable[..., Interpreter]] = {"local": LocalInterpreter}
if "docker" in os.environ.get("MATHENV_TEST_ENGINES", "").split(","):  # make test-engines
    HOSTS["docker"] = DockerInterpreter


@pytest.fixture(scope="package", params=list(HOSTS))
def make_interpreter(request) -> Callable[..., Interpreter]:
    """Make an interpreter of the host under test; the arguments are those of its class."""
    return HOSTS[request.param]


@pytest.fixture(scope="package")
def hasty(make_interpreter) -> Iterator[Interpreter]:
    """For cells that run into their time limit; those that can stop have time to say so."""
    limits = Limits(cell_seconds=2.0, grace_seconds=2.0, memory_bytes=512 << 20)
    with make_interpreter(limits) as interpreter:
        yield interpreter


@pytest.fixture(scope="package")
def interpreter(make_interpreter) -> Iterator[Interpreter]:
    """For all others: they end by themselves, however slow the machine is."""
    limits = Limits(cell_seconds=60.0, memory_bytes=512 << 20)
    with make_interpreter(limits) as interpreter:
        if interpreter.description["tier"] == "rlimits":
            pytest.skip("no sandbox that hides files works on this machine")
        yield interpreter


def families_of(host_pid: int) -> dict[int, set[int]]:
    """Ids of the helpers and sessions of a host, by the launcher that they descend from.

    What has outlived its launcher stands under the id of its oldest ancestor.
    """
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text()  # forks share it
                status = (entry / "status").read_text()
            except OSError:
                continue
            if "runner.py" in command and f'"host_pid": {host_pid}}}' in command:
                parents[int(entry.name)] = int(status.split("\nPPid:")[1].split()[0])
    families: dict[int, set[int]] = {}
    for process in parents:
        eldest = process
        while parents[eldest] in parents:
            eldest = parents[eldest]
        families.setdefault(eldest, set()).add(process)
    return families


NOBODY: frozenset[int] = frozenset()


def processes_of(host_pid: int, besides: AbstractSet[int] = NOBODY) -> set[int]:
    families = families_of(host_pid)
    return set().union(*(families[launcher] for launcher in families.keys() - besides))


@pytest.fixture(scope="session")
def launchers() -> Callable[[int], set[int]]:
    """Ids of the launchers that a host process has now.

    The interpreters of other tests go on preparing sessions, so that a test that counts
    processes leaves out the families of these.
    """
    return lambda host_pid: set(families_of(host_pid))


@pytest.fixture(scope="session")
def running() -> Callable[..., set[int]]:
    """Ids of the helpers and local sessions of a host now, but for the families `besides`."""
    return processes_of


@pytest.fixture(scope="session")
def left_over() -> Callable[..., set[int]]:
    """Those that still run after some seconds, besides the ones in `expected`."""

    def wait(
        host_pid: int,
        expected: AbstractSet[int] = NOBODY,
        besides: AbstractSet[int] = NOBODY,
        seconds: float = 60.0,
    ) -> set[int]:
        deadline = time.monotonic() + seconds
        while left := processes_of(host_pid, besides) - expected:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return left

    return wait


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """An empty folder that any user reaches, as `/tmp` is: pytest's own are its user's alone."""
    folder = Path(tempfile.mkdtemp(prefix="mathenv-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
