"""Results as tables: one run, and the stages of a training run against the first.

Curves are in `curve` (it needs matplotlib), transcripts in `transcript`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks.metrics import (
    Difference,
    Estimate,
    Metrics,
    Outcomes,
    outcomes,
    paired_bootstrap,
    pass_at_1,
)
from mathenv.types import Trajectory

if TYPE_CHECKING:
    from benchmarks.runner import BenchResult


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of a run. `gain` is over the first stage, None for the first itself."""

    name: str
    score: Estimate
    gain: Difference | None


def stage_rows(
    stages: Sequence[tuple[str, Sequence[Trajectory]]], *, seed: int = 0
) -> list[StageRow]:
    """Score stages, e.g. SFT and each iteration, on the same problems.

    Args:
        stages: (name, test trajectories), the first is what gains are measured against.
    """
    scored: list[tuple[str, Outcomes]] = [(name, outcomes(runs)) for name, runs in stages]
    rows = []
    for index, (name, results) in enumerate(scored):
        gain = paired_bootstrap(scored[0][1], results, seed=seed) if index else None
        rows.append(StageRow(name, pass_at_1(results, seed=seed), gain))
    return rows


def stage_table(rows: Sequence[StageRow], title: str = "") -> Table:
    """Return the rows for the terminal."""
    table = Table(title=title or None)
    for column in _STAGE_COLUMNS:
        table.add_column(column, justify="left" if column == "stage" else "right")
    for row in rows:
        table.add_row(*_stage_cells(row))
    return table


def stage_markdown(rows: Sequence[StageRow]) -> str:
    """Return the rows as a markdown table."""
    return markdown_table(_STAGE_COLUMNS, [_stage_cells(row) for row in rows])


_STAGE_COLUMNS = ("stage", "pass@1", "95% interval", "gain", "95% interval of the gain", "p")


def _stage_cells(row: StageRow) -> list[str]:
    cells = [row.name, percent(row.score.value), interval(row.score)]
    if row.gain is None:
        return [*cells, "", "", ""]
    p = "< 0.001" if row.gain.p_value < 0.001 else f"{row.gain.p_value:.3f}"
    bounds = f"{points(row.gain.low)} to {points(row.gain.high)}"
    return [*cells, points(row.gain.value), bounds, p]


def bench_table(results: Sequence[BenchResult]) -> Table:
    """Return one line per run for the terminal."""
    table = Table()
    for column in _BENCH_COLUMNS:
        table.add_column(column, justify="left" if column in ("suite", "agent") else "right")
    for result in results:
        table.add_row(*_bench_cells(result))
    return table


_BENCH_COLUMNS = ("suite", "agent", "problems", "pass@1", "95% interval", "excluded", "seconds")


def _bench_cells(result: BenchResult) -> list[str]:
    metrics, samples = result.metrics, result.config["samples"]
    return [
        result.suite,
        result.agent,
        f"{metrics.pass_at_1.n}" + (f" x {samples}" if samples > 1 else ""),
        percent(metrics.pass_at_1.value),
        interval(metrics.pass_at_1),
        str(metrics.excluded),
        f"{result.seconds:.0f}",
    ]


def bench_markdown(result: BenchResult) -> str:
    """Return the page `results.md`: the numbers and what they were made with."""
    parts = [
        f"# {result.suite}, {result.agent}",
        markdown_table(_BENCH_COLUMNS, [_bench_cells(result)]),
        *_level_section(result.metrics),
        *_use_section(result.metrics),
        *_mismatch_section(result),
        "## Made with",
        "\n".join(
            f"- {name}: {value}"
            for name, value in {
                **result.environment["versions"],
                "platform": result.environment["platform"],
                **{f"interpreter {k}": v for k, v in result.environment["interpreter"].items()},
                "seed": result.config["seed"],
                "horizon": result.config["horizon"],
                "problems (sha256)": result.config["problems_sha256"],
            }.items()
        ),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _level_section(metrics: Metrics) -> list[str]:
    if len(metrics.by_level) < 2:
        return []
    rows = [
        [level, str(e.n), percent(e.value), interval(e)] for level, e in metrics.by_level.items()
    ]
    return ["## By level", markdown_table(("level", "problems", "pass@1", "95% interval"), rows)]


def _use_section(metrics: Metrics) -> list[str]:
    use = metrics.tool_use
    lines = [
        f"- {use.turns:.2f} turns per episode, {use.code_turns:.2f} of them with code that ran",
        f"- {percent(use.cell_errors)} of {use.cells} cells ended with an error",
    ]
    if use.sampled_tokens is not None:
        lines.append(f"- {use.sampled_tokens:.1f} sampled tokens per episode")
    stops = ", ".join(f"{name} {count}" for name, count in use.stop_reasons.items())
    return ["## Episodes", "\n".join([*lines, f"- ended by: {stops}"])]


def _mismatch_section(result: BenchResult) -> list[str]:
    if not result.mismatches:
        return ["Every reference answer grades as equal to itself."]
    rows = [
        [m.problem.id, f"`{_cell(m.problem.answer)}`", m.grade.status.value]
        for m in result.mismatches
    ]
    return [
        "## Reference answers that do not grade as equal to themselves",
        markdown_table(("problem", "answer", "verdict"), rows),
    ]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table; the first column is left-aligned, the others right."""
    lines = [columns, [":--", *["--:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def percent(share: float) -> str:
    """Write a share, e.g. `92.3%`."""
    return f"{100 * share:.1f}%"


def points(share: float) -> str:
    """Write a difference of shares in percentage points, signed."""
    return f"{100 * share:+.1f}"


def interval(estimate: Estimate) -> str:
    """Write the interval of an estimate."""
    return f"{100 * estimate.low:.1f} to {100 * estimate.high:.1f}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
