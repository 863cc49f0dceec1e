"""The shared suite of hostile cells: each must be held, and the next cell must be answered."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mathenv.interpreter import Limits, LocalInterpreter
from mathenv.types import ExecutionResult, ExecutionStatus

SUITE = Path(__file__).parents[4] / "shared" / "cases" / "hostile_code.jsonl"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SUITE.exists(), reason="../shared/cases/hostile_code.jsonl is missing"),
]
CASES = [json.loads(line) for line in SUITE.read_text().splitlines()] if SUITE.exists() else []
ENDED = (ExecutionStatus.ERROR, ExecutionStatus.DIED, ExecutionStatus.BLOCKED)


@pytest.fixture(scope="module")
def results():
    """Name -> the hostile cell's result, the next cell's, and the same cell's once more."""
    limits = Limits(cell_seconds=2.0, memory_bytes=400 << 20)
    with LocalInterpreter(limits, min_tier="seccomp") as interpreter:

        def run(case: dict) -> list[ExecutionResult]:
            with interpreter.session() as session:
                found = [session.run(case["code"]), session.run(case.get("followup", "40+2"))]
            if case.get("deterministic"):
                with interpreter.session() as session:
                    found.append(session.run(case["code"]))
            return found

        # The one case that would kill every process of this user runs only if it cannot.
        check = interpreter.session().run("import os\nos.kill(-1, 0)")
        assert check.output.endswith("PermissionError: [Errno 1] Operation not permitted")
        with ThreadPoolExecutor(3) as pool:
            yield dict(zip((case["name"] for case in CASES), pool.map(run, CASES), strict=True))


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


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_hostile_cell(results, case):
    result, after, *again = results[case["name"]]
    assert any(meets(e, result) for e in [case["expect"], *case.get("alt_expect", [])]), result
    assert case.get("must", "") in result.output
    if result.status not in ENDED:
        assert case.get("must_unless_blocked", "") in result.output
    if "must_not" in case:
        assert not re.search(case["must_not"], result.output)
    assert after.status is ExecutionStatus.OK, after
    assert after.output.splitlines()[-1] == case.get("followup_out", "42")
    assert all(r.output == result.output for r in again)
