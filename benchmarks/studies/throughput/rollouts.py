"""The collector's speed, beside the turn-synchronous loop of the paper's code.

Both play the same episodes with the same engine, the same number of slots and the same
interpreter pool; only the order differs. The loop does all generations of a turn, then all
its cells, then the next turn (arXiv 2409.02392's code). The engine is a model of one that
takes as long as a real one would (`modelled`), or any real one.
"""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from copy import copy
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from itertools import count, product
from typing import Any

from agents.base import (
    Agent,
    Completion,
    CompletionRequest,
    Episode,
    LanguageModel,
    ModelSession,
    SamplingParams,
)
from agents.collector import CollectConfig, Collector, Job, seed_of
from agents.llm import LLMAgent
from agents.rollout import jobs_of
from benchmarks.progress import Advance
from benchmarks.studies.throughput.modelled import (
    Load,
    ModelledAgent,
    ModelledEngine,
    ModelledInterpreter,
    VirtualLoop,
    VirtualThreads,
)
from benchmarks.studies.throughput.report import Goal, Report
from mathenv.env import MathToolEnv
from mathenv.interpreter import Interpreter, LocalInterpreter, Session
from mathenv.problems import words
from mathenv.store import TrajectoryStore
from mathenv.types import ExecutionResult, Problem, Trajectory

COLLECTOR, LOOP = "collector", "turn-synchronous loop"
SPEED, OVERHEAD = "trajectories per second: {}", "the collector's own CPU per turn"
BUSY_GOAL, SPEED_GOAL, OVERHEAD_GOAL = 0.85, 1.8, 1.0

# Our own limit of a cell is 5 s; 10 s is that of ../shared/docs/performance.md, part C4.
FULL = (
    Load(),
    Load(late_seconds=10.0),
    Load(problems=16),
)
VLLM = Load(problems=40, samples=10, slots=64, concurrency=128)
QUICK = (Load(problems=8, samples=8, slots=16, concurrency=32, threads=4),)


async def turn_synchronous(
    agent: Agent,
    jobs: Sequence[Job],
    config: CollectConfig,
    interpreter: Interpreter,
    threads: ThreadPoolExecutor,
    file: Callable[[Trajectory], None],
) -> None:
    """Play all jobs turn by turn: all generations, then all cells, then the next turn."""
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as stack:
        live = []
        for job in jobs:
            env = MathToolEnv([job.problem], interpreter=interpreter, horizon=config.horizon)
            seed = seed_of(config, job, "environment") % 2**32
            text, _ = env.reset(seed=seed, options={"problem": job.problem})
            episode = agent.episode(
                job.problem.question,
                sample=job.sample,
                seed=seed_of(config, job, f"agent {job.agent}"),
            )
            live.append((job, env, await stack.enter_async_context(episode), text))
        while live:
            actions = await asyncio.gather(*(episode.act(text) for _, _, episode, text in live))
            steps = await asyncio.gather(
                *(
                    loop.run_in_executor(threads, env.step, action.text if action else "")
                    for (_, env, _, _), action in zip(live, actions, strict=True)
                )
            )
            going = []
            for (job, env, player, _), (text, *_) in zip(live, steps, strict=True):
                if env.stop_reason is None:
                    going.append((job, env, player, text))
                else:
                    file(_trajectory(job, env, player))
            live = going


def _trajectory(job: Job, env: MathToolEnv, episode: Episode) -> Trajectory:
    assert env.stop_reason is not None
    assert env.grade is not None
    return Trajectory(
        problem=job.problem,
        agent=job.agent,
        sample=job.sample,
        seed=0,
        turns=env.turns,
        stop_reason=env.stop_reason,
        grade=env.grade,
        tokens=episode.tokens(),
    )


@dataclass(frozen=True, slots=True)
class Run:
    """One way's result.

    `seconds` are on the virtual clock, `cpu_seconds` what this process itself has used.
    `busy` is the share of the engine's slots in use.
    """

    seconds: float
    cpu_seconds: float
    turns: int
    busy: float


def run_modelled(way: str, load: Load, *, instant: bool = False) -> Run:
    """Play the load in one way. `instant`: engine and cells take no time."""
    problems = [Problem(f"p{n}", f"Question {n}?", "42") for n in range(load.problems)]
    jobs = jobs_of([("modelled", load.samples)], problems)

    async def main(folder: str) -> Run:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        engine = None if instant else ModelledEngine(load.slots)
        agent = ModelledAgent(load, engine, len(jobs))
        interpreter = ModelledInterpreter(load, None if instant else loop)
        serving = None if engine is None else asyncio.create_task(engine.run())
        with TrajectoryStore(folder) as store, VirtualThreads(loop, load.threads) as threads:
            cpu = time.process_time()
            await _play(way, agent, jobs, load, interpreter, threads, store)
            cpu = time.process_time() - cpu
            assert len(store) == len(jobs)
        if serving is not None:
            serving.cancel()
        return Run(loop.time(), cpu, agent.turns, _busy(way, engine, agent, loop.time()))

    with tempfile.TemporaryDirectory() as folder:
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            return runner.run(main(folder))


