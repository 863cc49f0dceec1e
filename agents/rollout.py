"""Rollouts: many episodes at once, in memory (`play`) or into a store on disk (`collect`).

    trajectories = play(agent, problems, n=4)                   # a list; nothing is written

    with TrajectoryStore("rollouts") as store:                  # survives a kill
        collect([WeightedAgent(agent, 4)], problems, store, CollectConfig())

What `collect` has finished is in the store, so a run that is killed and started again neither
loses nor repeats a trajectory. Episodes in which the machinery failed are not finished: they
stand in a file beside the store (`failed_path`) until a later call has played them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, TypeVar

from agents.base import Agent, WeightedAgent
from agents.collector import CollectConfig, Collector, Job, MakeEnv
from agents.episode_log import EpisodeLog, Progress, failed_path, read_collected
from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter import Interpreter
from mathenv.store import TrajectoryStore
from mathenv.types import Problem, Trajectory

__all__ = [
    "CollectConfig",
    "acollect",
    "aplay",
    "collect",
    "failed_path",
    "jobs_of",
    "play",
    "play_jobs",
    "read_collected",
    "run_blocking",
]

Result = TypeVar("Result")


def play(
    agent: Agent,
    problems: Sequence[Problem],
    n: int = 1,
    *,
    config: CollectConfig | None = None,
    interpreter: str | Interpreter = "local",
    make_env: MakeEnv | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Trajectory]:
    """Play every problem `n` times and return the trajectories; blocks until all are there.

        trajectories = play(agent, load_problems("words", "test", limit=20), n=4)
        accuracy = sum(t.reward for t in trajectories) / len(trajectories)

    Works in a notebook too: where an event loop runs in this thread already, the episodes are
    played in the loop of another one.

    Args:
        n: episodes per problem. Each is sampled with a seed of its own.
        config: horizon, episodes in flight, seed and deadlines.
        interpreter: what runs the code, this machine's sandbox or Docker.
        make_env: makes the environment, see `Collector`; takes the place of `interpreter`
            and of the config's horizon.
        progress: called after each episode with how many have ended and how many there will be.

    Returns:
        One trajectory per problem and sample, in this order, whatever order they ended in.
        Where the machinery failed the trajectory says so (`counts` is False): leave it out of
        averages.

    Raises:
        ConfigError: two problems have one id, or `n` is below 1.
        InfraError: the machinery failed in all episodes.
    """
    return run_blocking(
        aplay(
            agent,
            problems,
            n,
            config=config,
            interpreter=interpreter,
            make_env=make_env,
            progress=progress,
        )
    )


async def aplay(
    agent: Agent,
    problems: Sequence[Problem],
    n: int = 1,
    *,
    config: CollectConfig | None = None,
    interpreter: str | Interpreter = "local",
    make_env: MakeEnv | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Trajectory]:
    """Do what `play` does, as a coroutine. Cancelled, it ends the episodes that run."""
    if n < 1:
        raise ConfigError(f"n must be at least 1 episode per problem, got {n}")
    with Collector([agent], config or CollectConfig(), interpreter, make_env=make_env) as collector:
        return await play_jobs(collector, jobs_of([(agent.name, n)], problems), progress)


async def play_jobs(
    collector: Collector,
    jobs: Sequence[Job],
    progress: Callable[[int, int], None] | None = None,
) -> list[Trajectory]:
    """Play jobs and return their trajectories in the order of the jobs.

    Raises:
        InfraError: the machinery failed in all episodes.
    """
    played: dict[str, Trajectory] = {}

    def keep(trajectory: Trajectory) -> None:
        played[trajectory.key] = trajectory
        if progress is not None:
            progress(len(played), len(jobs))

    await collector.play(jobs, keep)
    trajectories = [played[job.key] for job in jobs]
    if trajectories and not any(trajectory.counts for trajectory in trajectories):
        why = trajectories[0].failure
        raise InfraError(f"all {len(jobs)} episodes failed in the machinery, the first: {why}")
    return trajectories


def jobs_of(samples: Sequence[tuple[str, int]], problems: Sequence[Problem]) -> list[Job]:
    """Return every episode of a mixture given as (agent's name, samples per problem).

    All episodes of a problem stand together: they share their prompt, and an engine with a
    prefix cache computes it once.

    Raises:
        ConfigError: two agents, or two problems, go by one name.
    """
    jobs = [Job(p, name, n) for p in problems for name, count in samples for n in range(count)]
    if len({job.key for job in jobs}) < len(jobs):
        raise ConfigError("agents of a mixture need different names, problems different ids")
    return jobs


def collect(
    agents: Sequence[WeightedAgent],
    problems: Sequence[Problem],
    store: TrajectoryStore,
    config: CollectConfig,
    *,
    interpreter: str | Interpreter = "local",
    progress: Progress | None = None,
) -> int:
    """Bring the store to `samples` trajectories per problem and agent; blocks until then.

    Where an event loop runs in this thread already, as in a notebook, the work is done in
    the loop of another thread; `await acollect(...)` leaves the notebook's own loop free.

    Args:
        progress: called after each episode with its trajectory, the number of episodes
            there are (earlier ones in the store included) and how many there will be.

    Returns:
        The number of episodes that failed in the machinery and are therefore missing from
        the store. They stand in `failed_path(store.path)`; the next call tries them again.

    Raises:
        ConfigError: two agents, or two problems, go by one name.
        InfraError: the machinery failed on most of the episodes, see the message.
    """
    return run_blocking(
        acollect(agents, problems, store, config, interpreter=interpreter, progress=progress)
    )


async def acollect(
    agents: Sequence[WeightedAgent],
    problems: Sequence[Problem],
    store: TrajectoryStore,
    config: CollectConfig,
    *,
    interpreter: str | Interpreter = "local",
    progress: Progress | None = None,
) -> int:
    """Do what `collect` does, as a coroutine. Cancelled, it keeps what is finished."""
    jobs = jobs_of([(member.agent.name, member.samples) for member in agents], problems)
    todo = [job for job in jobs if job.key not in store]
    with EpisodeLog(store, {job.key for job in todo}, progress) as log:
        with Collector([member.agent for member in agents], config, interpreter) as collector:
            await collector.play(todo, log.add)
    return log.check()


def run_blocking(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end from anywhere, a running event loop's thread included."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    started: Future[Callable[[], object]] = Future()

    async def cancellable() -> Result:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        started.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        return await work

    with ThreadPoolExecutor(1, thread_name_prefix="collect") as thread:
        future = thread.submit(asyncio.run, cancellable())
        try:
            return future.result()
        except KeyboardInterrupt:  # a notebook's stop button
            with suppress(RuntimeError):  # it has just come to its end by itself
                started.result()()
            wait([future])
            raise
