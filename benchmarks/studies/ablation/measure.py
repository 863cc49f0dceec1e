"""What is kept of one variant and seed: numbers per problem, so that pairing stays possible."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.metrics import outcomes
from learners.training.records import IterationResult
from mathenv.store import read_object, read_trajectories
from mathenv.types import Trajectory

FEW = 4  # samples per problem that diversity is counted among: what every stage has of `current`


@dataclass(frozen=True, slots=True)
class Files:
    """Where the episodes of a variant are. `tests` is by iteration; 0 is the start itself."""

    folder: Path
    tests: Mapping[int, Path]
    ood: Path
    samples: Path


def measure(files: Files, results: Sequence[IterationResult]) -> dict[str, Any]:
    """Return what the report needs, as JSON.

    `test` (by iteration), `ood` and `samples` hold outcomes by problem, one per sample;
    `diversity` is of the samples (see `diversity`), `iterations` of the training.
    """
    samples = sorted(read_trajectories(files.samples), key=lambda t: t.sample)
    return {
        "test": {
            str(number): outcomes(read_trajectories(path))
            for number, path in files.tests.items()
            if path.exists()
        },
        "ood": outcomes(read_trajectories(files.ood)),
        "samples": outcomes(samples),
        "diversity": diversity(samples),
        "iterations": [_iteration(files.folder, result) for result in results],
    }


def diversity(trajectories: Iterable[Trajectory]) -> dict[str, dict[str, float]]:
    """Count by problem, among the first `FEW` samples of the current policy.

    `programs`: how many different programs (all cells together; no cell is one, too).
    `answers`: how many different answers. `correct` and `tool`: share of samples that are
    right, and that used the interpreter.
    """
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        if trajectory.counts and trajectory.agent == "current" and trajectory.sample < FEW:
            groups.setdefault(trajectory.problem.id, []).append(trajectory)
    figures: Mapping[str, Callable[[list[Trajectory]], float]] = {
        "programs": lambda group: len({_program(t) for t in group}),
        "answers": lambda group: len({t.grade.answer for t in group}),
        "correct": lambda group: fmean(t.reward for t in group),
        "tool": lambda group: fmean(bool(_program(t)) for t in group),
    }
    return {
        name: {problem: figure(group) for problem, group in groups.items()}
        for name, figure in figures.items()
    }


def _program(trajectory: Trajectory) -> tuple[str, ...]:
    return tuple(turn.code for turn in trajectory.turns if turn.code is not None)


def _iteration(folder: Path, result: IterationResult) -> dict[str, Any]:
    place = folder / f"iteration-{result.number}"
    rollouts = list(read_trajectories(place / "rollouts.jsonl"))
    steps = (place / "train" / "metrics.jsonl").read_text().splitlines()
    scored = outcomes(rollouts)
    return {
        "moved": result.policy.is_relative_to(place),
        "validation": result.scores,
        "rollouts": diversity(rollouts),
        "correct": fmean(t.reward for t in rollouts if t.counts),
        "covered": fmean(max(found) for found in scored.values()),
        "selection": read_object(place / "selection.json", f"remove {place} to run it again")[
            "counts"
        ],
        "steps": len(steps),
        "last_step": json.loads(steps[-1]),
        "warnings": result.warnings,
    }
