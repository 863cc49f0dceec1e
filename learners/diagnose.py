"""Failure signatures of preference learning, each with a plain sentence on what to try."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from learners.training.checkpoint import read_manifest, step_folders
from mathenv.errors import DataError

# A fall of the mean chosen log-prob by this many nats is more than sharpening explains: in the
# runs that collapsed here it fell by 50 and more.
_DIVE_NATS = 20.0
# And by this many standard errors of the two means: batches differ too, in their lengths alone.
_DIVE_ERRORS = 3.0

# Any two greedy policies differ on a few problems. Of what was solved before, checkpoints that
# gained on the whole had mostly lost 0 to 4% here, and those that ended worse 6 to 21%.
_LOST_SHARE, _LOST_LEAST = 0.05, 3

_NEAR_ZERO = 0.05  # DPO's loss starts at 0.69, KTO's at 0.5

_Rows = Sequence[Mapping[str, float]]


def diagnose(
    scores: Mapping[str, float],
    problems: int,
    metrics_file: Path,
    *,
    before: Mapping[str, float] | None = None,
    after: Mapping[str, float] | None = None,
) -> list[str]:
    """Return what looks wrong after one iteration, in the order of alarm.

    Args:
        scores: greedy pass@1 on validation, "before" and per checkpoint in order.
        problems: how many validation problems the scores rest on.
        metrics_file: the stage's `metrics.jsonl`; its checkpoints are beside it.
        before: reward by validation problem of the policy that the iteration began with.
        after: the same of the policy chosen. Left out: nothing is said of forgetting.
    """
    rows = _read_rows(metrics_file)
    trained = [score for name, score in scores.items() if name != "before"]
    found = _scores(scores["before"], trained, problems)
    if before is not None and after is not None:
        found += _forgetting(before, after)
    if rows and trained:
        found += _dive(rows)
        if max(trained) <= scores["before"]:
            found += _memorised(rows, _nll_coef(metrics_file.parent))
    return found


def _read_rows(file: Path) -> list[dict[str, float]]:
    try:
        return [json.loads(line) for line in file.read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file} cannot be read or is damaged ({error}): remove {file.parent} to train again, "
            "or put an empty file there to go on without the figures"
        ) from None


def _scores(before: float, trained: Sequence[float], problems: int) -> list[str]:
    # Two standard errors of a difference of two independent proportions: rough on
    # purpose, the same problems are compared and the true error is smaller.
    noise = 2 * math.sqrt(2 * max(before * (1 - before), 0.01) / max(problems, 1))
    if trained and trained[-1] < before - noise:
        return [
            f"COLLAPSE: validation fell from {before:.1%} to {trained[-1]:.1%}. "
            "Lower the learning rate, or add an NLL term (nll_coef)"
        ]
    if trained and max(trained) <= before:
        return [
            f"no gain on validation ({before:.1%} before, best {max(trained):.1%}); the policy "
            "stays. Sample more per problem, or harder problems"
        ]
    return []


def _forgetting(before: Mapping[str, float], after: Mapping[str, float]) -> list[str]:
    """Compare problem by problem: a gain on the whole can hide what was unlearned."""
    both = before.keys() & after.keys()
    solved = [problem for problem in before if problem in both and before[problem] > 0]
    lost = [problem for problem in solved if after[problem] <= 0]
    if len(lost) < max(_LOST_LEAST, _LOST_SHARE * len(solved)):
        return []
    gained = sum(before[problem] <= 0 < after[problem] for problem in both)
    return [
        f"FORGETTING: {len(lost)} of the {len(solved)} validation problems that were solved before "
        f"are lost ({', '.join(lost[:3])}{' and others' if len(lost) > 3 else ''}), {gained} "
        "were gained. Lower the learning rate, raise eta, keep the reference where the run began "
        '(reference = "first"), or add an NLL term (nll_coef)'
    ]


def _dive(rows: _Rows) -> list[str]:
    """Compare the chosen side's log-probs in the first and the last tenth of the steps."""
    logps = [row["logps/chosen"] for row in rows if "logps/chosen" in row]
    if len(logps) < 2:
        return []
    size = _tenth(logps)
    first, last = fmean(logps[:size]), fmean(logps[-size:])
    # From one step to the next the batch changes much and the policy little.
    spread = math.sqrt(fmean([(b - a) ** 2 for a, b in pairwise(logps)]) / 2)
    error = spread * math.sqrt(2 / size)
    if first - last <= max(_DIVE_NATS, _DIVE_ERRORS * error):
        return []
    return [
        f"log-probs of the chosen side dived by {first - last:.0f} nats "
        f"({first:.1f} to {last:.1f}): the policy is leaving "
        "what it sampled. Lower the learning rate, raise eta, or add an NLL term"
    ]


def _memorised(rows: _Rows, nll_coef: float) -> list[str]:
    """Look at the preference loss alone; of demonstrations a small NLL is no alarm."""
    losses = [_preference_loss(row, nll_coef) for row in rows if _prefers(row)]
    if not losses or fmean(losses[-_tenth(losses) :]) >= _NEAR_ZERO:
        return []
    return [
        "the loss is near zero while validation stands still: the pairs are memorised. "
        "Use more prompts and fewer epochs"
    ]


def _prefers(row: Mapping[str, float]) -> bool:
    """Say whether a preference learner logged it. A batch of M-KTO may have one side only."""
    return "loss" in row and ("rewards/chosen" in row or "rewards/rejected" in row)


def _preference_loss(row: Mapping[str, float], nll_coef: float) -> float:
    # Every pair has a chosen side; of M-KTO's single samples it is one in two.
    share = 1.0 if "rewards/accuracies" in row else 0.5
    return row["loss"] - nll_coef * share * row.get("nll_loss", 0.0)


def _nll_coef(folder: Path) -> float:
    """Return the weight of the NLL in the logged loss, which a checkpoint's manifest says."""
    checkpoints = step_folders(folder)
    manifest: dict[str, Any] = read_manifest(checkpoints[-1][1]) if checkpoints else {}
    return float(manifest.get("loss", {}).get("nll_coef", 0.0))


def _tenth(values: Sequence[float]) -> int:
    return max(1, len(values) // 10)
