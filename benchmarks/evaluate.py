"""`evaluate`: the shortest way from a model, or an agent, to numbers.

    result = evaluate("path/or/hub-id", "gsm8k", limit=100)
    print(result.metrics.pass_at_1)

It loads what has to be loaded and calls `runner.run_bench`. What `mathenv bench` does on the
command line, this does in Python, in memory unless a folder is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from agents.base import Agent, SamplingParams
from agents.policy import EngineOptions, RenderOptions, load_policy
from benchmarks.results import BenchResult
from benchmarks.runner import Progress, run_bench
from benchmarks.suites import Suite, find_suite
from mathenv.errors import ConfigError
from mathenv.grading import STRICT, GradePolicy
from mathenv.interpreter import Interpreter
from mathenv.types import Problem


def evaluate(
    who: Agent | str | Path,
    suite: str | Suite | Sequence[Problem],
    n: int = 1,
    *,
    split: str | None = None,
    data: str | Path | None = None,
    limit: int | None = None,
    sampling: SamplingParams | None = None,
    engine: EngineOptions | None = None,
    rendering: RenderOptions | None = None,
    horizon: int = 6,
    concurrency: int = 32,
    seed: int = 0,
    interpreter: str | Interpreter = "local",
    grading: str | GradePolicy = STRICT,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> BenchResult:
    """Play a suite and return metrics with intervals, and every trajectory.

    Args:
        who: an agent, or a model's folder or hub id, which is loaded for this call.
        suite: a suite's name, a path as for `mathenv bench`, or the problems themselves.
        n: episodes per problem.
        split, data, limit: which problems, as in `mathenv bench`.
        sampling: how a model samples. Left out: greedy for one episode per problem, else at
            temperature 1. An agent has its own.
        engine, rendering: what runs a model and how conversations are written for it.
        grading: what counts as equal, a preset's name or a policy.
        out: folder in which the run can be resumed, as with `mathenv bench --out`. Left out:
            everything stays in memory.
        progress: called with the number of finished episodes and the total.

    Raises:
        ConfigError: no such suite or model, or settings that belong to a model with an agent.
        InfraError: the machinery failed in most of the episodes.
    """
    with _opened(who, n, sampling, engine, rendering) as agent:
        return run_bench(
            _suite(suite, split),
            agent,
            None if out is None else Path(out),
            samples=n,
            data=data,
            limit=limit,
            horizon=horizon,
            concurrency=concurrency,
            seed=seed,
            interpreter=interpreter,
            policy=grading,
            progress=progress,
        )


def _opened(
    who: Agent | str | Path,
    n: int,
    sampling: SamplingParams | None,
    engine: EngineOptions | None,
    rendering: RenderOptions | None,
) -> AbstractContextManager[Agent]:
    if isinstance(who, str | Path):
        how = sampling or SamplingParams(temperature=0.0 if n == 1 else 1.0)
        name = Path(who).name
        return load_policy(who, how, name=name, engine=engine, rendering=rendering)
    if (sampling, engine, rendering) != (None, None, None):
        raise ConfigError(
            "sampling, engine and rendering are settings for a model's folder or hub id: an agent "
            "already has its own"
        )
    return nullcontext(who)


def _suite(suite: str | Suite | Sequence[Problem], split: str | None) -> Suite:
    if isinstance(suite, Suite):
        return suite
    if isinstance(suite, str):
        return find_suite(suite, split)
    if split is not None:
        raise ConfigError("split chooses among the problems of a named suite: leave it out here")
    return Suite("problems", "problems", generated=True, problems=tuple(suite))
