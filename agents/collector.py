"""Playing episodes: one coroutine each, with deadlines, retries and shared slots.

There is no barrier: an episode goes on as soon as its own engine request or its own cell is
done, and when it ends the next one takes its place. Where the episodes go is not known here:
`rollout` files them into a store, `distributed` sends them to the driver.
"""

from __future__ import annotations

import asyncio
import math
import random
import traceback
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import gymnasium

from agents.base import Agent, Episode, LanguageModel
from agents.llm import derive_seed
from mathenv.env import MathToolEnv
from mathenv.errors import ConfigError, InfraError, MathEnvError
from mathenv.interpreter import Interpreter
from mathenv.protocol import ProtocolName, check_protocol
from mathenv.settings import (
    Count,
    CountFrom0,
    DerivedSeed,
    NotNegative,
    PositiveOrInf,
    check_settings,
)
from mathenv.types import FinishReason, Grade, GradeStatus, Problem, StopReason, Trajectory

Result = TypeVar("Result")
ToolEnv = gymnasium.Env[str, str]
MakeEnv = Callable[[Sequence[Problem]], ToolEnv]


@dataclass(frozen=True, slots=True)
class CollectConfig:
    """How to collect.

    Args:
        horizon: actions per episode at most (paper: 6).
        protocol: how turns are read: "lenient", as models write them, or "paper", the paper's
            format to the letter.
        say_empty: tell the model of a cell that printed nothing, in a sentence, where its output
            would be empty.
        concurrency: episodes in flight per engine. Twice the engine's slots keep it busy
            while others run code.
        slots: requests that one engine works on at most, where that is less than the engine
            says it takes (its attribute `slots`). Engines that do not say so are given all
            there are: `TransformersModel` waits for every open episode before it answers.
        threads: interpreter calls under way at once, over all engines.
        seed: with agent, problem and sample number, fixes every random choice.
        turn_seconds: deadline of one answer of the model; waiting for a slot is not counted.
        trajectory_seconds: deadline of one episode.
        retries: how often an episode is begun anew when its engine failed: half an episode
            cannot be asked again without knowing what its agent kept of the failed turn.
        backoff_seconds: pause before the first retry, doubled each time.

    An episode over a deadline ends as `infra`, like one whose engine failed: how fast the
    machine is says nothing about the model. Deadlines are there for what hangs; `inf` is none.

    Raises:
        ConfigError: a number that cannot be.
    """

    horizon: Count = 6
    protocol: ProtocolName = "lenient"
    say_empty: bool = False
    concurrency: Count = 128
    threads: Count = 4
    seed: DerivedSeed = 0
    slots: Count | None = None
    turn_seconds: PositiveOrInf = 1800.0
    trajectory_seconds: PositiveOrInf = 7200.0
    retries: CountFrom0 = 2
    backoff_seconds: NotNegative = 0.5

    def __post_init__(self) -> None:
        check_settings(self)
        check_protocol(self.protocol)


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to play: which agent, which problem, which sample of it."""

    problem: Problem
    agent: str
    sample: int

    @property
    def key(self) -> str:
        return f"{self.problem.id}#{self.agent}#{self.sample}"  # as `Trajectory.key`


class Collector:
    """What episodes share: the agents, slots per engine and threads for the interpreter.

    Used within one event loop. `play` may run several times at once and then shares these.

    Args:
        make_env: called with the problems to play, returns the environment that plays them:
            a `MathToolEnv`, or any Gymnasium wrapper around one. It is called once for each
            episode in flight. Left out: a `MathToolEnv` with the config's horizon and
            protocol and the interpreter, which belong to that environment alone.

    Raises:
        ConfigError: two agents go by one name.
    """

    def __init__(
        self,
        agents: Sequence[Agent],
        config: CollectConfig,
        interpreter: str | Interpreter = "local",
        *,
        make_env: MakeEnv | None = None,
        threads: ThreadPoolExecutor | None = None,
    ) -> None:
        self.agents = {agent.name: agent for agent in agents}
        if len(self.agents) < len(agents):
            raise ConfigError("agents of a mixture need different names")
        self.config = config
        self.make_env = make_env or partial(
            MathToolEnv,
            interpreter=interpreter,
            horizon=config.horizon,
            protocol=config.protocol,
            say_empty=config.say_empty,
        )
        engines = {id(_engine(agent)): _engine(agent) for agent in agents}
        self._slots = {key: _slots(engine, config) for key, engine in engines.items()}
        self._owned = threads is None
        self.threads = threads or ThreadPoolExecutor(config.threads, "interpreter")

    def __enter__(self) -> Collector:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._owned:
            self.threads.shutdown()

    async def play(self, jobs: Sequence[Job], file: Callable[[Trajectory], None]) -> None:
        """Play all jobs and file each as it ends; engines work side by side.

        The jobs of one engine are begun in their order.

        Raises:
            MathEnvError: as itself, also where several episodes raised.
        """
        lanes: dict[int, list[Job]] = {}
        for job in jobs:
            lanes.setdefault(id(_engine(self.agents[job.agent])), []).append(job)
        try:
            async with asyncio.TaskGroup() as group:
                for engine, lane in lanes.items():
                    queue = iter(lane)
                    for _ in range(min(self.config.concurrency, len(lane))):
                        group.create_task(_Seat(self, self._slots[engine]).run(queue, file))
        except BaseExceptionGroup as several:
            error = leaf(several)
            raise error from error.__cause__


def leaf(error: BaseException) -> BaseException:
    """Return the first exception in a group of groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def infra_episode(job: Job, config: CollectConfig, reason: str) -> Trajectory:
    """Return the record of an episode that could not be played at all."""
    return Trajectory(
        problem=job.problem,
        agent=job.agent,
        sample=job.sample,
        seed=seed_of(config, job, "environment") % 2**32,
        turns=(),
        stop_reason=StopReason.INFRA,
        grade=_infra(reason),
    )


