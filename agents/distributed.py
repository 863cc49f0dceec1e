"""The same collector on many machines: Ray actors play, the driver hands out work and files.

Every worker has engines, an interpreter pool and a `Collector` of its own. The driver keeps
as many problems in flight at each worker as its `concurrency` allows, a problem's samples
always together, and files each trajectory when it arrives: one process writes, so nothing is
stored twice. When a worker dies, what it had not sent is handed out again. Ray is the extra
`ray`; nothing here imports it before it is used.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import groupby
from typing import Any

from agents.base import WeightedAgent
from agents.collector import CollectConfig, Collector, Job, infra_episode, leaf
from agents.episode_log import EpisodeLog, Progress
from agents.rollout import collect, jobs_of, run_blocking
from mathenv.errors import ConfigError, InfraError, MathEnvError, install_hint
from mathenv.interpreter import Interpreter
from mathenv.settings import Count, CountFrom0, NotNegative, PositiveOrInf, check_settings
from mathenv.store import TrajectoryStore
from mathenv.types import Problem, Trajectory


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker plays with, and what is to be known of it where the work is handed out."""

    members: Sequence[WeightedAgent]
    facts: Mapping[str, Any] = field(default_factory=dict)


SetupFactory = Callable[[], AbstractContextManager[WorkerSetup]]


@dataclass(frozen=True, slots=True)
class RayConfig:
    """Which cluster, and how many workers on it.

    Args:
        workers: actors, each with its own engine; usually one per GPU.
        address: of a running cluster (`auto`, `HOST:6379`, `ray://HOST:10001`), or `local`
            to start one on this machine for as long as it is needed.
        cpus, gpus: what Ray reserves for each worker.
        restarts: dead workers that are replaced, in all.
        tries: times that an episode may be in flight at a worker that dies, before it is
            given up as `infra`: it may be what kills them.
        start_seconds: how long to wait for the first worker.

    Raises:
        ConfigError: a number that cannot be.
    """

    workers: Count = 2
    address: str = "local"
    cpus: NotNegative = 1.0
    gpus: NotNegative = 0.0
    restarts: CountFrom0 = 8
    tries: Count = 3
    start_seconds: PositiveOrInf = 900.0

    def __post_init__(self) -> None:
        check_settings(self)


class Worker:
    """One actor's inside. Ray runs its coroutines in one event loop."""

    def __init__(self, factory: SetupFactory) -> None:
        self._factory, self._held = factory, ExitStack()
        self._setup: WorkerSetup | None = None
        self._collector: Collector | None = None
        self._playing: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def start(self) -> tuple[list[tuple[str, int]], Mapping[str, Any]]:
        """Build the agents; return their names with samples per problem, and the facts."""
        if self._setup is None:
            self._setup = self._held.enter_context(self._factory())
        members = self._setup.members
        return [(member.agent.name, member.samples) for member in members], self._setup.facts

    async def configure(self, config: CollectConfig, interpreter: str) -> None:
        """Say how to play from now on."""
        await self.start()
        assert self._setup is not None
        agents = [member.agent for member in self._setup.members]
        self._collector = self._held.enter_context(Collector(agents, config, interpreter))

    async def play(self, jobs: Sequence[Job]) -> AsyncIterator[Trajectory]:
        """Play jobs beside those of other calls; yield each trajectory when it ends."""
        assert self._collector is not None
        ended: asyncio.Queue[Trajectory | None] = asyncio.Queue()
        work = asyncio.create_task(self._collector.play(jobs, ended.put_nowait))
        self._playing.add(work)
        work.add_done_callback(lambda _: ended.put_nowait(None))
        try:
            while (trajectory := await ended.get()) is not None:
                yield trajectory
            await work
        except asyncio.CancelledError:
            if not self._stopped:
                raise
        finally:
            work.cancel()
            self._playing.discard(work)

    async def stop(self) -> None:
        """End the episodes that run, then close the engines."""
        self._stopped = True
        for work in self._playing:
            work.cancel()
        await asyncio.gather(*self._playing, return_exceptions=True)
        self._held.close()


