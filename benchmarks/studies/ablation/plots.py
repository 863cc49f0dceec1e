"""The ablations as pictures. Needs matplotlib (extra `train`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.curve import COLOURS, MARKERS
from benchmarks.intervals import Estimate
from benchmarks.studies.ablation.findings import Finding, Verdict
from mathenv.files import writing

_VERDICTS = {Verdict.HOLDS: COLOURS[2], Verdict.FAILS: COLOURS[1], Verdict.OPEN: "#777777"}


def forest(path: Path, findings: Sequence[Finding]) -> Path:
    """Draw the difference of every finding about accuracy with its interval; a dot per seed."""
    figure, axes = _figure(9.0, 1.2 + 0.3 * len(findings))
    for row, finding in enumerate(reversed(findings)):
        change = finding.difference
        assert change is not None
        colour = _VERDICTS[finding.verdict]
        axes.plot([100 * change.low, 100 * change.high], [row, row], color=colour, linewidth=2.5)
        axes.plot(100 * change.value, row, "D", color=colour, markersize=6)
        seeds = [100 * step for step in finding.seeds]
        axes.plot(seeds, [row + 0.22] * len(seeds), ".", color=colour, alpha=0.6)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(findings)), [_label(f) for f in reversed(findings)], fontsize=8)
    axes.set_xlabel("points, 95% interval; dots: seeds")
    axes.set_ylim(-0.8, len(findings) - 0.2)
    axes.grid(axis="x", alpha=0.3)
    return _save(figure, path)


def lines(
    path: Path,
    series: Mapping[str, Sequence[tuple[float, Estimate]]],
    *,
    x: str,
    y: str,
    log: bool = False,
    shares: bool = True,
    ticks: Sequence[str] = (),
) -> Path:
    """Draw estimates with intervals as lines over numbers, or over named `ticks`."""
    figure, axes = _figure(7.0, 4.3)
    for number, (name, points) in enumerate(series.items()):
        # Side by side, so that lines that coincide do not hide each other.
        place = number - (len(series) - 1) / 2
        shift = 0.03 * place if ticks else 0.0
        factor = 1.05**place if log else 1.0
        axes.errorbar(
            [at * factor + shift for at, _ in points],
            [e.value for _, e in points],
            yerr=_errors([e for _, e in points]),
            label=name,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            capsize=3,
            linewidth=1.6,
        )
    if log:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    if ticks:
        axes.set_xticks(range(len(ticks)), ticks)
    _dress(axes, x, y, shares)
    return _save(figure, path)


def bars(path: Path, groups: Mapping[str, Mapping[str, Estimate]], *, y: str) -> Path:
    """Draw estimates with intervals as bars: one cluster per group, one colour per name in it."""
    figure, axes = _figure(max(7.0, 0.7 * len(groups)), 4.6)
    names = list(dict.fromkeys(name for group in groups.values() for name in group))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        places = [i for i, group in enumerate(groups.values()) if name in group]
        found = [group[name] for group in groups.values() if name in group]
        axes.bar(
            [i + (number - (len(names) - 1) / 2) * width for i in places],
            [e.value for e in found],
            width,
            yerr=_errors(found),
            label=name,
            color=COLOURS[number % len(COLOURS)],
            error_kw={"capsize": 2, "linewidth": 1},
        )
    axes.set_xticks(range(len(groups)), list(groups), rotation=40, ha="right", fontsize=8)
    _dress(axes, "", y, True)
    return _save(figure, path)


def _errors(estimates: Sequence[Estimate]) -> list[list[float]]:
    return [
        [max(0.0, e.value - e.low) for e in estimates],
        [max(0.0, e.high - e.value) for e in estimates],
    ]


def _label(finding: Finding) -> str:
    return f"{finding.claim.text} ({finding.verdict})"


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)  # no display is needed
    return figure, figure.subplots()


def _dress(axes: Axes, x: str, y: str, shares: bool) -> None:
    if shares:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _save(figure: Figure, path: Path) -> Path:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
    return path
