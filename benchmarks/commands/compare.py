"""`mathenv compare`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.rollout import read_collected
from benchmarks.comparable import Setting, check_comparable, settings_that_differ
from benchmarks.comparison import Comparison, compare_runs
from benchmarks.console import ResultConsole
from benchmarks.report import (
    COMPARISON_COLUMNS,
    comparison_rows,
    comparison_table,
    latex_table,
    markdown_table,
)
from benchmarks.results import FILE, BenchResult, read_result
from benchmarks.runner import regraded
from mathenv.errors import ConfigError
from mathenv.files import check_writable
from mathenv.settings import Seed, check_settings
from mathenv.store import write_atomic
from mathenv.types import Trajectory


@dataclass(frozen=True, slots=True)
class Compare:
    """Compare two benchmark runs problem by problem, with an exact test and an interval.

    Prints one line per suite and says in a sentence what it shows. Runs that differ in what they
    should share (problems, samples, temperature, horizon, prompt, grading, ...) are refused.

    Args:
        first: folder of a run that `mathenv bench` wrote for one suite, or a folder of such
            folders (with one run per suite).
        second: the run, or runs, that is measured against it.
        policy: score both runs under this grading policy. Left out: the one they were scored
            with, which must be the same.
        despite: settings that may differ, by the names that a refusal gives them: problems,
            samples, horizon, protocol, grading, interpreter, limits, temperature, top_p,
            max_turn_tokens, max_tokens, prompt, template.
        out: also write the comparison to this folder, as comparison.json, .md and .tex.
        seed: of the bootstrap, where there are problems enough for one.
    """

    first: Annotated[Path, tyro.conf.Positional]
    second: Annotated[Path, tyro.conf.Positional]
    policy: Literal["strict", "paper", "math_verify"] | None = None
    despite: tuple[str, ...] = ()
    out: Path | None = None
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self) -> None:
        """Compare suite by suite, print the table and the sentences."""
        if self.out is not None:
            check_writable(self.out / "comparison.json")
        before, after = find_runs(self.first), find_runs(self.second)
        suites = [suite for suite in before if suite in after]
        if not suites:
            raise ConfigError(
                f"{self.first} has {', '.join(before)} and {self.second} has {', '.join(after)}: "
                "no suite is in both"
            )
        differing = {suite: self._differing(before[suite], after[suite]) for suite in suites}
        for found in differing.values():
            check_comparable(found, self.despite)
        compared = [(suite, self._compare(before[suite], after[suite])) for suite in suites]
        console = ResultConsole()
        console.print(comparison_table(compared))
        for suite, comparison in compared:
            console.say(f"{suite}: {comparison.sentence()}")
            if comparison.unshared:
                console.say(f"  {comparison.unshared} problems count in one run only: left out")
            for setting in differing[suite]:
                console.say(f"  the runs differ in {setting}")
        if self.out is not None:
            write_comparison(self.out, compared)
            console.say(f"written: {self.out}")

    def _differing(self, first: BenchResult, second: BenchResult) -> list[Setting]:
        found = settings_that_differ(first, second)
        return [s for s in found if s.name != "grading" or self.policy is None]

    def _compare(self, first: BenchResult, second: BenchResult) -> Comparison:
        return compare_runs(
            self._episodes(first),
            self._episodes(second),
            names=_names(first, second),
            seed=self.seed,
        )

    def _episodes(self, result: BenchResult) -> list[Trajectory]:
        return regraded(read_collected(result.folder), self.policy or result.grading)


def find_runs(folder: Path) -> dict[str, BenchResult]:
    """Return the finished runs in a folder by suite: its own, or one per folder in it.

    Raises:
        ConfigError: there is none, or two of one suite.
    """
    if (folder / FILE).exists():
        result = read_result(folder)
        return {result.suite: result}
    runs: dict[str, BenchResult] = {}
    for file in sorted(folder.glob(f"*/{FILE}")):
        result = read_result(file.parent)
        if result.suite in runs:
            raise ConfigError(
                f"{folder} has two runs of {result.suite} ({runs[result.suite].folder.name} and "
                f"{result.folder.name}): name the folder of one"
            )
        runs[result.suite] = result
    if not runs:
        raise ConfigError(f"{folder} holds no finished run (no {FILE}): see mathenv bench --help")
    return runs


def write_comparison(out: Path, compared: list[tuple[str, Comparison]]) -> None:
    """Write comparison.json, .md and .tex into a folder."""
    rows: list[dict[str, Any]] = [
        {"suite": suite, **asdict(c), "p_value": c.p_value, "sentence": c.sentence()}
        for suite, c in compared
    ]
    cells = comparison_rows(compared)
    sentences = "\n".join(f"- {suite}: {c.sentence()}" for suite, c in compared)
    table = markdown_table(COMPARISON_COLUMNS, cells)
    write_atomic(out / "comparison.json", json.dumps(rows, indent=1) + "\n")
    write_atomic(out / "comparison.md", f"# Comparison\n\n{table}\n{sentences}\n")
    write_atomic(out / "comparison.tex", latex_table(COMPARISON_COLUMNS, cells))


def _names(first: BenchResult, second: BenchResult) -> tuple[str, str]:
    if first.agent != second.agent:
        return first.agent, second.agent
    return f"{first.agent} ({first.folder.name})", f"{second.agent} ({second.folder.name})"
