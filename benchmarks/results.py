"""What one benchmark run found, in memory and as `results.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.intervals import Estimate
from benchmarks.metrics import Metrics, ToolUse
from benchmarks.suites import Published
from mathenv.errors import ConfigError, DataError
from mathenv.grading.policy import GradePolicy
from mathenv.store import read_object, write_atomic
from mathenv.types import Trajectory

FILE = "results.json"
SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A reference answer that the grader does not accept as equal to itself."""

    id: str
    answer: str
    status: str


@dataclass(frozen=True, slots=True)
class BenchResult:
    """One finished run.

    `config` is what was asked for (problems, samples, seed, horizon, agent); `policy` the
    grading policy's record; `environment` versions, machine and what isolated the code.
    `suite_size` is the number of problems as published, 0 where unknown. `seconds` is the wall
    time of the last call, not of earlier, killed ones. `out` is the run's folder, None where
    nothing was written. `trajectories` are the scored episodes, as the grading policy judges
    them; they are empty in a result that was read from `results.json`.
    """

    suite: str
    agent: str
    metrics: Metrics
    mismatches: tuple[Mismatch, ...]
    config: Mapping[str, Any]
    policy: Mapping[str, Any]
    environment: Mapping[str, Any]
    published: tuple[Published, ...]
    suite_size: int
    seconds: float
    out: Path | None = None
    trajectories: tuple[Trajectory, ...] = field(default=(), repr=False, compare=False)

    @property
    def folder(self) -> Path:
        """The run's folder.

        Raises:
            ConfigError: the run was played in memory and has none.
        """
        if self.out is None:
            raise ConfigError("this result was played in memory: give run_bench a folder")
        return self.out

    @property
    def grading(self) -> GradePolicy:
        """The policy that the run was scored with."""
        return GradePolicy(**{k: v for k, v in self.policy.items() if k != "digest"})


def write_result(result: BenchResult, folder: Path) -> None:
    """Write `results.json` into the run's folder."""
    row = {"schema": SCHEMA, **asdict(replace(result, trajectories=()))}
    del row["out"], row["trajectories"]
    write_atomic(folder / FILE, json.dumps(row, indent=1) + "\n")


def is_experiment(file: Path) -> bool:
    """Say whether a `results.json` is the table of a training run, as earlier versions wrote it.

    These are in `experiment.json` now: one name, one format.
    """
    try:
        row = json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(row, dict) and "runs" in row and "recipe" in row


def read_result(folder: Path) -> BenchResult:
    """Read a run's `results.json`.

    Raises:
        ConfigError: the folder holds no finished run.
        DataError: the file was written by another version, or is damaged.
    """
    file = folder / FILE
    if not file.exists():
        raise ConfigError(
            f"{folder} has no {FILE}: give the folder that `mathenv bench` wrote for one suite, "
            "or repeat the bench command to finish it"
        )
    if is_experiment(file):
        raise ConfigError(
            f"{file} is not of a benchmark but of a training run (mathenv iterate): see its "
            "results.md, or measure its checkpoints with mathenv bench"
        )
    remedy = "repeat the bench command to write it again, finished episodes are kept"
    row = read_object(file, remedy)
    if row.get("schema") != SCHEMA:
        raise DataError(
            f"{file} has schema {row.get('schema')}, not {SCHEMA}: repeat the bench command, "
            "finished episodes are kept"
        )
    del row["schema"]
    try:
        row["metrics"] = _metrics(row["metrics"])
        row["mismatches"] = tuple(Mismatch(**mismatch) for mismatch in row["mismatches"])
        row["published"] = tuple(Published(**number) for number in row["published"])
        return BenchResult(**row, out=folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{file} is damaged ({error}): {remedy}") from None


def _metrics(row: dict[str, Any]) -> Metrics:
    use = row.pop("tool_use")
    for name in ("turns", "code_turns", "code_lines", "cell_errors"):
        use[name] = Estimate(**use[name])
    use["sampled_tokens"] = _estimate(use["sampled_tokens"])
    for name in ("pass_at_k", "maj_at_k"):
        row[name] = {int(k): Estimate(**value) for k, value in row[name].items()}
    for name in ("by_level", "by_subject"):
        row[name] = {group: Estimate(**value) for group, value in row[name].items()}
    row["pass_at_1"] = Estimate(**row["pass_at_1"])
    row["without_flagged"] = _estimate(row["without_flagged"])
    return Metrics(**row, tool_use=ToolUse(**use))


def _estimate(value: dict[str, Any] | None) -> Estimate | None:
    return None if value is None else Estimate(**value)
