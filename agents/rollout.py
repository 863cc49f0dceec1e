"""The collector: many episodes at once, one coroutine each, written as they finish.

Each coroutine owns one environment and takes the next job when its episode ends; there
is no barrier between turns other than the engine's own batching. What is finished is in
the store, so a collector that is killed and started again neither loses nor repeats a
trajectory. Episodes in which the machinery failed are not finished: they stand in a file
beside the store (`failed_path`) until a later call has played them again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.base import Agent, Episode, WeightedAgent
from agents.llm import derive_seed
from mathenv.env import MathToolEnv
from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter import Interpreter
from mathenv.store import (
    FILE_NAME,
    TrajectoryStore,
    read_trajectories,
    to_json,
    write_atomic,
)
from mathenv.types import FinishReason, Grade, GradeStatus, Problem, StopReason, Trajectory

Progress = Callable[[Trajectory, int, int], None]
_FIRST = 20  # episodes after which a sick machine is given up on


@dataclass(frozen=True, slots=True)
class CollectConfig:
    """How to collect.

    Args:
        horizon: actions per episode at most (paper: 6).
        concurrency: episodes in flight per agent.
        threads: interpreter calls under way at once.
        seed: with agent, problem and sample number, fixes every random choice.

    Raises:
        ConfigError: a number below 1.
    """

    horizon: int = 6
    concurrency: int = 128
    threads: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.horizon, self.concurrency, self.threads) < 1:
            raise ConfigError(f"horizon, concurrency and threads must be at least 1: {self}")


@dataclass(frozen=True, slots=True)
class _Job:
    problem: Problem
    agent: str
    sample: int

    @property
    def key(self) -> str:
        return f"{self.problem.id}#{self.agent}#{self.sample}"  # as `Trajectory.key`


def collect(
    agents: Sequence[WeightedAgent],
    problems: Sequence[Problem],
    store: TrajectoryStore,
    config: CollectConfig,
    *,
    interpreter: str | Interpreter = "local",
    progress: Progress | None = None,
) -> int:
    """Bring the store to `samples` trajectories per problem and agent.

    Agents of a mixture run one after another: only one model's weights are in use at a
    time, and which episodes share a batch does not depend on timing.

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
    jobs = [_jobs(member, problems) for member in agents]
    wanted = [job.key for group in jobs for job in group]
    if len(set(wanted)) < len(wanted):
        raise ConfigError("agents of a mixture need different names, problems different ids")
    todo = [[job for job in group if job.key not in store] for group in jobs]
    keys = {job.key for group in todo for job in group}
    with _Log(store, keys, progress) as log:
        for member, group in zip(agents, todo, strict=True):
            if group:
                _run(_collect_agent(member.agent, group, config, interpreter, log))
    return log.check()


def failed_path(path: Path) -> Path:
    """Return the file that holds the episodes that failed beside the store at `path`."""
    return path.with_suffix(".failed.jsonl")


def read_collected(path: Path) -> list[Trajectory]:
    """Return the finished episodes of a store and the failed ones, which do not count."""
    failed = failed_path(path if path.suffix == ".jsonl" else path / FILE_NAME)
    finished = list(read_trajectories(path))
    return [*finished, *read_trajectories(failed)] if failed.exists() else finished


def _jobs(member: WeightedAgent, problems: Sequence[Problem]) -> list[_Job]:
    name = member.agent.name
    return [_Job(p, name, sample) for p in problems for sample in range(member.samples)]


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end; of errors in several coroutines the first is raised, as itself."""
    try:
        asyncio.run(work)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


class _Log:
    """Where episodes go when they end: the store, or the file of the failed ones."""

    def __init__(self, store: TrajectoryStore, todo: set[str], progress: Progress | None) -> None:
        self._store, self._progress = store, progress
        self._done, self._total = len(store), len(store) + len(todo)
        self._new = self._failed = 0
        self._last = ""
        self._failures = ExitStack()
        self._failed_store: TrajectoryStore | None = None
        self._forget(todo)

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *exc: object) -> None:
        self._failures.close()

    def add(self, trajectory: Trajectory) -> None:
        """File one episode.

        Raises:
            InfraError: most of the first ones failed.
        """
        self._done += 1
        self._new += 1
        # A reference answer that cannot be graded is excluded too, but would be next time.
        if trajectory.grade.status is GradeStatus.INFRA:
            self._failed += 1
            self._last = trajectory.grade.detail
            self._failures_file().append(trajectory)
        else:
            self._store.append(trajectory)
        if self._new >= _FIRST:
            self.check()
        if self._progress is not None:
            self._progress(trajectory, self._done, self._total)

    def check(self) -> int:
        """Return how many failed. Raises `InfraError` where that is most of them."""
        if self._failed > self._new / 2:
            raise InfraError(
                f"{self._failed} of {self._new} episodes failed in the machinery, the last one "
                f"with: {self._last or 'no reason given'}. They are in "
                f"{failed_path(self._store.path)}, the others are kept: mend it and run the same "
                "command again"
            )
        return self._failed

    def _failures_file(self) -> TrajectoryStore:
        if self._failed_store is None:
            failed = TrajectoryStore(failed_path(self._store.path))
            self._failed_store = self._failures.enter_context(failed)
        return self._failed_store

    def _forget(self, todo: set[str]) -> None:
        """Drop the earlier failures that are tried again now; the store's lock covers both."""
        file = failed_path(self._store.path)
        if not file.exists():
            return
        kept = [
            t for t in read_trajectories(file) if t.key not in todo and t.key not in self._store
        ]
        if kept:
            write_atomic(file, "".join(json.dumps(to_json(t)) + "\n" for t in kept))
        else:
            file.unlink()