class RayWorkers:
    """A cluster's workers, from start to stop; a context manager.

    `samples` are the agents' names with their samples per problem, `facts` what the factory
    tells, both as the first worker reported them.

    Raises:
        ConfigError: Ray is not installed or finds no cluster, or a worker's setup raised it.
        InfraError: no worker could be started.
    """

    def __init__(self, factory: SetupFactory, config: RayConfig | None = None) -> None:
        self.config = config or RayConfig()
        self._ray, self._factory = _ray(), factory
        self._ours = False
        self.handles: list[Any] = []

    def __enter__(self) -> RayWorkers:
        self._ours = _connect(self._ray, self.config)
        try:
            self.handles = [self.new() for _ in range(self.config.workers)]
            self.samples, self.facts = self._first()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def new(self) -> Any:
        """Ask Ray for one more worker."""
        needs = {"num_cpus": self.config.cpus, "num_gpus": self.config.gpus}
        return self._ray.remote(Worker).options(**needs).remote(self._factory)

    def replace(self, number: int) -> None:
        """Put a new worker in the place of a dead one."""
        self._ray.kill(self.handles[number])  # where only the way to it broke
        self.handles[number] = self.new()

    def close(self) -> None:
        """Stop the workers, and the cluster where it was started here. Safe to call twice."""
        handles, self.handles = self.handles, []
        stops = [handle.stop.remote() for handle in handles]
        if stops:
            self._ray.wait(stops, num_returns=len(stops), timeout=30)
        for handle in handles:
            self._ray.kill(handle)
        if self._ours:
            self._ray.shutdown()
            self._ours = False

    def _first(self) -> tuple[list[tuple[str, int]], Mapping[str, Any]]:
        starts = [handle.start.remote() for handle in self.handles]
        ready, _ = self._ray.wait(starts, num_returns=1, timeout=self.config.start_seconds)
        if not ready:
            raise InfraError(
                f"no worker started within {self.config.start_seconds:g} s: each asks for "
                f"{self.config.cpus:g} CPUs and {self.config.gpus:g} GPUs, and the cluster has "
                f"{self._ray.cluster_resources()}"
            )
        try:
            members, facts = self._ray.get(ready[0])
        except self._ray.exceptions.RayError as error:
            raise as_itself(error) from error
        return members, facts


def collect_with(
    factory: SetupFactory,
    cluster: RayConfig | None,
    problems: Sequence[Problem],
    store: TrajectoryStore,
    config: CollectConfig,
    *,
    interpreter: str | Interpreter = "local",
    progress: Progress | None = None,
) -> int:
    """Collect with the agents that `factory` opens: in each of a cluster's workers, or here.

    Raises:
        ConfigError: an interpreter that cannot be sent to workers: give its name.
    """
    if cluster is None:
        with factory() as setup:
            return collect(
                setup.members,
                problems,
                store,
                config,
                interpreter=interpreter,
                progress=progress,
            )
    if not isinstance(interpreter, str):
        raise ConfigError("workers on a cluster make their own interpreters: give a name")
    with RayWorkers(factory, cluster) as workers:
        return collect_distributed(
            workers, problems, store, config, interpreter=interpreter, progress=progress
        )


def collect_distributed(
    workers: RayWorkers,
    problems: Sequence[Problem],
    store: TrajectoryStore,
    config: CollectConfig,
    *,
    interpreter: str = "local",
    progress: Progress | None = None,
) -> int:
    """Do what `agents.rollout.collect` does, with all workers; `config` holds for each.

    `concurrency`, `slots` and `threads` are per worker. The engines of different workers do
    not share batches, so results do not repeat to the last bit; the set of episodes does.

    Raises:
        ConfigError, DataError: raised in a worker, or two problems go by one name.
        InfraError: more workers died than `restarts`, or most episodes failed. What is
            finished is kept.
    """
    return run_blocking(
        acollect_distributed(
            workers, problems, store, config, interpreter=interpreter, progress=progress
        )
    )


async def acollect_distributed(
    workers: RayWorkers,
    problems: Sequence[Problem],
    store: TrajectoryStore,
    config: CollectConfig,
    *,
    interpreter: str = "local",
    progress: Progress | None = None,
) -> int:
    """Do what `collect_distributed` does, as a coroutine."""
    todo = [job for job in jobs_of(workers.samples, problems) if job.key not in store]
    with EpisodeLog(store, {job.key for job in todo}, progress) as log:
        driver = _Driver(workers, config, interpreter, log)
        try:
            await driver.run(todo)
        except BaseExceptionGroup as several:
            error = leaf(several)
            raise error from error.__cause__
    return log.check()


