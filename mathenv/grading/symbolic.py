"""The last tier: both formulas, read by our own grammar, compared by value in a worker process.

math-verify runs in the same workers, but only for the policy `math_verify`, beside which ours is
measured: its verdicts decide nothing here.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from mathenv.grading.expression import read_formula
from mathenv.grading.policy import STRICT, GradePolicy
from mathenv.grading.pool import Reply, WorkerLimits, WorkerPool
from mathenv.grading.reading import read_pair

_MEMO_SIZE = 20_000
_LEAST_SECONDS = 0.02  # with less than this left there is nothing to start
_MEMO_VERDICTS = frozenset({"correct", "incorrect", "unparsed", "gold_error"})


@dataclass(frozen=True, slots=True)
class Options:
    """The part of a policy that the worker needs; a key of the memo table."""

    tolerance: float = STRICT.tolerance
    exact_tolerance: float = STRICT.exact_tolerance
    absolute_tolerance: float = STRICT.absolute_tolerance
    float_noise: float = STRICT.float_noise
    same_symbols: bool = True
    raw: bool = False  # math-verify alone, on whole texts

    @staticmethod
    def of(policy: GradePolicy) -> Options:
        return Options(
            policy.tolerance,
            policy.exact_tolerance,
            policy.absolute_tolerance,
            policy.float_noise,
            policy.symbols == "same",
        )


_RAW = Options(raw=True)


@dataclass(slots=True)
class Budget:
    """CPU seconds that one grade may still spend in workers, over all its parts."""

    seconds: float = WorkerLimits().cpu_seconds


class SymbolicComparer:
    """Compares two LaTeX answers in a pool, remembering verdicts. Thread safe.

    Time-outs are never remembered: they depend on the machine. A remembered verdict is charged
    the time that it took, so that what a grade may spend does not depend on earlier ones.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self._memo: dict[tuple[str, str, Options], Reply] = {}
        self._lock = threading.Lock()

    def __call__(self, gold: str, answer: str, options: Options, budget: Budget) -> Reply:
        """Compare two values that no cheaper tier could decide."""
        return self._remembered(gold, answer, options, budget)

    def raw(self, gold: str, response: str, budget: Budget) -> Reply:
        """Let math-verify extract, parse and compare on its own."""
        return self._remembered(gold, response, _RAW, budget)

    def _remembered(self, gold: str, answer: str, options: Options, budget: Budget) -> Reply:
        job = gold, answer, options
        reply = self._memo.get(job)
        if reply is None:
            reply = self._compare(*job, budget)
            if reply.verdict in _MEMO_VERDICTS:
                with self._lock:
                    if len(self._memo) >= _MEMO_SIZE:
                        self._memo.pop(next(iter(self._memo)))
                    self._memo[job] = reply
        budget.seconds -= reply.cpu_seconds
        return reply

    def _compare(self, gold: str, answer: str, options: Options, budget: Budget) -> Reply:
        if options.raw:
            return self._ask(gold, answer, asdict(options), budget)
        reading = read_pair(gold, answer, not options.same_symbols)
        if isinstance(reading, bool):
            return Reply("correct" if reading else "incorrect", "by the relation signs")
        if reading is None:
            return _not_understood(answer)
        job = asdict(options) | {"reading": reading}
        return self._ask(gold, answer, job, budget)

    def _ask(self, gold: str, answer: str, job: dict[str, Any], budget: Budget) -> Reply:
        if budget.seconds < _LEAST_SECONDS:
            return Reply("timeout", "CPU limit reached by earlier parts")
        return self.pool.compare(gold, answer, job, budget.seconds)


def _not_understood(answer: str) -> Reply:
    if read_formula(answer) is None:
        return Reply("unparsed", "the answer is no formula, and not the same text")
    return Reply("incorrect", "only the same text matches the reference, which is no formula")


_shared: SymbolicComparer | None = None
_shared_lock = threading.Lock()


def shared_comparer() -> SymbolicComparer:
    """Return the comparer of this process. Its workers start with the first comparison."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = SymbolicComparer(WorkerPool())
        return _shared


@contextmanager
def use_workers(size: int | None) -> Iterator[int]:
    """Let the shared comparer use up to `size` workers meanwhile; yield how many it may."""
    pool = shared_comparer().pool
    before = pool.size
    pool.resize(max(before, size or before))
    try:
        yield size or before
    finally:
        pool.resize(before)


def close() -> None:
    """End the worker processes of this process. The next comparison starts new ones."""
    global _shared
    with _shared_lock:
        comparer, _shared = _shared, None
    if comparer is not None:
        comparer.pool.close()


def _forget_after_fork() -> None:
    """Leave the parent's workers to the parent: two readers of one pipe mix up verdicts."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


atexit.register(close)
os.register_at_fork(after_in_child=_forget_after_fork)
