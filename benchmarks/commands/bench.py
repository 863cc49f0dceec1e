"""`mathenv bench`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.agent_options import (
    PROBLEM_KINDS,
    AgentOptions,
    InterpreterName,
    OpenAgent,
    open_agent,
)
from benchmarks.console import ResultConsole
from benchmarks.progress import ConsoleReporter
from benchmarks.report import bench_table
from benchmarks.results import BenchResult
from benchmarks.runner import greedy, run_bench
from benchmarks.suites import Suite, find_suites
from mathenv.env import SandboxTier, shared_interpreter
from mathenv.errors import ConfigError
from mathenv.interpreter import Limits
from mathenv.protocol import ProtocolName
from mathenv.settings import Count, Seed, check_settings
from mathenv.types import Problem

_SHOWN_MISMATCHES = 20
_PAPER_HORIZON = 6


@dataclass(frozen=True, slots=True)
class Bench:
    """Measure an agent: play every problem of a suite, print accuracy with its interval.

    Writes config.json, trajectories.jsonl, results.json, results.md and results.tex into a
    folder per suite. A run that was stopped goes on when the same command is given again.
    With several samples per problem a model is also measured greedily, once per problem.

    Args:
        suites: suites separated by commas: gsm8k, math, math500, svamp, asdiv, mawps, gsm_hard,
            aime24, aime25, amc23, words, words_ood, or the path of a .jsonl file of your own
            with `question` and `answer`.
        setting: `paper` is what arXiv 2409.02392 reports: horizon 6, greedy, zero-shot, its
            protocol and its grader. `default` is the same horizon, the lenient protocol and the
            strict grader.
        data: folder with the suite's rows (<split>.jsonl), or with one folder per suite.
            Left out: published data sets come from the Hugging Face hub.
        split: which split (default: test).
        limit: draw this many problems (the same ones for every seed).
        n: samples per problem.
        greedy: measure one greedy sample per problem too where n is more than 1.
        out: folder for results; each suite gets a folder in it.
        horizon: most turns of an episode (default: 6). Raised for the oracle where solutions
            need more.
        protocol: how turns are read: as models write them (lenient, the default), or the
            paper's format to the letter (paper, the default in the setting `paper`).
        say_empty: tell the model of a cell that printed nothing, in a sentence.
        policy: what counts as equal (default: strict, or paper in the setting `paper`). A
            finished run is scored again under another policy without playing.
        concurrency: episodes played at the same time.
        seed: fixes every random choice.
        interpreter: what runs the code, this machine's sandbox or Docker.
        min_tier: refuse to run code in a weaker sandbox than this (default: any that works).
        who: the agent.
    """

    suites: Annotated[str, tyro.conf.Positional]
    setting: Literal["default", "paper"] = "default"
    data: Path | None = None
    split: str | None = None
    limit: Count | None = None
    n: Count = 1
    greedy: bool = True
    out: Path | None = None
    horizon: Count | None = None
    protocol: ProtocolName | None = None
    say_empty: bool = False
    policy: Literal["strict", "paper", "math_verify"] | None = None
    concurrency: Count = 32
    seed: Seed = 0
    interpreter: InterpreterName = "local"
    min_tier: SandboxTier | None = None
    who: AgentOptions = field(default_factory=AgentOptions)

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self) -> None:
        """Run the suites one after another and print one table."""
        if self.setting == "paper":
            self._check_paper()
        results = self._results(ConsoleReporter())
        console = ResultConsole()
        console.print(bench_table(results))
        for result in results:
            _print_mismatches(result, console)
            console.say(f"results: {result.out}")

    def _check_paper(self) -> None:
        """Refuse flags that contradict the paper's setting."""
        wrong = {
            f"--n {self.n}": self.n != 1,
            f"--horizon {self.horizon}": self.horizon not in (None, _PAPER_HORIZON),
            f"--protocol {self.protocol}": self.protocol not in (None, "paper"),
            "--say-empty": self.say_empty,
            f"--policy {self.policy}": self.policy not in (None, "paper"),
            f"--temperature {self.who.temperature}": self.who.temperature not in (None, 0),
        }
        flags = [flag for flag, is_wrong in wrong.items() if is_wrong]
        if flags:
            raise ConfigError(
                f"--setting paper is one greedy sample, horizon {_PAPER_HORIZON}, the protocol "
                f"and the policy paper: leave out {', '.join(flags)}, or use --setting default"
            )

    def _results(self, reporter: ConsoleReporter) -> list[BenchResult]:
        """Load every suite before the first is played, and a model once for all of them."""
        suites = find_suites(self.suites, self.split)
        problems = {suite: suite.load(data=self.data, limit=self.limit) for suite in suites}
        if self.who.agent in PROBLEM_KINDS:
            return [
                result
                for suite in suites
                for result in self._bench([suite], problems[suite], reporter)
            ]
        everything = [problem for suite in suites for problem in problems[suite]]
        return self._bench(suites, everything, reporter)

    def _bench(
        self, suites: Sequence[Suite], problems: Sequence[Problem], reporter: ConsoleReporter
    ) -> list[BenchResult]:
        results = []
        with open_agent(self.who, problems, samples=self.n) as opened:
            once = greedy(opened.agent) if self.n > 1 and self.greedy else None
            for suite in suites:
                if once is not None:
                    variant = OpenAgent(once, opened.details, opened.least_horizon)
                    results.append(self._play(suite, variant, 1, reporter))
                results.append(self._play(suite, opened, self.n, reporter))
        return results

    def _play(
        self, suite: Suite, opened: OpenAgent, samples: int, reporter: ConsoleReporter
    ) -> BenchResult:
        name = f"{suite.name}-{opened.agent.name}"
        beside = samples == 1 < self.n  # the greedy samples beside the others
        with reporter.stage(f"bench {suite.name}", None, "episodes") as advance:
            return run_bench(
                suite,
                opened.agent,
                (self.out or Path("runs/bench")) / (f"{name}-greedy" if beside else name),
                samples=samples,
                data=self.data,
                limit=self.limit,
                horizon=max(self.horizon or _PAPER_HORIZON, opened.least_horizon),
                protocol=self.protocol or ("paper" if self.setting == "paper" else "lenient"),
                say_empty=self.say_empty,
                concurrency=self.concurrency,
                seed=self.seed,
                interpreter=shared_interpreter(self.interpreter, Limits(), self.min_tier),
                policy=self.policy or ("paper" if self.setting == "paper" else "strict"),
                progress=advance,
                details=opened.details,
            )


def _print_mismatches(result: BenchResult, console: ResultConsole) -> None:
    if not result.mismatches:
        return
    count = len(result.mismatches)
    console.say(f"{count} reference answers of {result.suite} do not grade as themselves:")
    for mismatch in result.mismatches[:_SHOWN_MISMATCHES]:
        console.say(f"  {mismatch.id}: {mismatch.answer!r} ({mismatch.status})")
    if count > _SHOWN_MISMATCHES:
        console.say(f"  and {count - _SHOWN_MISMATCHES} more in results.json")
