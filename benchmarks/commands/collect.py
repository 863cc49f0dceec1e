"""`mathenv collect`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.base import WeightedAgent
from agents.distributed import RayConfig, RayWorkers, WorkerSetup, collect_distributed
from agents.episode_log import Progress
from agents.rollout import CollectConfig, collect, read_collected
from benchmarks.agent_options import AgentOptions, InterpreterName, open_agent
from benchmarks.console import ResultConsole
from benchmarks.metrics import outcomes, tool_use
from benchmarks.progress import ConsoleReporter
from benchmarks.report import percent
from benchmarks.runner import claim, describe_agent, describe_problems
from benchmarks.suites import Suite, find_suite
from mathenv.store import FILE_NAME, TrajectoryStore
from mathenv.types import Problem


@dataclass(frozen=True, slots=True)
class Collect:
    """Sample n trajectories per problem, with the exact tokens, for `mathenv train`.

    Writes config.json and trajectories.jsonl into a folder. Stopped and started again it
    goes on where it stopped.

    Args:
        suite: gsm8k, math, words, words_ood, or the path of a .jsonl file.
        out: the folder.
        data: folder with the suite's rows, as in `mathenv bench`.
        split: which split (default: train).
        limit: draw this many problems (the same ones for every seed).
        n: trajectories per problem.
        horizon: most turns of an episode. Raised for the oracle where solutions need more.
        concurrency: episodes played at the same time, by each worker.
        threads: cells that run at the same time, at each worker.
        turn_seconds: deadline of one answer of the model; over it, an episode does not count.
        trajectory_seconds: deadline of one episode.
        seed: fixes every random choice.
        interpreter: what runs the code, this machine's sandbox or Docker.
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
    limit: int | None = None
    n: int = 1
    horizon: int = 6
    concurrency: int = 128
    threads: int = 4
    turn_seconds: float = 1800.0
    trajectory_seconds: float = 7200.0
    seed: int = 0
    interpreter: InterpreterName = "local"
    ray: str | None = None
    workers: int = 2
    worker_cpus: float = 1.0
    worker_gpus: float = 0.0
    who: AgentOptions = field(default_factory=AgentOptions)

    def run(self) -> None:
        """Collect, then print one line about what there is."""
        suite = find_suite(self.suite, self.split)
        problems = suite.load(data=self.data, limit=self.limit)
        play = self._play_here if self.ray is None else self._play_on_ray
        with ConsoleReporter().stage(
            f"collect {suite.name}", len(problems) * self.n, "episodes"
        ) as advance:
            play(suite, problems, lambda _, done, total: advance(done, total))
        ResultConsole().say(self._summary())

    def _play_here(self, suite: Suite, problems: Sequence[Problem], progress: Progress) -> None:
        with _open_members(self.who, problems, self.n) as setup:
            config = self._claim(suite, problems, setup.facts)
            with TrajectoryStore(self.out) as store:
                collect(
                    setup.members,
                    problems,
                    store,
                    config,
                    interpreter=self.interpreter,
                    progress=progress,
                )

    def _play_on_ray(self, suite: Suite, problems: Sequence[Problem], progress: Progress) -> None:
        cluster = RayConfig(self.workers, self.ray or "local", self.worker_cpus, self.worker_gpus)
        with RayWorkers(partial(_open_members, self.who, problems, self.n), cluster) as workers:
            config = self._claim(suite, problems, workers.facts)
            with TrajectoryStore(self.out) as store:
                collect_distributed(
                    workers,
                    problems,
                    store,
                    config,
                    interpreter=self.interpreter,
                    progress=progress,
                )

    def _claim(
        self, suite: Suite, problems: Sequence[Problem], facts: Mapping[str, Any]
    ) -> CollectConfig:
        """Make the folder this run's, or check that it is; where it is played is not noted."""
        horizon = max(self.horizon, facts["least_horizon"])
        # Not the number of samples: a later call may add more of them.
        run = {"seed": self.seed, "horizon": horizon, "agent": facts["agent"]}
        claim(self.out, {**describe_problems(suite, problems), **run})
        return CollectConfig(
            horizon=horizon,
            concurrency=self.concurrency,
            threads=self.threads,
            turn_seconds=self.turn_seconds,
            trajectory_seconds=self.trajectory_seconds,
            seed=self.seed,
        )

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
    who: AgentOptions, problems: Sequence[Problem], samples: int
) -> Iterator[WorkerSetup]:
    """Open the agent: in this process, or in each worker, where Ray sends this function."""
    with open_agent(who, problems, samples=samples) as opened:
        agent = {**describe_agent(opened.agent), **opened.details}
        facts = {"agent": agent, "least_horizon": opened.least_horizon}
        yield WorkerSetup([WeightedAgent(opened.agent, samples)], facts)
