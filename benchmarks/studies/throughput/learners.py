"""The learners' speed and memory beside TRL's trainers, in one run.

Both get the same token ids, masks, models and settings; each way to train runs in a process
of its own with one thread, and the ways take turns. A step is forward, backward, clipping and
update; a reference evaluated before training is in no step. TRL is optional:
`pip install trl==1.16.*`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.progress import Advance
from benchmarks.studies.throughput.learner_steps import Job, Workload, make_models, make_pairs
from benchmarks.studies.throughput.report import Goal, Report
from mathenv.errors import InfraError

OURS, DEFAULTS = "mathenv", "TRL, defaults"
STOCK, COMPACT = "TRL, best stock", "TRL, best, compacted"
LOWEST = "TRL, lowest stock"
KEPT = "mathenv, nothing recomputed"
DPO, KTO = "DPO step, 384x6, vocabulary 4k", "KTO step, 384x6, vocabulary 4k"
MEMORY = "DPO memory above resident, 256x6, vocabulary 32k, 8 pairs"
TOTAL = "DPO memory in all, 256x6, vocabulary 32k, 8 pairs"
_MINE = frozenset({OURS})
GOALS = (
    Goal(DPO, _MINE, 3.5, DEFAULTS),
    Goal(DPO, _MINE, 1.4, STOCK),
    Goal(DPO, _MINE, 1.25, COMPACT),
    Goal(KTO, _MINE, 2.5, DEFAULTS),
    Goal(MEMORY, _MINE, 12.0, DEFAULTS),
    Goal(MEMORY, _MINE, 5.0, LOWEST),
)
TRL_MISSING = "TRL is not installed, so nothing is compared: pip install 'trl==1.16.*'"
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is trained: for time, and for memory."""

    time: Workload
    memory: Workload