async def _play(
    way: str,
    agent: Agent,
    jobs: Sequence[Job],
    load: Load,
    interpreter: Interpreter,
    threads: ThreadPoolExecutor,
    store: TrajectoryStore,
) -> None:
    config = CollectConfig(concurrency=load.concurrency, threads=load.threads)
    if way == LOOP:
        await turn_synchronous(agent, jobs, config, interpreter, threads, store.append)
        return
    with Collector([agent], config, interpreter, threads=threads) as collector:
        await collector.play(jobs, store.append)


def _busy(way: str, engine: ModelledEngine | None, agent: ModelledAgent, seconds: float) -> float:
    """Share of slots in use in steady state: from when all are to the last episode's start.

    Where all episodes begin at once there is no steady state: then it is the whole run.
    """
    if engine is None:
        return math.nan
    load = agent.load
    if way == LOOP or load.concurrency >= load.episodes or engine.full is None:
        return engine.busy / (seconds * engine.slots)
    (start, before), (end, after) = engine.full, agent.begun
    return (after - before) / ((end - start) * engine.slots)


def measure(*, quick: bool, advance: Advance, model: str | None = None) -> Report:
    """Measure both ways on a modelled engine, and the collector's own CPU time.

    Args:
        quick: a small load: tries the benchmark, does not measure.
        model: a model that plays `words`; measures both ways on vLLM with it as well.

    Raises:
        ConfigError: there is no vLLM, or it cannot run the model.
    """
    loads = QUICK if quick else FULL
    goals = [Goal(OVERHEAD, frozenset({COLLECTOR}), OVERHEAD_GOAL)]
    report = Report(goals=goals, reference=LOOP, details={"loads": [asdict(x) for x in loads]})
    total = 2 * len(loads) + 1 + (0 if model is None else 6)
    for load in loads:
        goals.append(Goal(SPEED.format(load.name), frozenset({COLLECTOR}), SPEED_GOAL, LOOP))
    for place, (load, way) in enumerate(product(loads, (LOOP, COLLECTOR)), start=1):
        run = run_modelled(way, load)
        report.add(SPEED.format(load.name), way, "/s", [load.episodes / run.seconds], None)
        report.remarks.append(f"{load.name}: {_told(way, run, load)}")
        advance(place, total)
    run = run_modelled(COLLECTOR, loads[0], instant=True)
    report.add(OVERHEAD, COLLECTOR, "ms", [1e3 * run.cpu_seconds / run.turns], None)
    done = 2 * len(loads) + 1
    advance(done, total)
    if model is not None:
        steps = count(done + 1)
        _measure_vllm(model, quick, report, goals, lambda: advance(next(steps), total))
    return report


def _measure_vllm(
    model: str, quick: bool, report: Report, goals: list[Goal], step: Callable[[], None]
) -> None:
    load = replace(QUICK[0] if quick else VLLM, threads=12)
    problems = words.load("train", count=load.problems)
    options = import_module("agents.models.vllm_engine").VLLMOptions(
        dtype="float32", max_sequences=load.slots
    )
    load_policy = import_module("agents.policy").load_vllm_policy
    with load_policy(model, SamplingParams(), name="vLLM", options=options) as agent:
        # A sandbox on this machine takes CPU time from the engine; one elsewhere only waits.
        _measure_engine("sandbox elsewhere", agent, problems, load, None, report, goals, step)
        with LocalInterpreter() as local:
            _measure_engine("sandbox here", agent, problems, load, local, report, goals, step)


def _measure_engine(
    title: str,
    agent: LLMAgent,
    problems: Sequence[Problem],
    load: Load,
    local: Interpreter | None,
    report: Report,
    goals: list[Goal],
    step: Callable[[], None],
) -> None:
    """Measure both ways on a real engine, in real time. Cells take as long as modelled."""
    name = SPEED.format(f"{load.name}, {agent.name}, {title}")
    if local is None:  # the sandbox's CPU time passes on another machine
        goals.append(Goal(name, frozenset({COLLECTOR}), SPEED_GOAL, LOOP))
    metered: Any = copy(agent)  # shares the engine; agents are not changed after this
    jobs = jobs_of([(agent.name, load.samples)], problems)
    # First to warm up and to put all prompts into the prefix cache; that is not reported.
    for way in ("", LOOP, COLLECTOR):
        metered.model = engine = Metered(agent.model, load.slots)
        chosen = jobs if way else [job for job in jobs if job.sample == 0]
        cells = Delayed(local or ModelledInterpreter(load, None), load)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder, TrajectoryStore(folder) as store:
            with ThreadPoolExecutor(load.threads) as threads:
                asyncio.run(_play(way, metered, chosen, load, cells, threads, store))
            turns = sum(len(t.turns) for t in store)
        seconds = time.perf_counter() - started
        step()
        if way:
            report.add(name, way, "/s", [len(jobs) / seconds], None)
            report.remarks.append(
                f"{title}: {way}: {seconds:.1f} s, {turns} turns, "
                f"{engine.usage.total / seconds / load.slots:.0%} of {load.slots} slots busy over "
                f"the run{_told_steady(way, engine.usage, load)}"
            )


