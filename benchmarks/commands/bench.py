"""`mathenv bench`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.agent_options import AgentOptions, open_agent
from benchmarks.console import ResultConsole
from benchmarks.progress import ConsoleReporter
from benchmarks.report import bench_table
from benchmarks.runner import BenchResult, run_bench
from benchmarks.suites import Suite, find_suites

_SHOWN_MISMATCHES = 20


@dataclass(frozen=True, slots=True)
class Bench:
    """Measure an agent: play every problem of a suite, print accuracy with its interval.

    Writes config.json, trajectories.jsonl, results.json and results.md into a folder per
    suite. A run that was stopped goes on when the same command is given again.

    Args:
        suites: suites separated by commas: gsm8k, math, words, words_ood, or the path of a
            .jsonl file with `question` and `answer`.
        data: folder with the suite's rows (<split>.jsonl), or with one folder per suite.
            Left out: published data sets come from the Hugging Face hub.
        split: which split (default: test).
        limit: draw this many problems (the same ones for every seed).
        n: samples per problem.
        out: folder for results; each suite gets a folder in it.
        horizon: most turns of an episode. Raised for the oracle where solutions need more.
        concurrency: episodes played at the same time.
        seed: fixes every random choice.
        who: the agent.
    """

    suites: Annotated[str, tyro.conf.Positional]
    data: Path | None = None
    split: str | None = None
    limit: int | None = None
    n: int = 1
    out: Path | None = None
    horizon: int = 6
    concurrency: int = 32
    seed: int = 0
    who: AgentOptions = field(default_factory=AgentOptions)

    def run(self) -> None:
        """Run the suites one after another and print one table."""
        reporter = ConsoleReporter()
        results = [self._bench(s, reporter) for s in find_suites(self.suites, self.split)]
        console = ResultConsole()
        console.print(bench_table(results))
        for result in results:
            _print_mismatches(result, console)
            console.say(f"results: {result.out}")

    def _bench(self, suite: Suite, reporter: ConsoleReporter) -> BenchResult:
        problems = suite.load(data=self.data, limit=self.limit)
        with (
            open_agent(self.who, problems, samples=self.n) as opened,
            reporter.stage(f"bench {suite.name}", len(problems) * self.n, "episodes") as advance,
        ):
            folder = f"{suite.name}-{opened.agent.name}"
            return run_bench(
                suite,
                opened.agent,
                (self.out or Path("runs/bench")) / folder,
                samples=self.n,
                data=self.data,
                limit=self.limit,
                horizon=max(self.horizon, opened.least_horizon),
                concurrency=self.concurrency,
                seed=self.seed,
                progress=advance,
                details=opened.details,
            )


def _print_mismatches(result: BenchResult, console: ResultConsole) -> None:
    if not result.mismatches:
        return
    count = len(result.mismatches)
    console.say(f"{count} reference answers of {result.suite} do not grade as themselves:")
    for mismatch in result.mismatches[:_SHOWN_MISMATCHES]:
        problem, status = mismatch.problem, mismatch.grade.status.value
        console.say(f"  {problem.id}: {problem.answer!r} ({status})")
    if count > _SHOWN_MISMATCHES:
        console.say(f"  and {count - _SHOWN_MISMATCHES} more in results.json")
