import asyncio
import pickle
import threading

import pytest

from mathenv.errors import ConfigError
from mathenv.grading import PAPER, STRICT, agrade, grade, grade_many, grader_for
from mathenv.grading.batch import iter_grades
from mathenv.grading.symbolic import shared_comparer, use_workers

PAIRS = [(str(n), f"It is \\boxed{{{n if n % 3 else n + 1}}}") for n in range(200)] + [
    ("\\sin 2x", "\\boxed{2\\sin x\\cos x}"),
    ("\\sin 2x", "\\boxed{2\\sin x}"),
    (("7", "\\sqrt{50}"), "\\boxed{5\\sqrt{2}}"),
    ("5", "no box"),
]


def test_grades_come_in_order_and_are_those_of_single_calls():
    assert grade_many(PAIRS, workers=2) == [grade(*pair) for pair in PAIRS]


def test_policy_and_empty_input():
    assert grade_many([("5", "\\boxed{500}")], policy="paper")[0].correct
    assert grade_many([]) == []
    with pytest.raises(ConfigError):
        grade_many([], policy="none")


def test_pairs_are_read_as_they_are_needed():
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield "5", "\\boxed{5}"

    grades = iter_grades(endless(), workers=1)
    assert all(next(grades).correct for _ in range(100))
    assert taken < 1000
    grades.close()


def test_the_number_of_workers_is_restored():
    pool = shared_comparer().pool
    before = pool.size
    with use_workers(before + 3) as size:
        assert size == before + 3
        assert pool.size == before + 3
    assert pool.size == before


def test_grading_does_not_block_the_event_loop():
    heavy = "\\sum_{k=1}^{\\infty}\\sum_{j=1}^{\\infty}\\frac{1}{k^2+j^3}"

    async def both():
        ticks = 0
        slow = asyncio.create_task(agrade("\\frac{\\pi}{7}+e", f"\\boxed{{{heavy}}}"))
        while not slow.done():
            ticks += 1
            await asyncio.sleep(0.005)
        easy = await asyncio.gather(*(agrade(gold, text) for gold, text in PAIRS[:20]))
        return ticks, await slow, easy

    ticks, slow, easy = asyncio.run(both())
    assert ticks > 5  # the loop ran while the worker spent its CPU limit
    assert not slow.correct
    assert easy == [grade(*pair) for pair in PAIRS[:20]]


def test_many_threads_get_the_same_verdicts():
    results = {}

    def work(number):
        results[number] = [grade(*pair) for pair in PAIRS[-8:]]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(result == results[0] for result in results.values())


def test_a_grader_carries_its_policy():
    grader = grader_for("paper")
    assert grader.policy is PAPER
    assert grader("5", "\\boxed{500}").correct
    assert not grader_for(STRICT)("5", "\\boxed{500}").correct
    again = pickle.loads(pickle.dumps(grader))
    assert again == grader
    assert again.record() == PAPER.record()


def test_remembered_verdicts_are_charged_what_they_cost(monkeypatch):
    gold, answer = "\\cos 2x", "\\boxed{1-2\\sin^2 x}"
    first = grade(gold, answer)
    asked = []
    monkeypatch.setattr(shared_comparer().pool, "compare", lambda *pair: asked.append(pair))
    assert grade(gold, answer) == first
    assert asked == []  # no worker
    memo = shared_comparer()._memo
    assert any(pair[1] == "1-2\\sin^2 x" and reply.cpu_seconds > 0 for pair, reply in memo.items())
