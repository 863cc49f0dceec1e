"""`mathenv collect`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.base import WeightedAgent
from agents.distributed import (
    RayConfig,
    RayWorkers,
    SetupFactory,
    WorkerSetup,
    collect_distributed,
)
from agents.episode_log import Progress
from agents.rollout import CollectConfig, collect, read_collected
from benchmarks.agent_options import (
    AgentOptions,
    InterpreterName,
    identify,
    open_agent,
    read_mixture,
)
from benchmarks.console import ResultConsole
from benchmarks.metrics import outcomes, tool_use
from benchmarks.progress import ConsoleReporter
from benchmarks.report import percent
from benchmarks.runner import claim, describe_agent, describe_problems
from benchmarks.suites import Suite, find_suite
from mathenv.env import SandboxTier, shared_interpreter
from mathenv.errors import ConfigError, DataError
from mathenv.grading import STRICT
from mathenv.interpreter import Limits
from mathenv.manifest import environment
from mathenv.protocol import ProtocolName
from mathenv.settings import Count, NotNegative, PositiveOrInf, Seed, check_settings
from mathenv.store import FILE_NAME, TrajectoryStore, write_atomic
from mathenv.types import Problem

Settle = Callable[[Mapping[str, Any]], CollectConfig]


@dataclass(frozen=True, slots=True)
class Collect:
    """Sample n trajectories per problem, with the exact tokens, for `mathenv train`.

    A mixture of agents stands in a TOML file, a table for each: how many `samples` per problem,
    and the agent's flags with underscores, which hold as given here where the table is silent
    (but for a table that names another kind of agent).

        [current]
        samples = 20
        model = "runs/a/step-300"

        [previous]
        samples = 10
        model = "runs/a/step-200"

    Writes config.json, played.json (with which versions, sandbox and grader it was played)
    and trajectories.jsonl into a folder. Stopped and started again it
    goes on where it stopped.

    Args:
        suite: gsm8k, math, words, words_ood, or the path of a .jsonl file.
        out: the folder.
        data: folder with the suite's rows, as in `mathenv bench`.
        split: which split (default: train).
        limit: draw this many problems (the same ones for every seed).
        n: trajectories per problem.
        mixture: a .toml file of agents (see above). One is opened after the other.
        horizon: most turns of an episode. Raised for the oracle where solutions need more.
        protocol: how turns are read: as models write them (lenient), or the paper's format to
            the letter (paper).
        say_empty: tell the model of a cell that printed nothing, in a sentence.
        concurrency: episodes played at the same time, by each worker.
        threads: cells that run at the same time, at each worker.
        turn_seconds: deadline of one answer of the model; over it, an episode does not count.
        trajectory_seconds: deadline of one episode.
        seed: fixes every random choice.
        interpreter: what runs the code, this machine's sandbox or Docker.
        min_tier: refuse to run code in a weaker sandbox than this (default: any that works).
        ray: play with several workers on a Ray cluster: its address, `auto`, or `local` to
            start one on this machine. Left out: play in this process.
        workers: how many workers, each with its own engine (with --ray).
        worker_cpus: CPUs that Ray reserves for each worker.
        worker_gpus: GPUs that Ray reserves for each worker.
        who: the agent. Several samples are drawn at temperature 1 unless set otherwise.
    """

    suite: Annotated[str, tyro.conf.Positional]
    out: Path
    data: Path | None = None
    split: str = "train"
    limit: Count | None = None
    n: Count = 1
    mixture: Path | None = None
    horizon: Count = 6
    protocol: ProtocolName = "lenient"
    say_empty: bool = False
    concurrency: Count = 128
    threads: Count = 4
    turn_seconds: PositiveOrInf = 1800.0
    trajectory_seconds: PositiveOrInf = 7200.0
    seed: Seed = 0
    interpreter: InterpreterName = "local"
    min_tier: SandboxTier | None = None
    ray: str | None = None
    workers: Count = 2
    worker_cpus: NotNegative = 1.0
    worker_gpus: NotNegative = 0.0
    who: AgentOptions = field(default_factory=AgentOptions)

    def __post_init__(self) -> None:
        check_settings(self)

    def _check_ray(self) -> None:
        """Refuse settings of workers where there are none."""
        for option in fields(self):
            of_workers = option.name.startswith("worker")
            if of_workers and self.ray is None and getattr(self, option.name) != option.default:
                flag = f"--{option.name.replace('_', '-')}"
                raise ConfigError(f"{flag} needs --ray: without it this process plays alone")

    def run(self) -> None:
        """Collect, then print one line about what there is."""
        self._check_ray()
        suite = find_suite(self.suite, self.split)
        problems = suite.load(data=self.data, limit=self.limit)
        members = [(self.who, self.n)]
        if self.mixture is not None:
            members = self._read(self.mixture)
            agents = {str(who.name): identify(who, samples) for who, samples in members}
            self._claim(suite, problems, agents, self.horizon)
        expected = len(problems) * sum(samples for _, samples in members)
        play = self._play_here if self.ray is None else self._play_on_ray
        with ConsoleReporter().stage(f"collect {suite.name}", expected, "episodes") as advance:
            for who, samples in members:
                play(
                    problems,
                    partial(_open_members, who, problems, samples, self.interpreter, self.min_tier),
                    partial(self._settle, suite, problems),
                    lambda _, done, total: advance(done, max(total, expected)),
                )
        ResultConsole().say(self._summary())

    def _read(self, mixture: Path) -> list[tuple[AgentOptions, int]]:
        if self.n != 1:
            raise ConfigError("a mixture says for each agent how many `samples`: leave out --n")
        return read_mixture(mixture, self.who)

    def _play_here(
        self, problems: Sequence[Problem], factory: SetupFactory, settle: Settle, progress: Progress
    ) -> None:
        with factory() as setup:
            config = settle(setup.facts)
            with TrajectoryStore(self.out) as store:
                collect(
                    setup.members,
                    problems,
                    store,
                    config,
                    interpreter=self.interpreter,
                    progress=progress,
                )

    def _play_on_ray(
        self, problems: Sequence[Problem], factory: SetupFactory, settle: Settle, progress: Progress
    ) -> None:
        cluster = RayConfig(self.workers, self.ray or "local", self.worker_cpus, self.worker_gpus)
        with RayWorkers(factory, cluster) as workers:
            config = settle(workers.facts)
            with TrajectoryStore(self.out) as store:
                collect_distributed(
                    workers,
                    problems,
                    store,
                    config,
                    interpreter=self.interpreter,
                    progress=progress,
                )

    def _settle(
        self, suite: Suite, problems: Sequence[Problem], facts: Mapping[str, Any]
    ) -> CollectConfig:
        """Return how to play an open agent; where it is the only one, the folder is its own."""
        horizon = max(self.horizon, facts["least_horizon"])
        if self.mixture is None:
            self._claim(suite, problems, facts["agent"], horizon)
        self._note(facts["interpreter"])
        return CollectConfig(
            horizon=horizon,
            protocol=self.protocol,
            say_empty=self.say_empty,
            concurrency=self.concurrency,
            threads=self.threads,
            turn_seconds=self.turn_seconds,
            trajectory_seconds=self.trajectory_seconds,
            seed=self.seed,
        )

    def _claim(
        self, suite: Suite, problems: Sequence[Problem], agent: Mapping[str, Any], horizon: int
    ) -> None:
        """Make the folder this run's, or check that it is; where it is played is not noted."""
        # Not the number of samples: a later call may add more of them.
        reading = {"protocol": self.protocol, "say_empty": self.say_empty}
        run = {"seed": self.seed, "horizon": horizon, **reading, "agent": agent}
        claim(self.out, {**describe_problems(suite, problems), **run})

    def _note(self, interpreter: Mapping[str, str]) -> None:
        """Write down what plays, unless an earlier call played with the same."""
        file = self.out / "played.json"
        try:
            found = list(json.loads(file.read_bytes())) if file.exists() else []
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{file} is damaged ({error}): remove it; it only says what played earlier episodes"
            ) from None
        record = {
            "environment": environment(),
            "interpreter": dict(interpreter),
            "grading": STRICT.record(),
        }
        record = json.loads(json.dumps(record))
        if record not in found:
            write_atomic(file, json.dumps([*found, record], indent=1) + "\n")

    def _summary(self) -> str:
        trajectories = read_collected(self.out)
        rewards = [reward for group in outcomes(trajectories).values() for reward in group]
        excluded = len(trajectories) - len(rewards)
        right = percent(sum(rewards) / max(1, len(rewards)))
        stops: Counter[str] = Counter(tool_use(trajectories).stop_reasons)
        ends = ", ".join(f"{name} {count}" for name, count in stops.most_common())
        return (
            f"{len(trajectories)} trajectories, {right} right, {excluded} excluded, "
            f"ended by: {ends}\n{self.out / FILE_NAME}"
        )


@contextmanager
def _open_members(
    who: AgentOptions,
    problems: Sequence[Problem],
    samples: int,
    interpreter: str,
    min_tier: str | None,
) -> Iterator[WorkerSetup]:
    """Open the agent: in this process, or in each worker, where Ray sends this function."""
    sandbox = dict(shared_interpreter(interpreter, Limits(), min_tier).description)
    with open_agent(who, problems, samples=samples) as opened:
        agent = {**describe_agent(opened.agent), **opened.details}
        facts = {
            "agent": agent,
            "least_horizon": opened.least_horizon,
            "interpreter": sandbox,
        }
        yield WorkerSetup([WeightedAgent(opened.agent, samples)], facts)
