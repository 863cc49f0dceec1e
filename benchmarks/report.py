"""Results as tables: one run, and the stages of a training run against the first.

Curves are in `curve` (it needs matplotlib), transcripts in `transcript`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from benchmarks.comparison import Comparison, p_text
from benchmarks.intervals import Difference, Estimate
from benchmarks.metrics import Metrics, Outcomes, ToolUse, outcomes, paired_difference, pass_at_1
from benchmarks.results import BenchResult
from mathenv.types import Trajectory


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of a run. `gain` is over the first stage, None for the first itself.

    `excluded` episodes are part of no number: they say nothing about the model.
    """

    name: str
    score: Estimate
    gain: Difference | None
    excluded: int


def stage_rows(
    stages: Sequence[tuple[str, Sequence[Trajectory]]], *, seed: int = 0
) -> list[StageRow]:
    """Score stages, e.g. SFT and each iteration, on the same problems.

    Args:
        stages: (name, test trajectories), the first is what gains are measured against.
    """
    scored: list[Outcomes] = [outcomes(runs) for _, runs in stages]
    rows = []
    for index, ((name, runs), results) in enumerate(zip(stages, scored, strict=True)):
        gain = paired_difference(scored[0], results, seed=seed) if index else None
        excluded = sum(not t.counts for t in runs)
        rows.append(StageRow(name, pass_at_1(results, seed=seed), gain, excluded))
    return rows


def stage_table(rows: Sequence[StageRow], title: str = "") -> Table:
    """Return the rows for the terminal."""
    table = Table(title=title or None)
    columns, lines = _stage_cells(rows)
    for column in columns:
        table.add_column(column, justify="left" if column == "stage" else "right")
    for line in lines:
        table.add_row(*line)
    return table


def stage_markdown(rows: Sequence[StageRow]) -> str:
    """Return the rows as a markdown table."""
    return markdown_table(*_stage_cells(rows))


_STAGE_COLUMNS = ("stage", "pass@1", "95% interval", "gain", "95% interval of the gain", "p")


def _stage_cells(rows: Sequence[StageRow]) -> tuple[Sequence[str], list[list[str]]]:
    """Return columns and lines; how many episodes were excluded only where one was."""
    lines = [_measured(row) for row in rows]
    if not any(row.excluded for row in rows):
        return _STAGE_COLUMNS, lines
    counted = [[*line, str(row.excluded)] for line, row in zip(lines, rows, strict=True)]
    return (*_STAGE_COLUMNS, "excluded"), counted


def _measured(row: StageRow) -> list[str]:
    cells = [row.name, percent(row.score.value), interval(row.score)]
    if row.gain is None:
        return [*cells, "", "", ""]
    p = "< 0.001" if row.gain.p_value < 0.001 else f"{row.gain.p_value:.3f}"
    bounds = f"{points(row.gain.low)} to {points(row.gain.high)}"
    return [*cells, points(row.gain.value), bounds, p]


