"""What a run wrote down of itself, read again: choices, results and the log of steps.

Whatever is cut off or garbled is an error that names the file and says what to do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mathenv.errors import DataError
from mathenv.store import read_object

SELECTION, RESULT = "selection.json", "result.json"


@dataclass(frozen=True, slots=True)
class IterationResult:
    """What one iteration chose. Scores are greedy pass@1 on the validation problems."""

    number: int
    policy: Path
    validation: float
    validation_before: float
    scores: dict[str, float]
    warnings: tuple[str, ...]


def selected(folder: Path) -> list[dict[str, str]] | None:
    """Return where an iteration's examples came from, None where none were chosen yet.

    A selection without any is followed by more sampling.

    Raises:
        DataError: the record is damaged.
    """
    file = folder / "selection.json"
    if not file.exists():
        return None
    remedy = f"remove it to choose again from {folder / 'rollouts.jsonl'}"
    found = read_object(file, remedy)
    try:
        return list(found["provenance"]) if found["counts"]["examples"] > 0 else None
    except (KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error}): {remedy}") from None


def read_result(folder: Path, number: int, current: Path) -> IterationResult | None:
    """Return what an earlier run chose in an iteration, or None where it did not get that far.

    `current` is the policy that the iteration began with.

    Raises:
        DataError: the record is damaged.
    """
    file = folder / RESULT
    if not file.exists():
        return None
    remedy = "remove it to choose again among the checkpoints of this iteration"
    row = read_object(file, remedy)
    try:
        best = row["policy"]
        result = IterationResult(
            number,
            current if best == "before" else folder / "train" / best,
            float(row["validation"]),
            float(row["validation_before"]),
            dict(row["scores"]),
            tuple(row["warnings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error}): {remedy}") from None
    if best != "before" and not result.policy.is_dir():
        raise DataError(f"{file} names the policy {result.policy}, which is not there: {remedy}")
    return result


def log_until(file: Path, done: int) -> list[str]:
    """Return the lines of a `metrics.jsonl` up to a step; later ones are done again.

    A log that was removed goes on where the training does, so the first line may be of any step.

    Raises:
        DataError: lines are damaged or missing, or two runs have written into the file.
    """
    remedy = f"remove {file} to go on without the figures of the first {done} steps"
    lines: dict[int, str] = {}
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        try:
            step = json.loads(line)["step"]
            if type(step) is not int:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            if len(lines) >= done or not line:  # cut off while it was being written
                continue
            raise DataError(f"{file}:{number} is damaged: {remedy}") from None
        text = line.decode() + "\n"
        if step <= done and lines.setdefault(step, text) != text:
            raise DataError(
                f"{file}:{number} tells of step {step} otherwise than a line before it: two runs "
                f"wrote into this folder at the same time, and its checkpoints may be mixed. "
                f"Remove the folder {file.parent} and train again"
            )
    found = sorted(step for step in lines if step <= done)
    if done and found != list(range(found[0] if found else 1, done + 1)):
        raise DataError(f"{file} lacks lines of the first {done} steps: {remedy}")
    return [lines[step] for step in found]
