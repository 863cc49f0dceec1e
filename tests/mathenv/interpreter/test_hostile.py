"""Hostile cells: each must be held, and the next cell must be answered.

`hostile_more.jsonl` is ours; the shared suite takes longer and may be absent.
"""

import contextlib
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mathenv.errors import InfraError
from mathenv.interpreter import (
    DockerInterpreter,
    Interpreter,
    Limits,
    LocalInterpreter,
    Session,
)
from mathenv.types import ExecutionResult, ExecutionStatus

OWN = Path(__file__).with_name("hostile_more.jsonl")
SHARED = Path(__file__).parents[4] / "shared" / "cases" / "hostile_code.jsonl"
ENDED = (ExecutionStatus.ERROR, ExecutionStatus.DIED, ExecutionStatus.BLOCKED)


def load(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


CASES = load(OWN)
SHARED_CASES = load(SHARED)
# What runs the cells, by name: hosts, and the tiers of the local one.
HOSTS: dict[str, tuple[type, dict[str, Any]]] = {
    tier: (LocalInterpreter, {"tier": tier}) for tier in ("namespaces", "seccomp")
}
if "docker" in os.environ.get("MATHENV_TEST_ENGINES", "").split(","):  # make test-engines
    HOSTS["docker"] = (DockerInterpreter, {"containers": 1})


@pytest.fixture(scope="module", params=list(HOSTS))
def hosts(request):
    """The host twice: with a short limit, for cells that run into it, and a patient one."""
    kind, options = HOSTS[request.param]
    with contextlib.ExitStack() as stack:
        made = []
        for seconds in (2.0, 30.0):  # the next cell is a short one, and must not be late
            limits = Limits(cell_seconds=seconds, memory_bytes=520 << 20)
            try:
                made.append(stack.enter_context(kind(limits, min_tier="seccomp", **options)))
            except InfraError as error:
                pytest.skip(f"{request.param} does not work here: {error}")
        # The one case that would kill every process of this user runs only if it cannot.
        check = made[0].session().run("import os\nos.kill(-1, 0)")
        assert check.output.endswith("PermissionError: [Errno 1] Operation not permitted")
        yield made


def run_all(hosts: list[Interpreter], cases: list[dict]) -> dict[str, list[ExecutionResult]]:
    """Name -> the hostile cell's result, the next cell's, and the same cell's once more."""
    short, patient = hosts

    def run(case: dict) -> list[ExecutionResult]:
        may_be_late = "timeout" in (case["expect"], *case.get("alt_expect", []))
        interpreter = short if may_be_late else patient
        with interpreter.session() as session:
            found = [session.run(case["code"]), session.run(case.get("followup", "40+2"))]
        if case.get("deterministic"):
            with interpreter.session() as session:
                found.append(session.run(case["code"]))
        return found

    with ThreadPoolExecutor(3) as pool:
        return dict(zip((case["name"] for case in cases), pool.map(run, cases), strict=True))


@pytest.fixture(scope="module")
def results(hosts):
    return run_all(hosts, CASES)


@pytest.fixture(scope="module")
def shared_results(hosts):
    return run_all(hosts, SHARED_CASES)


def meets(expect: str, result: ExecutionResult) -> bool:
    match expect:
        case "timeout":
            return result.status is ExecutionStatus.TIMEOUT
        case "error_text":
            return result.status in ENDED and bool(result.output)
        case "blocked":  # some cells print the verdict, os.system returns a failure code
            said = result.output == "BLOCKED" or re.fullmatch(r"-1|[1-9]\d*", result.output)
            return result.status in ENDED or bool(said)
        case "memory_error":
            return result.status is ExecutionStatus.MEMORY
        case "output_truncated":
            return result.truncated
        case "session_survives":
            return not result.session_lost
    raise AssertionError(f"unknown expectation {expect}")


def check(case: dict, result: ExecutionResult, after: ExecutionResult, *again: ExecutionResult):
    assert any(meets(e, result) for e in [case["expect"], *case.get("alt_expect", [])]), result
    hidden = result.output.endswith("PermissionError: [Errno 13] Permission denied: '/proc'")
    assert case.get("must", "") in result.output or hidden
    if result.status not in ENDED:
        assert case.get("must_unless_blocked", "") in result.output
    if "must_not" in case:
        assert not re.search(case["must_not"], result.output)
    assert after.status is ExecutionStatus.OK, after
    assert after.output.splitlines()[-1] == case.get("followup_out", "42")
    assert all(r.output == result.output for r in again)


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_hostile_cell(results, case):
    check(case, *results[case["name"]])


@pytest.mark.slow
@pytest.mark.timeout(600)  # the first one waits for all of them to be played
@pytest.mark.skipif(not SHARED_CASES, reason="../shared/cases/hostile_code.jsonl is missing")
@pytest.mark.parametrize("case", SHARED_CASES, ids=[case["name"] for case in SHARED_CASES])
def test_shared_hostile_cell(shared_results, case):
    check(case, *shared_results[case["name"]])


def test_hostile_copies_do_not_touch_their_parent(hosts):
    with hosts[0].session() as parent, ThreadPoolExecutor(4) as pool:
        parent.run("kept = [1]\nopen('f', 'w').write('f')")

        def run(case: dict, copy: Session) -> str:
            with contextlib.closing(copy):
                copy.run(case["code"])
                return copy.run("print()\nkept if 'kept' in vars() else 'gone'").output

        runs = [pool.submit(run, case, parent.fork()) for case in CASES]
        answers = {run.result().splitlines()[-1] for run in runs}
        assert {"[1]", "'gone'"} <= answers
        assert parent.run("kept, open('f').read()").output == "([1], 'f')"
