"""Many grades: over threads and worker processes, from asyncio, and with a fixed policy."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from mathenv.errors import ConfigError
from mathenv.grading.grader import Gold, grade
from mathenv.grading.policy import STRICT, GradePolicy, find_policy
from mathenv.grading.symbolic import use_workers
from mathenv.types import Grade

_CHUNK = 64  # pairs that one thread takes at a time


@dataclass(frozen=True, slots=True)
class PolicyGrader:
    """A grader with its policy: what `MathToolEnv(grader=...)` takes. Can be pickled."""

    policy: GradePolicy = STRICT

    def __post_init__(self) -> None:
        object.__setattr__(self, "policy", find_policy(self.policy))

    def __call__(self, gold: Gold, response: str) -> Grade:
        return grade(gold, response, self.policy)

    def record(self) -> dict[str, Any]:
        """Return what a run's manifest keeps about grading, as plain JSON values."""
        return self.policy.record()


def grader_for(policy: str | GradePolicy) -> PolicyGrader:
    """Return a grader for a preset or a policy.

    Raises:
        ConfigError: no preset has this name.
    """
    return PolicyGrader(find_policy(policy))


def grade_many(
    pairs: Iterable[tuple[Gold, str]],
    *,
    policy: str | GradePolicy = STRICT,
    workers: int | None = None,
) -> list[Grade]:
    """Grade (gold, response) pairs; the grades come in the order of the pairs.

    Args:
        pairs: each as the first two arguments of `grade`.
        policy: a preset or a policy.
        workers: most worker processes for symbolic comparison (default: one per processor,
            at most four). They start when first needed.
    """
    return list(iter_grades(pairs, policy=policy, workers=workers))


def iter_grades(
    pairs: Iterable[tuple[Gold, str]],
    *,
    policy: str | GradePolicy = STRICT,
    workers: int | None = None,
) -> Iterator[Grade]:
    """Yield the grades of `grade_many` one by one, without holding all pairs in memory."""
    chosen = find_policy(policy)
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise ConfigError(f"workers is a whole number, at least 1, got {workers!r}")
    source = iter(pairs)
    with use_workers(workers) as size, ThreadPoolExecutor(size) as threads:
        waiting: deque[Future[list[Grade]]] = deque()
        for chunk in iter(lambda: list(itertools.islice(source, _CHUNK)), []):
            waiting.append(threads.submit(_grade_chunk, chunk, chosen))
            if len(waiting) > 2 * size:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()


def _grade_chunk(pairs: Sequence[tuple[Gold, str]], policy: GradePolicy) -> list[Grade]:
    return [grade(*_checked_pair(pair), policy) for pair in pairs]


def _checked_pair(pair: tuple[Gold, str]) -> tuple[Gold, str]:
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise ConfigError(f"each pair is (reference, response), got {str(pair)[:80]!r}")
    return pair[0], pair[1]


async def agrade(gold: Gold, response: str, policy: str | GradePolicy = STRICT) -> Grade:
    """`grade` without blocking the event loop: a costly comparison waits in a thread."""
    return await asyncio.to_thread(grade, gold, response, policy)