SHAPES = Shapes(Workload(), Workload(hidden=256, vocabulary=32_000, pairs=8))


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to train, as a row of the report."""

    quantity: str
    subject: str
    job: Job


def measure(*, quick: bool, advance: Advance, shapes: Shapes = SHAPES) -> Report:
    """Measure all ways in rounds, each round with other trajectories.

    Raises:
        InfraError: a process failed.
    """
    report = Report(GOALS, reference=OURS)
    trl = importlib.util.find_spec("trl") is not None
    if not trl:
        report.remarks.append(TRL_MISSING)
    rounds = 1 if quick else _ROUNDS
    with tempfile.TemporaryDirectory(prefix="mathenv-learners-") as scratch:
        folder = Path(scratch)
        for name, shape in (("time", shapes.time), ("memory", shapes.memory)):
            make_models(shape, folder / name)
        # Memory does not depend on what else runs: one round will do.
        plan = [
            (seed, way)
            for seed in range(rounds)
            for way in _ways(shapes, folder, seed)
            if (trl or not way.job.peer) and not (seed and way.job.memory)
        ]
        results: dict[tuple[str, int], list[_Result]] = {}
        for done, (seed, way) in enumerate(plan, start=1):
            result = _run(way, folder)
            results.setdefault((way.quantity, seed), []).append(result)
            _add(report, way, result)
            advance(done, len(plan))
    for (quantity, seed), found in results.items():
        _compare(report, quantity, seed, found)
    report.details["workloads"] = [_told(shapes.time, seed) for seed in range(rounds)]
    _spread(report)
    return report


def _ways(shapes: Shapes, folder: Path, seed: int) -> Iterator[_Way]:
    time = Job(replace(shapes.time, seed=seed), str(folder / "time"))
    best = replace(time, peer=True, checkpointing=False, precompute=True, batch=1)
    yield _Way(DPO, OURS, time)
    yield _Way(DPO, DEFAULTS, replace(time, peer=True))
    yield _Way(DPO, STOCK, best)
    yield _Way(DPO, COMPACT, replace(best, compact=True))
    kto = replace(time, learner="mkto")
    yield _Way(KTO, OURS, kto)
    yield _Way(KTO, DEFAULTS, replace(kto, peer=True))
    memory = Job(replace(shapes.memory, seed=seed), str(folder / "memory"), memory=True)
    # A pair at a time, activations computed again, as both of TRL's settings do.
    yield _Way(MEMORY, OURS, replace(memory, token_budget=1024, recompute_every=1))
    yield _Way(MEMORY, KEPT, replace(memory, token_budget=2048))
    yield _Way(MEMORY, DEFAULTS, replace(memory, peer=True))
    yield _Way(MEMORY, LOWEST, replace(memory, peer=True, precompute=True, batch=1))


@dataclass(frozen=True, slots=True)
class _Result:
    """Cost and outcome of the steps of one process. `weights`: all, flattened, at the end."""

    subject: str
    steps: dict[str, list[float]]
    weights: torch.Tensor


def _run(way: _Way, folder: Path) -> _Result:
    file = folder / "job.json"
    file.write_text(way.job.text())
    outcome = subprocess.run(
        [sys.executable, "-m", "benchmarks.studies.throughput.learner_steps", str(file)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "datasets"),
        },
    )
    if outcome.returncode:
        raise InfraError(f"{way.subject}, {way.quantity} failed: {outcome.stderr[-1500:]}")
    steps: dict[str, list[float]] = json.loads(outcome.stdout.splitlines()[-1])
    return _Result(way.subject, steps, torch.load(file.with_suffix(".pt")))


def _add(report: Report, way: _Way, result: _Result) -> None:
    """Add all steps but the first, in which buffers and optimizer states are made."""
    steps = result.steps
    if way.job.memory:
        report.add(MEMORY, way.subject, "MB", steps["above_resident"][1:], None)
        report.add(TOTAL, way.subject, "MB", steps["peak"][1:], None)
    else:
        milliseconds = [1000 * s for s in steps["cpu"][1:]]
        report.add(way.quantity, way.subject, "ms", milliseconds, None)


def _compare(report: Report, quantity: str, seed: int, results: list[_Result]) -> None:
    """Note how far the others' losses, gradient norms and weights are from ours."""
    mine, *others = results
    for other in others:
        row: dict[str, Any] = {"quantity": quantity, "subject": other.subject, "seed": seed}
        for name in ("loss", "grad_norm"):
            pairs = zip(mine.steps[name], other.steps[name], strict=True)
            row[name] = max(abs(a - b) / max(abs(a), 1e-2) for a, b in pairs)
        row["weights"] = float((mine.weights - other.weights).norm() / mine.weights.norm())
        report.details.setdefault("equality", []).append(row)
    if others:
        rows = report.details["equality"][-len(others) :]
        worst = {name: max(r[name] for r in rows) for name in ("loss", "grad_norm", "weights")}
        report.remarks.append(
            f"{quantity}, round {seed + 1}: relative difference to the others at most "
            f"{worst['loss']:.1e} in losses, {worst['grad_norm']:.1e} in gradient norms, "
            f"{worst['weights']:.1e} in weights after {len(mine.steps['loss'])} steps"
        )


def _told(workload: Workload, seed: int) -> dict[str, Any]:
    pairs = make_pairs(replace(workload, seed=seed))
    lengths = [len(s.ids) for e in pairs for s in e.samples]
    return {
        "seed": seed,
        "tokens": sum(lengths),
        "targets": sum(e.targets for e in pairs),
        "padded tokens over tokens": max(lengths) * len(lengths) / sum(lengths),
    }


def _spread(report: Report) -> None:
    """Say how much repeats differ: ratios finer than that mean nothing."""
    for row in report.measurements:
        if row.unit == "ms" and len(row.values) > 1:
            spread = (max(row.values) - min(row.values)) / row.median
            report.remarks.append(f"{row.quantity}, {row.subject}: repeats differ by {spread:.0%}")
