"""`mathenv collect`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from agents.base import WeightedAgent
from agents.rollout import CollectConfig, collect, read_collected
from benchmarks.agent_options import AgentOptions, open_agent
from benchmarks.console import ResultConsole
from benchmarks.metrics import outcomes, tool_use
from benchmarks.progress import ConsoleReporter
from benchmarks.report import percent
from benchmarks.runner import claim, describe_agent, describe_problems
from benchmarks.suites import find_suite
from mathenv.store import FILE_NAME, TrajectoryStore


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
        concurrency: episodes played at the same time.
        seed: fixes every random choice.
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
    seed: int = 0
    who: AgentOptions = field(default_factory=AgentOptions)

    def run(self) -> None:
        """Collect, then print one line about what there is."""
        suite = find_suite(self.suite, self.split)
        problems = suite.load(data=self.data, limit=self.limit)
        reporter = ConsoleReporter()
        with (
            open_agent(self.who, problems, samples=self.n) as opened,
            reporter.stage(f"collect {suite.name}", len(problems) * self.n, "episodes") as advance,
        ):
            horizon = max(self.horizon, opened.least_horizon)
            agent = {**describe_agent(opened.agent), **opened.details}
            # Not the number of samples: a later call may add more of them.
            run = {"seed": self.seed, "horizon": horizon, "agent": agent}
            claim(self.out, {**describe_problems(suite, problems), **run})
            with TrajectoryStore(self.out) as store:
                collect(
                    [WeightedAgent(opened.agent, self.n)],
                    problems,
                    store,
                    CollectConfig(horizon=horizon, concurrency=self.concurrency, seed=self.seed),
                    progress=lambda _, done, total: advance(done, total),
                )
        ResultConsole().say(self._summary())

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