def bench_table(results: Sequence[BenchResult]) -> Table:
    """Return one line per run for the terminal."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    columns = _bench_columns(results)
    for column in columns:
        table.add_column(column, justify="left" if column in ("suite", "agent") else "right")
    for result in results:
        table.add_row(*_bench_cells(result, columns))
    return table


def bench_markdown(result: BenchResult) -> str:
    """Return the page `results.md`: the numbers and what they were made with."""
    metrics = result.metrics
    parts = [
        f"# {result.suite}, {result.agent}",
        runs_markdown([result]),
        *_samples_section(metrics),
        *_group_section("level", metrics.by_level),
        *_group_section("subject", metrics.by_subject),
        *_use_section(metrics.tool_use),
        *_label_section(result),
        *_published_section(result),
        *_setup_section(result),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def runs_markdown(results: Sequence[BenchResult]) -> str:
    """Return one line per run as a markdown table."""
    columns = _bench_columns(results)
    return markdown_table(columns, [_bench_cells(result, columns) for result in results])


def bench_latex(results: Sequence[BenchResult]) -> str:
    """Return one line per run as a LaTeX table (package booktabs)."""
    columns = _bench_columns(results)
    return latex_table(columns, [_bench_cells(result, columns) for result in results])


_OF = ", 95%"
_ALWAYS = ("suite", "agent", "problems", "pass@1", "95% interval")


def _bench_columns(results: Sequence[BenchResult]) -> tuple[str, ...]:
    """Columns for all of the runs; those that would be empty in every line are left out."""
    ks = sorted({max(r.metrics.pass_at_k) for r in results if r.metrics.pass_at_k})
    sampled = [f"{kind}@{k}{of}" for k in ks for kind in ("pass", "maj") for of in ("", _OF)]
    flagged = ["unflagged"] if any(r.metrics.flagged for r in results) else []
    return (*_ALWAYS, *sampled, *flagged, "excluded", "seconds")


def _bench_cells(result: BenchResult, columns: Sequence[str]) -> list[str]:
    metrics, samples = result.metrics, result.config["samples"]
    sampling = result.config["agent"].get("sampling", {})
    greedy = " greedy" if sampling.get("temperature") == 0 else ""
    times = f" x {samples}" if samples > 1 else greedy
    why = ", ".join(f"{name} {count}" for name, count in metrics.exclusions.items())
    cells = {
        "suite": result.suite,
        "agent": result.agent,
        "problems": f"{metrics.pass_at_1.n}{times}",
        "pass@1": percent(metrics.pass_at_1.value),
        "95% interval": interval(metrics.pass_at_1),
        "excluded": f"{metrics.excluded} ({why})" if why else "0",
        "seconds": f"{result.seconds:.0f}",
    }
    if metrics.without_flagged is not None:
        cells["unflagged"] = percent(metrics.without_flagged.value)
    for kind, values in (("pass", metrics.pass_at_k), ("maj", metrics.maj_at_k)):
        cells |= {f"{kind}@{k}": percent(value.value) for k, value in values.items()}
        cells |= {f"{kind}@{k}{_OF}": interval(value) for k, value in values.items()}
    return [cells.get(column, "") for column in columns]


def _samples_section(metrics: Metrics) -> list[str]:
    if not metrics.pass_at_k:
        return []
    rows = [
        [str(k), str(passed.n), *_share(passed), *_share(metrics.maj_at_k[k])]
        for k, passed in metrics.pass_at_k.items()
    ]
    columns = ("k", "problems", "pass@k", "95% interval", "maj@k", "95% interval")
    return ["## By number of samples", markdown_table(columns, rows)]


def _group_section(name: str, groups: Mapping[str, Estimate]) -> list[str]:
    if len(groups) < 2:
        return []
    rows = [[group, str(e.n), *_share(e)] for group, e in groups.items()]
    columns = (name, "problems", "pass@1", "95% interval")
    return [f"## By {name}", markdown_table(columns, rows)]


def _use_section(use: ToolUse) -> list[str]:
    errors = f"{percent(use.cell_errors.value)} ({interval(use.cell_errors)})"
    statuses = ", ".join(f"{name} {count}" for name, count in use.cell_statuses.items())
    stops = ", ".join(f"{name} {count}" for name, count in use.stop_reasons.items())
    rows = [
        ["turns", *_plain_mean(use.turns)],
        ["turns with code that ran", *_plain_mean(use.code_turns)],
        ["lines of that code", *_plain_mean(use.code_lines)],
    ]
    if use.sampled_tokens is not None:
        rows.append(["sampled tokens", *_plain_mean(use.sampled_tokens)])
    lines = [f"- {errors} of {use.cells} cells ended with an error ({statuses})"] * bool(use.cells)
    return [
        "## Episodes",
        markdown_table(("mean per episode", "value", "95% interval"), rows),
        "\n".join([*lines, f"- ended by: {stops}"]),
    ]


def _share(estimate: Estimate) -> list[str]:
    return [percent(estimate.value), interval(estimate)]


def _plain_mean(estimate: Estimate) -> list[str]:
    return [f"{estimate.value:.2f}", f"{estimate.low:.2f} to {estimate.high:.2f}"]


def _label_section(result: BenchResult) -> list[str]:
    metrics, parts = result.metrics, ["## Reference answers"]
    if result.metrics.excluded:
        why = ", ".join(f"{name} {count}" for name, count in metrics.exclusions.items())
        parts.append(f"{metrics.excluded} episodes say nothing about the model ({why}).")
    if metrics.flagged and metrics.without_flagged is not None:
        clean = metrics.without_flagged
        parts.append(
            f"{metrics.flagged} problems have a label that is known to be wrong or incomplete. "
            f"Without them pass@1 is {percent(clean.value)} ({interval(clean)})."
        )
    if not result.mismatches:
        return [*parts, "Every reference answer grades as equal to itself."]
    rows = [[m.id, f"`{_cell(m.answer)}`", m.status] for m in result.mismatches]
    table = markdown_table(("problem", "answer", "verdict"), rows)
    return [*parts, "These do not grade as equal to themselves:", table]


def _published_section(result: BenchResult) -> list[str]:
    if not result.published:
        return []
    rows = []
    for number in result.published:
        system = f"{number.system} ({number.split})" if number.split else number.system
        rows.append([system, f"{number.score:.1f}%", number.setting, number.source])
    columns = ("system", "accuracy", "setting", "source")
    return ["## Published numbers", markdown_table(columns, rows)]


def _setup_section(result: BenchResult) -> list[str]:
    surroundings, config = result.environment, result.config
    problems, size = config["problems"], result.suite_size
    lines = {
        "python": surroundings["python"],
        **surroundings["packages"],
        "platform": surroundings["platform"],
        **{f"interpreter {k}": v for k, v in surroundings["interpreter"].items()},
        "seed": config["seed"],
        "horizon": config["horizon"],
        "grading policy": f"{result.policy['name']} ({result.policy['digest']})",
        "problems": f"{problems}" + (f" of {size} published" if size else ""),
        "problems (sha256)": config["problems_sha256"],
    }
    return ["## Made with", "\n".join(f"- {name}: {value}" for name, value in lines.items())]


def comparison_table(comparisons: Sequence[tuple[str, Comparison]], title: str = "") -> Table:
    """Return one line per (suite, comparison) for the terminal."""
    table = Table(title=title or None, box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in COMPARISON_COLUMNS:
        table.add_column(column, justify="left" if column == "suite" else "right")
    for row in comparison_rows(comparisons):
        table.add_row(*row)
    return table


COMPARISON_COLUMNS = (
    "suite",
    "problems",
    "first",
    "second",
    "difference",
    "95% interval",
    "better",
    "worse",
    "exact p",
)


def comparison_rows(comparisons: Sequence[tuple[str, Comparison]]) -> list[list[str]]:
    """Return the cells of `COMPARISON_COLUMNS`, one list per comparison."""
    return [[suite, *_comparison_cells(comparison)] for suite, comparison in comparisons]


def _comparison_cells(comparison: Comparison) -> list[str]:
    change = comparison.difference
    return [
        str(change.n),
        percent(comparison.first_score.value),
        percent(comparison.second_score.value),
        points(change.value),
        f"{points(change.low)} to {points(change.high)}",
        str(comparison.gained),
        str(comparison.lost),
        p_text(change.p_value).removeprefix("p ").removeprefix("= "),
    ]


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a markdown table; the first column is left-aligned, the others right."""
    lines = [columns, [":--", *["--:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def latex_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    r"""Return a LaTeX `tabular` for the package booktabs; text is escaped."""
    lines = [
        r"\begin{tabular}{l" + "r" * (len(columns) - 1) + "}",
        r"\toprule",
        " & ".join(map(_latex, columns)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_latex, row)) + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


_LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


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