class _Driver:
    """Hands problems out, files what comes back, replaces the dead."""

    def __init__(
        self, workers: RayWorkers, config: CollectConfig, interpreter: str, log: EpisodeLog
    ) -> None:
        self._workers, self._config, self._interpreter = workers, config, interpreter
        self._log = log
        self._errors = import_module("ray.exceptions")
        self._chunks: asyncio.Queue[list[Job]] = asyncio.Queue()
        self._tries: Counter[str] = Counter()
        self._deaths = 0

    async def run(self, jobs: Sequence[Job]) -> None:
        for _, problem_jobs in groupby(jobs, lambda job: job.problem.id):
            self._chunks.put_nowait(list(problem_jobs))
        async with asyncio.TaskGroup() as group:
            serving = [
                group.create_task(self._serve(number))
                for number in range(self._workers.config.workers)
            ]
            await self._chunks.join()
            for task in serving:
                task.cancel()

    async def _serve(self, number: int) -> None:
        """Keep one worker busy; replace it when it dies."""
        size = sum(samples for _, samples in self._workers.samples)
        lanes = max(1, self._config.concurrency // max(1, size))
        while True:
            handle, dropped = self._workers.handles[number], list[list[Job]]()
            cause: BaseException | None = None
            try:
                # Before any work is handed out: a worker that never starts holds nothing up.
                await handle.configure.remote(self._config, self._interpreter)
                async with asyncio.TaskGroup() as group:
                    for _ in range(lanes):
                        group.create_task(self._lane(handle, dropped))
            except* self._errors.RayTaskError as failed:
                raise as_itself(leaf(failed)) from None
            except* self._errors.RayError as died:
                cause = leaf(died)
            self._replace(number, cause)
            for jobs in dropped:
                self._put_back(jobs)
                self._chunks.task_done()

    async def _lane(self, handle: Any, dropped: list[list[Job]]) -> None:
        while True:
            jobs = await self._chunks.get()
            try:
                stream = handle.play.options(num_returns="streaming").remote(jobs)
                async for reference in stream:
                    self._log.add(await reference)
            except BaseException:  # the worker died, or another lane has noticed that first
                dropped.append([job for job in jobs if job.key not in self._log])
                raise
            self._chunks.task_done()

    def _put_back(self, jobs: Sequence[Job]) -> None:
        self._tries.update(job.key for job in jobs)
        tries = self._workers.config.tries
        for job in jobs:
            if self._tries[job.key] >= tries:
                reason = f"{tries} workers died while it was played"
                self._log.add(infra_episode(job, self._config, reason))
        again = [job for job in jobs if self._tries[job.key] < tries]
        if again:
            self._chunks.put_nowait(again)

    def _replace(self, number: int, cause: BaseException | None) -> None:
        self._deaths += 1
        if self._deaths > self._workers.config.restarts:
            raise InfraError(
                f"{self._deaths} workers died, the last one with: {cause}. What is finished is "
                "kept: mend it and run the same command again"
            ) from cause
        self._workers.replace(number)


def as_itself(error: BaseException) -> BaseException:
    """Return what was raised inside a worker, where Ray says what it was."""
    cause = leaf(getattr(error, "cause", error))
    return cause if isinstance(cause, MathEnvError) else error


def _ray() -> Any:
    if find_spec("ray") is None:
        raise ConfigError(f"collecting with several workers needs Ray: {install_hint('ray')}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read at import
    return import_module("ray")


def _connect(ray: Any, config: RayConfig) -> bool:
    """Join the cluster, or start one; return whether this is for us to undo."""
    if ray.is_initialized():
        return False
    if config.address == "local":
        cpus = max(os.cpu_count() or 1, math.ceil(config.workers * config.cpus))
        ray.init(address="local", num_cpus=cpus, include_dashboard=False)
        return True
    try:
        ray.init(address=config.address)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"no Ray cluster answers at {config.address!r}: {error}") from error
    return True
