"""The curves of a training run as plain data; `charts.js` draws them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.intervals import Estimate
from benchmarks.pages.sources import SeedFolder
from mathenv.errors import DataError

Chart = dict[str, Any]
Steps = list[dict[str, float]]

_MOST_POINTS = 240  # of one line; more are averaged in equal groups
# TRL's names. One chart per entry: title, what it says, the metrics drawn in it.
_TRAINING = (
    ("Reward margin", "Mean of chosen minus rejected implicit reward.", ("rewards/margins",)),
    (
        "Implicit rewards",
        "eta times log-ratio to the reference, summed over trained tokens.",
        ("rewards/chosen", "rewards/rejected"),
    ),
    (
        "Preference accuracy",
        "Share of pairs in which chosen has the larger implicit reward.",
        ("rewards/accuracies",),
    ),
    (
        "Log-likelihood",
        "Log-probability of the trained tokens, summed per trajectory.",
        ("logps/chosen", "logps/rejected"),
    ),
    ("Loss", "What the optimizer minimizes, per step.", ("loss", "nll_loss")),
    ("Gradient norm", "Before clipping.", ("grad_norm",)),
    ("Learning rate", "", ("learning_rate",)),
)
_NO_CURVE = frozenset({"step", "epoch", "num_tokens"})


def stage_chart(
    title: str, about: str, lines: Mapping[str, Sequence[tuple[int, Estimate]]], ticks: list[str]
) -> Chart:
    """Return a chart of shares with intervals over named stages (x is an index into `ticks`)."""
    series = [
        {
            "name": name,
            "x": [x for x, _ in points],
            "y": [_short(e.value) for _, e in points],
            "low": [_short(e.low) for _, e in points],
            "high": [_short(e.high) for _, e in points],
        }
        for name, points in lines.items()
        if points
    ]
    return {"title": title, "about": about, "y": "percent", "ticks": ticks, "series": series}


def training_charts(seed: SeedFolder, learner: str) -> list[Chart]:
    """Return the curves of a learner's training steps, iterations one after the other."""
    return _charts(
        [
            (f"iteration {number}", read_steps(folder / "train" / "metrics.jsonl"))
            for number, folder in seed.iterations(learner)
        ]
    )


def sft_charts(seed: SeedFolder) -> list[Chart]:
    """Return the curves of the supervised fine-tuning."""
    return _charts([("", read_steps(seed.path / "sft" / "train" / "metrics.jsonl"))])


def read_steps(file: Path) -> Steps:
    """Read one stage's metrics, a line per optimizer step; none where there is no file.

    Raises:
        DataError: naming the line that is no object of numbers.
    """
    if not file.is_file():
        return []
    steps: Steps = []
    lines = file.read_text().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break  # being written
        try:
            row = json.loads(line)
            steps.append({k: float(v) for k, v in row.items()})
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"{file}:{number} is damaged ({error}): restore it from a copy, or move it away to "
                "see the page without its curves"
            ) from None
    return steps


def _charts(stages: Sequence[tuple[str, Steps]]) -> list[Chart]:
    stages = [(name, steps) for name, steps in stages if steps]
    if not stages:
        return []
    known = {name for _, steps in stages for row in steps for name in row} - _NO_CURVE
    wanted = [(title, about, [n for n in names if n in known]) for title, about, names in _TRAINING]
    drawn = {name for _, _, names in wanted for name in names}
    wanted += [(name, "", [name]) for name in sorted(known - drawn)]
    breaks, offsets, end = [], [], 0
    for name, steps in stages:
        offsets.append(end)
        breaks.append({"x": end, "label": name})
        end += int(max(row["step"] for row in steps))
    placed = [(offset, steps) for offset, (_, steps) in zip(offsets, stages, strict=True)]
    return [
        {
            "title": title,
            "about": about,
            "y": "percent" if names == ["rewards/accuracies"] else "number",
            "x": "optimizer step",
            "breaks": breaks if len(breaks) > 1 else [],
            "series": [_line(name, placed) for name in names],
        }
        for title, about, names in wanted
        if names
    ]


def _line(name: str, placed: Sequence[tuple[int, Steps]]) -> dict[str, Any]:
    """Return one metric over all stages. A stage is never averaged with the next one."""
    total = sum(len(steps) for _, steps in placed)
    size = max(1, -(-total // _MOST_POINTS))
    xs: list[float] = []
    groups: list[list[float]] = []
    for offset, steps in placed:
        for group in _groups([row for row in steps if name in row], size):
            xs.append(offset + fmean(row["step"] for row in group))
            groups.append([row[name] for row in group])
    line: dict[str, Any] = {
        "name": name,
        "x": [_short(x) for x in xs],
        "y": [_short(fmean(values)) for values in groups],
    }
    if size > 1:
        line["low"] = [_short(min(values)) for values in groups]
        line["high"] = [_short(max(values)) for values in groups]
        line["band"] = f"mean, least and greatest of {size} steps"
    return line


def _groups(rows: Steps, size: int) -> Iterator[Steps]:
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


def _short(value: float) -> float:
    return float(f"{value:.5g}")