def _infra(reason: str) -> Grade:
    return Grade(False, GradeStatus.INFRA, detail=reason)


def seed_of(config: CollectConfig, job: Job, purpose: str) -> int:
    """Return the seed of one purpose (`agent NAME`, `environment`) in one episode."""
    return derive_seed(config.seed, purpose, job.problem.id, job.sample)


class _NoAnswer(Exception):
    """An agent's engine gave no answer; the text says why. Asking `again` may help."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


class _Seat:
    """A place for one episode at a time, with its environment."""

    def __init__(self, collector: Collector, slots: asyncio.Semaphore) -> None:
        self._agents, self._config = collector.agents, collector.config
        self._make_env, self._threads = collector.make_env, collector.threads
        self._slots = slots
        self._held = AsyncExitStack()  # the episode that is, or was last, played

    async def run(self, queue: Iterator[Job], file: Callable[[Trajectory], None]) -> None:
        env: ToolEnv | None = None
        try:
            for job in queue:
                env = env or _checked(self._make_env([job.problem]))
                file(await self._try(env, job))
        finally:
            await self._close()
            if env is not None:
                env.close()

    async def _try(self, env: ToolEnv, job: Job) -> Trajectory:
        """Play an episode; where its engine failed, up to `retries` times anew."""
        trajectory, again = await self._attempt(env, job)
        for number in range(self._config.retries):
            if not again:
                break
            pause = self._config.backoff_seconds * 2**number
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            trajectory, again = await self._attempt(env, job)
        return trajectory

    async def _attempt(self, env: ToolEnv, job: Job) -> tuple[Trajectory, bool]:
        """Return an episode and whether its engine failed in a way that may pass."""
        opened = AsyncExitStack()
        opening = self._agents[job.agent].episode(
            job.problem.question,
            sample=job.sample,
            # With the name: two members of a mixture may hold the same weights, and the
            # second must not repeat what the first sampled.
            seed=seed_of(self._config, job, f"agent {job.agent}"),
        )
        try:
            episode = await self._ask(opened.enter_async_context(opening))
        except _NoAnswer as error:
            return infra_episode(job, self._config, str(error)), error.again
        # The next episode is opened before the last is closed, so that an engine which waits
        # for all open sessions never sees a seat vanish in between.
        await self._close()
        self._held = opened
        return await self._play(env, job, episode)

    async def _close(self) -> None:
        with suppress(InfraError):  # the episode is over and filed
            await self._held.aclose()

    async def _play(self, env: ToolEnv, job: Job, episode: Episode) -> tuple[Trajectory, bool]:
        seed = seed_of(self._config, job, "environment") % 2**32
        played: list[tuple[FinishReason, str]] = []  # how each action ended, what it was answered
        stop, failure, again = StopReason.INFRA, None, False
        limit = self._config.trajectory_seconds
        try:
            async with asyncio.timeout(_finite(limit)):
                options = {"problem": job.problem}
                question, _ = await self._call(env.reset, seed=seed, options=options)
                stop = await self._turns(env, episode, question, played)
        except _NoAnswer as error:
            failure, again = _infra(str(error)), error.again
        except TimeoutError:
            failure = _infra(f"the episode was not over after {limit:g} s (trajectory_seconds)")
        inner = _inner(env)
        turns = zip(inner.turns, played, strict=False)  # a last action may not have been played
        trajectory = Trajectory(
            problem=job.problem,
            agent=job.agent,
            sample=job.sample,
            seed=seed,
            turns=tuple(
                replace(turn, finish=finish, observation=observation)
                for turn, (finish, observation) in turns
            ),
            stop_reason=stop,
            grade=failure or inner.grade or Grade(False, GradeStatus.NO_ANSWER),
            tokens=episode.tokens(),
        )
        return trajectory, again

    async def _turns(
        self,
        env: ToolEnv,
        episode: Episode,
        observation: str,
        played: list[tuple[FinishReason, str]],
    ) -> StopReason:
        inner = _inner(env)
        while inner.stop_reason is None:
            async with self._slots:
                action = await self._ask(episode.act(observation))
            if action is None:
                return StopReason.TOKEN_LIMIT
            played.append((action.finish, ""))
            # A wrapper may change what the tool printed: the agent, and so the record, see that.
            inner.action_is_cut = action.finish is FinishReason.LENGTH
            observation, *_ = await self._call(env.step, action.text)
            played[-1] = (action.finish, observation)
        if inner.stop_reason is StopReason.NO_ACTION and played[-1][0] is FinishReason.LENGTH:
            return StopReason.TOKEN_LIMIT  # cut off before it could write either
        return inner.stop_reason

    async def _ask(self, answer: Awaitable[Result]) -> Result:
        """Wait for an agent within the turn's deadline.

        Raises:
            _NoAnswer: none came. Errors of the program are raised as themselves.
        """
        limit = self._config.turn_seconds
        try:
            async with asyncio.timeout(_finite(limit)) as deadline:
                return await answer
        except Exception as error:
            if deadline.expired():
                reason = f"no answer within {limit:g} s (turn_seconds)"
                raise _NoAnswer(reason, again=False) from error
            if isinstance(error, MathEnvError) and not isinstance(error, InfraError):
                raise
            raise _NoAnswer(_reason(error), again=True) from error

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


def _checked(env: ToolEnv) -> ToolEnv:
    if not isinstance(env.unwrapped, MathToolEnv):
        raise ConfigError(
            f"make_env returned {env!r}: it must be a MathToolEnv, or Gymnasium wrappers around one"
        )
    return env


def _inner(env: ToolEnv) -> MathToolEnv:
    """Return the environment that knows turns and verdict: a wrapper passes neither on."""
    inner = env.unwrapped
    assert isinstance(inner, MathToolEnv)
    return inner


def _engine(agent: Agent) -> object:
    """Return what decides how many requests run at once: agents may share an engine."""
    return getattr(agent, "model", agent)


def _slots(engine: object, config: CollectConfig) -> asyncio.Semaphore:
    most = getattr(engine, "slots", None)
    if most is None and isinstance(engine, LanguageModel):
        return asyncio.Semaphore(config.concurrency)  # it may wait for all open episodes
    return asyncio.Semaphore(min(most or config.concurrency, config.slots or config.concurrency))


def _finite(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) else None


def _reason(error: Exception) -> str:
    if isinstance(error, InfraError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]  # not an engine's: perhaps a mistake
    return f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
