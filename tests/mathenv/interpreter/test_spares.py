"""Sessions that a zygote has prepared before they are asked for are like any other."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mathenv.errors import ConfigError
from mathenv.interpreter import Limits, LocalInterpreter
from mathenv.interpreter.local import LocalSession
from mathenv.types import ExecutionStatus

LIMITS = Limits(cell_seconds=60.0, memory_bytes=512 << 20)
RANDOM = (
    "import random, numpy, sympy.core.random as s\nrandom.random(), numpy.random.rand(), s.random()"
)


@pytest.fixture(params=["namespaces", "seccomp"])
def tier(request) -> Iterator[LocalInterpreter]:
    with LocalInterpreter(LIMITS, tier=request.param, zygotes=1) as interpreter:
        yield interpreter


def process_of(session: LocalSession) -> int:
    """Process id as this process sees it."""
    text = Path(f"/proc/self/fdinfo/{session._process.pidfd}").read_text()
    return int(re.search(r"Pid:\s+(\d+)", text)[1])


def status_of(process: int, field: str) -> str:
    try:
        return re.search(rf"{field}:\s+(\w+)", Path(f"/proc/{process}/status").read_text())[1]
    except (FileNotFoundError, ProcessLookupError):
        return ""


@pytest.fixture
def spare(running) -> Callable[[LocalSession], int]:
    """Start a session and wait for the process of the spare one beside it."""

    def wait(session: LocalSession) -> int:
        session.run("1")
        zygote = status_of(process_of(session), "PPid")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for process in running(os.getpid()) - {process_of(session)}:
                if status_of(process, "PPid") == zygote:
                    return process
            time.sleep(0.01)
        raise AssertionError("no spare session came")

    return wait


def test_the_next_session_is_the_spare_one(tier, spare):
    with tier.session() as first, tier.session() as second:
        expected = spare(first)
        second.run("1")
        assert process_of(second) == expected


def test_a_spare_session_is_as_empty_and_as_seeded_as_another(tier, spare):
    with tier.session(seed=5) as first, tier.session(seed=5) as second:
        spare(first)
        assert first.run(RANDOM).output == second.run(RANDOM).output
        for code in ("sorted(dir())[:3]", "import os\nos.listdir()", "sorted(os.environ)"):
            assert first.run(code).output == second.run(code).output


def test_a_spare_session_is_confined(tier, spare):
    with tier.session() as first, tier.session() as second:
        spare(first)
        for code in (
            "import os\nos.fork()",
            "open('/etc/passwd')",
            "import socket\nsocket.socket()",
            "import os\nos.kill(os.getppid(), 9)",
        ):
            assert (
                second.run(code)
                .output.splitlines()[-1]
                .startswith(("PermissionError", "FileNotFoundError", "ProcessLookupError"))
            )
        assert second.run("a = bytearray(10**10)").status is ExecutionStatus.MEMORY


def test_a_spare_session_that_died_is_not_handed_out(tier, spare):
    with tier.session() as first, tier.session() as second:
        process = spare(first)
        os.kill(process, signal.SIGKILL)
        while status_of(process, "State") not in ("Z", ""):
            time.sleep(0.01)
        assert second.run("1 + 1").output == "2"


def test_a_spare_session_has_the_limits_of_the_call(tier, spare):
    with tier.session() as first, tier.session() as second:
        old = spare(first)
        tier.limits = replace(tier.limits, memory_bytes=300 << 20)
        code = "import resource\nresource.getrlimit(resource.RLIMIT_AS)[0] >> 20"
        assert second.run(code).output == "300"
        assert process_of(second) != old
        assert first.run(code).output == "512"


def test_without_spares_there_are_none(running, launchers):
    others = launchers(os.getpid())
    with LocalInterpreter(LIMITS, zygotes=1, spares=0) as interpreter:
        with interpreter.session() as session:
            session.run("1")
            time.sleep(0.3)
            assert len(running(os.getpid(), others)) == 4  # launcher, nursery, zygote, session
    with pytest.raises(ConfigError, match="spares must be an integer of at least 0, got -1"):
        LocalInterpreter(spares=-1)
