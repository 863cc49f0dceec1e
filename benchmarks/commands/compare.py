"""`mathenv compare`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.rollout import read_collected
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
from mathenv.store import write_atomic
from mathenv.types import Trajectory


@dataclass(frozen=True, slots=True)
class Compare:
    """Compare two benchmark runs problem by problem: McNemar's test and a paired bootstrap.

    Prints one line per suite and says in a sentence what it shows. McNemar's exact test is for
    one sample per problem; with several the bootstrap over problems decides.

    Args:
        first: folder of a run that `mathenv bench` wrote for one suite, or a folder of such
            folders (with one run per suite).
        second: the run, or runs, that is measured against it.
        policy: score both runs under this grading policy. Left out: the one they were scored
            with, which must be the same.
        out: also write the comparison to this folder, as comparison.json, .md and .tex.
        seed: of the bootstrap.
    """

    first: Annotated[Path, tyro.conf.Positional]
    second: Annotated[Path, tyro.conf.Positional]
    policy: Literal["strict", "paper", "math_verify"] | None = None
    out: Path | None = None
    seed: int = 0

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
        compared = [(suite, self._compare(before[suite], after[suite])) for suite in suites]
        console = ResultConsole()
        console.print(comparison_table(compared))
        for suite, comparison in compared:
            console.say(f"{suite}: {comparison.sentence()}")
            if comparison.unshared:
                console.say(f"  {comparison.unshared} problems count in one run only: left out")
        if self.out is not None:
            write_comparison(self.out, compared)
            console.say(f"written: {self.out}")

    def _compare(self, first: BenchResult, second: BenchResult) -> Comparison:
        if self.policy is None and first.policy["digest"] != second.policy["digest"]:
            raise ConfigError(
                f"{first.folder} was scored with the policy {first.policy['name']} and "
                f"{second.folder} with {second.policy['name']}: choose one for both with --policy"
            )
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
