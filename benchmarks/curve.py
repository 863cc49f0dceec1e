"""The learning curve as a picture. Needs matplotlib (extra `train`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.intervals import Estimate
from mathenv.errors import ConfigError
from mathenv.files import writing

# Okabe and Ito's colours: told apart by colour-blind readers and in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"


def learning_curve(
    path: Path,
    lines: Mapping[str, Sequence[Estimate]],
    stages: Sequence[str],
    *,
    title: str = "",
    label: str = "test pass@1",
) -> Path:
    """Draw one line per learner over the stages of a run and write it as a PNG.

    Args:
        lines: learner -> one estimate per stage, in order; may end before the last stage.
        stages: names on the x axis, e.g. ("SFT", "iteration 1", "iteration 2").

    Raises:
        ConfigError: nothing to draw, or a line with more points than stages.
    """
    if not any(lines.values()):
        raise ConfigError("a learning curve needs at least one point")
    too_long = [name for name, points in lines.items() if len(points) > len(stages)]
    if too_long:
        raise ConfigError(f"{too_long[0]} has more points than there are stages: {stages}")
    figure = Figure(figsize=(7.0, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)  # no display is needed
    axes = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        # Side by side, so that intervals of several learners do not hide each other.
        shift = 0.06 * (number - (len(lines) - 1) / 2)
        values = [point.value for point in points]
        axes.errorbar(
            [index + shift for index in range(len(points))],
            values,
            yerr=[
                [point.value - point.low for point in points],
                [point.high - point.value for point in points],
            ],
            label=name,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            capsize=4,
            linewidth=1.8,
        )
    axes.set_xticks(range(len(stages)), stages)
    axes.set_xlim(-0.4, len(stages) - 0.6)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    axes.set_ylabel(f"{label} (95% intervals)")
    axes.set_xlabel("stage")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if title:
        axes.set_title(title)
    if len(lines) > 1:
        axes.legend(frameon=False)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    return path
