"""The collector: many episodes at once, one coroutine each, written as they finish.

Each coroutine owns one environment and takes the next job when its episode ends; there
is no barrier between turns other than the engine's own batching. What is finished is in
the store, so a collector that is killed and started again neither loses nor repeats a
trajectory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from agents.base import Action, Agent, Episode, WeightedAgent
from agents.llm import derive_seed
from mathenv.env import MathToolEnv
from mathenv.errors import InfraError
from mathenv.interpreter import Interpreter
from mathenv.store import TrajectoryStore
from mathenv.types import FinishReason, Grade, GradeStatus, Problem, StopReason, Trajectory

Progress = Callable[[Trajectory, int, int], None]
_INFRA_TRIES = 2


@dataclass(frozen=True, slots=True)
class CollectConfig:
    """How to collect.

    Args:
        horizon: actions per episode at most (paper: 6).
        concurrency: episodes in flight per agent.
        threads: interpreter calls under way at once.
        seed: with problem and sample number, fixes every random choice.
    """

    horizon: int = 6
    concurrency: int = 128
    threads: int = 4
    seed: int = 0


@dataclass(frozen=True, slots=True)
class _Job:
    problem: Problem
    sample: int


def collect(
    agents: Sequence[WeightedAgent],
    problems: Sequence[Problem],
    store: TrajectoryStore,
    config: CollectConfig,
    *,
    interpreter: str | Interpreter = "local",
    progress: Progress | None = None,
) -> None:
    """Bring the store to `samples` trajectories per problem and agent.

    Agents of a mixture run one after another: only one model's weights are in use at a
    time, and which episodes share a batch does not depend on timing.

    Raises:
        InfraError: the machinery failed on most of the first episodes, see the message.
    """
    done = store.keys()
    total = len(problems) * sum(a.samples for a in agents)
    counter = _Counter(total, progress)
    counter.done = len(done)
    for member in agents:
        jobs = [
            _Job(problem, sample)
            for problem in problems
            for sample in range(member.samples)
            if f"{problem.id}#{member.agent.name}#{sample}" not in done
        ]
        if jobs:
            asyncio.run(_collect_agent(member.agent, jobs, store, config, interpreter, counter))


class _Counter:
    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.new, self.infra, self.total = 0, 0, 0, total
        self._progress = progress

    def add(self, trajectory: Trajectory) -> None:
        self.done += 1
        self.new += 1
        self.infra += not trajectory.counts
        if self.new >= 20 and self.infra > self.new / 2:
            raise InfraError(
                f"{self.infra} of the first {self.new} episodes failed in the machinery, last: "
                f"{trajectory.stop_reason.value}, {trajectory.grade.status.value} "
                f"{trajectory.grade.detail}. Nothing is lost: mend it and run the same command"
            )
        if self._progress is not None:
            self._progress(trajectory, self.done, self.total)


async def _collect_agent(
    agent: Agent,
    jobs: Sequence[_Job],
    store: TrajectoryStore,
    config: CollectConfig,
    interpreter: str | Interpreter,
    counter: _Counter,
) -> None:
    queue = iter(jobs)
    workers = min(config.concurrency, len(jobs))
    with ThreadPoolExecutor(config.threads, thread_name_prefix="interpreter") as threads:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                worker = _Worker(agent, config, interpreter, threads)
                group.create_task(worker.run(queue, store, counter))


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

    async def run(self, queue: Iterator[_Job], store: TrajectoryStore, counter: _Counter) -> None:
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
                trajectory = await self._play(env, job, episode)
                store.append(trajectory)
                counter.add(trajectory)
        finally:
            await held.aclose()
            if env is not None:
                env.close()

    def _open(self, job: _Job) -> Any:
        return self._agent.episode(
            job.problem.question, sample=job.sample, seed=self._seed(job, "agent")
        )

    def _seed(self, job: _Job, purpose: str) -> int:
        return derive_seed(self._config.seed, purpose, job.problem.id, job.sample)

    async def _play(self, env: MathToolEnv, job: _Job, episode: Episode) -> Trajectory:
        seed = self._seed(job, "environment") % 2**32
        observation, _ = await self._call(env.reset, seed=seed, options={"problem": job.problem})
        stopped, detail = None, ""
        last: Action | None = None
        while env.stop_reason is None and stopped is None:
            try:
                last = await episode.act(observation)
            except InfraError as error:
                stopped, detail = StopReason.INFRA, str(error)
                break
            if last is None:
                stopped = StopReason.TOKEN_LIMIT
                break
            observation, *_ = await self._call(env.step, last.text)
        return self._trajectory(env, job, episode, seed, stopped, detail, last)

    def _trajectory(
        self,
        env: MathToolEnv,
        job: _Job,
        episode: Episode,
        seed: int,
        stopped: StopReason | None,
        detail: str,
        last: Action | None,
    ) -> Trajectory:
        stop = stopped or env.stop_reason
        assert stop is not None
        turns = env.turns
        if last is not None and turns:
            turns = (*turns[:-1], replace(turns[-1], finish=last.finish))
            if stop is StopReason.NO_ACTION and last.finish is FinishReason.LENGTH:
                stop = StopReason.TOKEN_LIMIT
        status = GradeStatus.INFRA if stop is StopReason.INFRA else GradeStatus.NO_ANSWER
        grade = env.grade or Grade(False, status, detail=detail)
        return Trajectory(
            problem=job.problem,
            agent=self._agent.name,
            sample=job.sample,
            seed=seed,
            turns=turns,
            stop_reason=stop,
            grade=grade,
            tokens=episode.tokens(),
        )

    async def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