@dataclass(slots=True)
class Usage:
    """How many of an engine's slots are in use: the integral over time, and its marks.

    `full` and `begun` are (time, integral) when all slots were first in use, and when the
    last session was opened: between them the engine had all the work that it could take.
    """

    slots: int
    running: int = 0
    total: float = 0.0
    full: tuple[float, float] | None = None
    begun: tuple[float, float] = (0.0, 0.0)
    _last: float = 0.0

    def change(self, by: int, now: float) -> None:
        """Note that so many requests begin (or, below 0, end)."""
        self._advance(now)
        self.running += by
        if self.full is None and self.running == self.slots:
            self.full = now, self.total

    def begin(self, now: float) -> None:
        """Note that an episode begins."""
        self._advance(now)
        self.begun = now, self.total

    def steady(self) -> float:
        """Share of the slots in use in steady state; NaN where there was none."""
        (start, before), (end, after) = self.full or self.begun, self.begun
        return (after - before) / (end - start) / self.slots if end > start else math.nan

    def _advance(self, now: float) -> None:
        self.total += self.running * (now - self._last)
        self._last = now


def _told_steady(way: str, usage: Usage, load: Load) -> str:
    busy = usage.steady()
    if way == LOOP or load.concurrency >= load.episodes or math.isnan(busy):
        return ""  # all episodes began at once
    met = "met" if busy >= BUSY_GOAL else "MISSED"
    return f", {busy:.0%} in steady state (>= {BUSY_GOAL:.0%} {met})"


class Metered:
    """A real engine with so many slots, which counts how many are in `usage`.

    At most `slots` requests are with the engine, which decodes as many at once: each that
    it has been given and has not answered is in a slot.
    """

    def __init__(self, model: LanguageModel, slots: int) -> None:
        self._model, self.slots, self.name = model, slots, model.name
        self._bound = asyncio.Semaphore(slots)
        self.usage = Usage(slots)

    @asynccontextmanager
    async def session(self) -> AsyncIterator[_MeteredSession]:
        async with self._model.session() as session:
            self.usage.begin(_now())
            yield _MeteredSession(self, session)

    def close(self) -> None:
        self._model.close()


class _MeteredSession:
    def __init__(self, owner: Metered, session: ModelSession) -> None:
        self._owner, self._session = owner, session

    async def complete(self, request: CompletionRequest) -> Completion:
        async with self._owner._bound:
            self._owner.usage.change(1, _now())
            try:
                return await self._session.complete(request)
            finally:
                self._owner.usage.change(-1, _now())


def _now() -> float:
    return asyncio.get_running_loop().time()


class Delayed:
    """A real sandbox whose cells take the modelled time longer, as one elsewhere would."""

    def __init__(self, interpreter: Interpreter, load: Load) -> None:
        self._interpreter, self._load = interpreter, load

    @property
    def description(self) -> dict[str, str]:
        return self._interpreter.description

    def session(self, *, seed: int = 0) -> _DelayedSession:
        return _DelayedSession(self._interpreter.session(seed=seed), self._load, seed)

    def close(self) -> None:
        pass


class _DelayedSession:
    def __init__(self, session: Session, load: Load, seed: int) -> None:
        self._session, self._load, self._rng = session, load, random.Random(seed)

    def run(self, code: str) -> ExecutionResult:
        result = self._session.run(code)
        time.sleep(self._load.cell(self._rng))
        return result

    def fork(self) -> Session:
        return self._session.fork()

    def close(self) -> None:
        self._session.close()


def _told(way: str, run: Run, load: Load) -> str:
    text = f"{way}: {run.seconds:.0f} s, {run.busy:.0%} of {load.slots} slots busy"
    if way == LOOP or load.concurrency >= load.episodes:
        return f"{text} over the run"
    met = "met" if run.busy >= BUSY_GOAL else "MISSED"
    return f"{text} in steady state (>= {BUSY_GOAL:.0%} {met})"