async def _collect_agent(
    agent: Agent,
    jobs: Sequence[_Job],
    config: CollectConfig,
    interpreter: str | Interpreter,
    log: _Log,
) -> None:
    queue = iter(jobs)
    workers = min(config.concurrency, len(jobs))
    with ThreadPoolExecutor(config.threads, thread_name_prefix="interpreter") as threads:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                worker = _Worker(agent, config, interpreter, threads)
                group.create_task(worker.run(queue, log))


class _Worker:
    """One slot: an environment, and the episode that is being played in it."""

    def __init__(
        self,
        agent: Agent,
        config: CollectConfig,
        interpreter: str | Interpreter,
        threads: ThreadPoolExecutor,
    ) -> None:
        self._agent, self._config = agent, config
        self._interpreter, self._threads = interpreter, threads

    async def run(self, queue: Iterator[_Job], log: _Log) -> None:
        held = AsyncExitStack()
        env: MathToolEnv | None = None
        try:
            for job in queue:
                # The next episode is opened before the last is closed, so that an engine
                # which waits for all open sessions never sees a slot vanish in between.
                opened = AsyncExitStack()
                episode = await opened.enter_async_context(self._open(job))
                await held.aclose()
                held = opened
                env = env or MathToolEnv(
                    problems=[job.problem],
                    interpreter=self._interpreter,
                    horizon=self._config.horizon,
                )
                log.add(await self._play(env, job, episode))
        finally:
            await held.aclose()
            if env is not None:
                env.close()

    def _open(self, job: _Job) -> Any:
        return self._agent.episode(
            job.problem.question,
            sample=job.sample,
            # With the name: two members of a mixture may hold the same weights, and the
            # second must not repeat what the first sampled.
            seed=self._seed(job, f"agent {job.agent}"),
        )

    def _seed(self, job: _Job, purpose: str) -> int:
        return derive_seed(self._config.seed, purpose, job.problem.id, job.sample)

    async def _play(self, env: MathToolEnv, job: _Job, episode: Episode) -> Trajectory:
        seed = self._seed(job, "environment") % 2**32
        observation, _ = await self._call(env.reset, seed=seed, options={"problem": job.problem})
        finishes: list[FinishReason] = []
        stop, failure = env.stop_reason, ""
        while stop is None:
            try:
                action = await episode.act(observation)
            except InfraError as error:
                stop, failure = StopReason.INFRA, str(error)
                break
            if action is None:
                stop = StopReason.TOKEN_LIMIT
                break
            finishes.append(action.finish)
            observation, *_ = await self._call(env.step, action.text)
            stop = env.stop_reason
        if stop is StopReason.NO_ACTION and finishes[-1] is FinishReason.LENGTH:
            stop = StopReason.TOKEN_LIMIT  # cut off before it could write either
        status = GradeStatus.INFRA if stop is StopReason.INFRA else GradeStatus.NO_ANSWER
        turns = zip(env.turns, finishes, strict=True)
        return Trajectory(
            problem=job.problem,
            agent=job.agent,
            sample=job.sample,
            seed=seed,
            turns=tuple(replace(turn, finish=finish) for turn, finish in turns),
            stop_reason=stop,
            grade=env.grade or Grade(False, status, detail=failure),
            tokens=episode.tokens(),
        )

    async def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call in a thread. When cancelled, first let a call that has begun come to its end."""
        job = self._threads.submit(function, *args, **kwargs)
        future = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not job.cancel():  # a session belongs to one thread: it is not ours to close yet
                await asyncio.wait([future])
            raise
