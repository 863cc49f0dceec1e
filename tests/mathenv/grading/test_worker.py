"""Hostile and heavy answers: the symbolic worker dies, the grader does not."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mathenv.grading import close, grade_answer
from mathenv.grading.pool import WorkerLimits, WorkerPool
from mathenv.grading.symbolic import shared_comparer
from mathenv.types import GradeStatus

SAFE = [("(x+1)^2", "x^2+2x+1", True), ("\\sqrt{8}", "2\\sqrt{2}", True), ("x+1", "x+2", False)]
# An integral that sympy does not finish; below all caps.
HEAVY = "\\int_0^1 \\frac{\\sqrt{\\sin(x^5)+\\cos(x^7)}}{1+x^{x}} dx"

PATHOLOGICAL = {
    "tower": "9^{9^{9}}",
    "tower of parentheses": "5^(5^(5^5))",
    "factorial": "(10^9)!",
    "double factorial": "((99999)!)!",
    "big exponent": "3^{10^9}",
    "binomial": "\\binom{1000000}{500000}",
    "parentheses": "(" * 2000 + "1" + ")" * 2000,
    "within the nesting cap": "(" * 60 + "x" + ")" * 60,
    "braces": "{" * 900 + "1" + "}" * 900,
    "long": "x+" * 50_000 + "x",
    "roots": "\\sqrt{" * 60 + "x" + "}" * 60,
    "fractions": "\\frac{1}{1+" * 50 + "x" + "}" * 50,
    "open braces": "\\frac{" * 300,
    "spaces": "1" + " " * 1900 + "x",
    "digits": "7" * 1900,
    "sum": "\\sum_{k=1}^{100000000} \\frac{1}{k^2+k+1}",
    "matrix": "\\begin{pmatrix}" + " & ".join("x" * 200) + "\\end{pmatrix}",
    "nul": "1\x002",
    "surrogate": "\ud800+x",
}


@pytest.mark.parametrize("name", PATHOLOGICAL)
def test_pathological_answers_end_soon_and_do_no_harm(name):
    start = time.monotonic()
    result = grade_answer("17x", PATHOLOGICAL[name])
    assert not result.correct
    assert result.status is not GradeStatus.INFRA
    assert result.counts
    assert time.monotonic() - start < 30  # CPU limit 2 s; the machine may be busy
    assert grade_answer("\\sqrt{12}", "2\\sqrt{3}").correct


@pytest.mark.parametrize(
    "template",
    [
        "__import__('os').system('touch {}')",
        "\\text{{__import__('os').system('touch {}')}}",
        "x+__import__('pathlib').Path('{}').touch()",
        "\\operatorname{{exec}}(\"open('{}','w')\")",
        "1 if open('{}','w') else 2",
    ],
)
def test_model_text_is_never_executed(template, tmp_path):
    target = tmp_path / "owned"
    for gold in ("5", "x+1"):
        assert not grade_answer(gold, template.format(target)).correct
    assert not target.exists()


@pytest.fixture
def small_pool():
    pool = WorkerPool(size=1, limits=WorkerLimits(cpu_seconds=0.4, wall_seconds=20))
    yield pool
    pool.close()


def test_the_next_verdict_after_a_timeout_is_unharmed(small_pool):
    for _ in range(2):
        assert small_pool.compare("x+1", "9^{9^{9}}").verdict == "timeout"
        for gold, answer, equal in SAFE:
            expected = "correct" if equal else "incorrect"
            assert small_pool.compare(gold, answer).verdict == expected
    assert small_pool.started == 1


def test_a_gold_that_takes_too_long_is_a_gold_error(small_pool):
    nested = "(" * 62 + "x" + ")" * 62  # the parser is exponential in brackets
    assert small_pool.compare(nested, "x+1").verdict == "gold_error"
    assert small_pool.compare("x+1", nested).verdict == "timeout"


def test_memory_is_limited():
    pool = WorkerPool(size=1, limits=WorkerLimits(cpu_seconds=20, memory_megabytes=600))
    try:
        for answer in ("2^{2^{35}}", "2^{2^{34}}+x"):  # 4 GiB and 2 GiB
            assert pool.compare("x", answer).verdict in ("limit", "timeout", "incorrect")
        assert pool.compare("2x", "x+x").verdict == "correct"
    finally:
        pool.close()


def test_a_killed_worker_is_replaced(small_pool):
    assert small_pool.compare("2x", "x+x").verdict == "correct"
    for worker in list(small_pool._all):
        worker.interrupt()
    assert small_pool.compare("3x", "x+2x").verdict == "correct"


def test_a_closed_pool_reports_infra(small_pool):
    small_pool.close()
    small_pool.close()
    assert small_pool.compare("2x", "x+x").verdict == "infra"


def test_eight_threads_get_the_serial_verdicts():
    pairs = [*SAFE, ("\\frac{\\pi}{7}+e", HEAVY, False), ("x<1", "1>x", True)] * 4
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda pair: grade_answer(pair[0], pair[1]), pairs))
    assert [verdict.correct for verdict in verdicts] == [equal for _, _, equal in pairs]
    assert not any(verdict.status is GradeStatus.INFRA for verdict in verdicts)


def test_timeouts_are_not_remembered():
    assert grade_answer("\\frac{\\pi}{7}+e", HEAVY).status is GradeStatus.TIMEOUT
    assert not any(reply.verdict == "timeout" for reply in shared_comparer()._memo.values())


def test_grading_works_again_after_close():
    assert grade_answer("2y", "y+y").correct
    close()
    close()
    assert grade_answer("4y", "y+3y").correct


def test_a_forked_process_uses_workers_of_its_own():
    script = """
import os
from mathenv.grading import grade_answer
assert grade_answer("2y", "y+y").correct
child = os.fork()
for n in range(3, 9):
    assert grade_answer(f"{n}y", f"y+{n - 1}y").correct
    assert not grade_answer(f"{n}z", f"y+{n - 1}y").correct
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_workers_end_with_their_parent():
    script = """
from mathenv.grading import grade_answer
from mathenv.grading.symbolic import shared_comparer
assert grade_answer("2y", "y+y").correct
(worker,) = shared_comparer().pool._all
print(worker._process.pid)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=120, capture_output=True, text=True
    )
    with pytest.raises(ProcessLookupError):
        os.killpg(int(done.stdout), 0)  # the group of the worker and its children
