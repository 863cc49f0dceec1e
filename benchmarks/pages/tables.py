"""The tables of the page as rows of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.comparison import p_text
from benchmarks.intervals import Estimate
from benchmarks.metrics import Outcomes, paired_difference, pass_at_1
from benchmarks.report import interval, percent, points
from benchmarks.results import BenchResult

Table = dict[str, Any]

_STAGE = (
    "stage",
    "problems",
    "pass@1",
    "95% interval",
    "gain",
    "95% interval of the gain",
    "p",
    "excluded",
)


@dataclass(frozen=True, slots=True)
class Stage:
    """Test outcomes of one policy. `excluded` episodes say nothing about it."""

    name: str
    outcomes: Outcomes
    excluded: int = 0


def stage_table(title: str, stages: Sequence[Stage]) -> Table:
    """Return the stages of a run, gains over the first by paired bootstrap."""
    return table(title, _STAGE, [_stage_row(stage, stages[0]) for stage in stages])


def _stage_row(stage: Stage, first: Stage) -> list[str]:
    score = pass_at_1(stage.outcomes)
    row = [stage.name, str(score.n), percent(score.value), interval(score)]
    if stage is first:
        return [*row, "", "", "", str(stage.excluded)]
    gain = paired_difference(first.outcomes, stage.outcomes)
    p = p_text(gain.p_value).removeprefix("p ").removeprefix("= ")
    bounds = f"{points(gain.low)} to {points(gain.high)}"
    return [*row, points(gain.value), bounds, p, str(stage.excluded)]


def bench_tables(results: Sequence[BenchResult]) -> Iterator[Table]:
    """Yield what benchmark runs found: the scores, then by level, subject and samples."""
    columns = ("suite", "agent", "problems", "samples", "pass@1", "95% interval", "excluded")
    rows = [
        [
            r.suite,
            r.agent,
            str(r.metrics.pass_at_1.n),
            str(r.config.get("samples", 1)),
            *share(r.metrics.pass_at_1),
            str(r.metrics.excluded),
        ]
        for r in results
    ]
    yield table("Scores", columns, rows)
    for result in results:
        metrics = result.metrics
        for name, groups in (("level", metrics.by_level), ("subject", metrics.by_subject)):
            if len(groups) > 1:
                yield _groups(f"{result.suite} by {name}", name, groups)
        if metrics.pass_at_k:
            voted = metrics.maj_at_k
            rows = [[str(k), *share(e), *share(voted[k])] for k, e in metrics.pass_at_k.items()]
            names = ("k", "pass@k", "95% interval", "maj@k", "95% interval")
            yield table(f"{result.suite} by number of samples", names, rows)


def _groups(title: str, name: str, groups: Mapping[str, Estimate]) -> Table:
    rows = [[group, str(e.n), *share(e)] for group, e in groups.items()]
    return table(title, (name, "problems", "pass@1", "95% interval"), rows)


def share(estimate: Estimate) -> list[str]:
    """Return the cells of an estimate: value and interval."""
    return [percent(estimate.value), interval(estimate)]


def settings(title: str, values: Mapping[str, Any]) -> Table:
    """Return nested settings as a table of dotted names."""
    return table(title, ("setting", "value"), [[k, v] for k, v in _flat(values)])


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return a table as plain data."""
    return {"title": title, "columns": list(columns), "rows": [list(row) for row in rows]}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", "" if value is None else str(value)
