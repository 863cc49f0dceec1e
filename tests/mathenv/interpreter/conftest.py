"""Interpreters shared by the tests of this folder.

A test that takes `interpreter` or `make_interpreter` speaks only to the protocols of
`mathenv.interpreter.base`, so it runs over every host in `HOSTS`.
"""

import os
import time
from collections.abc import Callable, Iterator
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
    """For cells that run into their time limit."""
    with make_interpreter(Limits(cell_seconds=2.0, memory_bytes=512 << 20)) as interpreter:
        yield interpreter


@pytest.fixture(scope="package")
def interpreter(make_interpreter) -> Iterator[Interpreter]:
    """For all others: they end by themselves, however slow the machine is."""
    limits = Limits(cell_seconds=60.0, memory_bytes=512 << 20)
    with make_interpreter(limits) as interpreter:
        if interpreter.description["tier"] == "rlimits":
            pytest.skip("no sandbox that hides files works on this machine")
        yield interpreter


def processes_of(host_pid: int) -> set[int]:
    """Ids of the helpers and sessions of a host (forks share their command line)."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if "runner.py" in command and f'"host_pid": {host_pid}}}' in command:
                found.add(int(entry.name))
    return found


@pytest.fixture(scope="session")
def running() -> Callable[[int], set[int]]:
    """Ids of the helper processes and local sessions that a host process has now."""
    return processes_of


@pytest.fixture(scope="session")
def left_over() -> Callable[..., set[int]]:
    """Those that still run after some seconds, besides the ones in `expected`."""

    def wait(host_pid: int, expected: set[int] = frozenset(), seconds: float = 30.0) -> set[int]:
        deadline = time.monotonic() + seconds
        while (left := processes_of(host_pid) - expected) and time.monotonic() < deadline:
            time.sleep(0.02)
        return left

    return wait
