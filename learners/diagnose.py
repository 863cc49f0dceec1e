"""Failure signatures of preference learning, each with a plain sentence on what to try."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

# A fall of the mean chosen log-prob by this many nats per step of training is more than
# sharpening explains: in the runs that collapsed here it fell by 50 and more.
_DIVE_NATS = 20.0


def diagnose(scores: Mapping[str, float], problems: int, metrics_file: Path) -> list[str]:
    """Return what looks wrong after one iteration, in the order of alarm.

    Args:
        scores: greedy pass@1 on validation, "before" and per checkpoint in order.
        problems: how many validation problems the scores rest on.
        metrics_file: the stage's `metrics.jsonl`.
    """
    rows = [json.loads(line) for line in metrics_file.read_text().splitlines()]
    before = scores["before"]
    trained = [score for name, score in scores.items() if name != "before"]
    found = []
    # Two standard errors of a difference of two independent proportions: rough on
    # purpose, the same problems are compared and the true error is smaller.
    noise = 2 * math.sqrt(2 * max(before * (1 - before), 0.01) / max(problems, 1))
    if trained and trained[-1] < before - noise:
        found.append(
            f"COLLAPSE: validation fell from {before:.1%} to {trained[-1]:.1%}. "
            "Lower the learning rate, or add an NLL term (nll_coef)"
        )
    elif trained and max(trained) <= before:
        found.append(
            f"no gain on validation ({before:.1%} before, best {max(trained):.1%}); the policy "
            "stays. Sample more per problem, or harder problems"
        )
    if not rows or not trained:
        return found
    first, last = rows[0], rows[-1]
    fall = first.get("logps/chosen", 0.0) - last.get("logps/chosen", 0.0)
    if fall > _DIVE_NATS:
        found.append(
            f"log-probs of the chosen side dived by {fall:.0f} nats "
            f"({first['logps/chosen']:.1f} to {last['logps/chosen']:.1f}): the policy is leaving "
            "what it sampled. Lower the learning rate, raise eta, or add an NLL term"
        )
    if "rewards/accuracies" in last and last["loss"] < 0.05 and max(trained) <= before:
        found.append(
            "the loss is near zero while validation stands still: the pairs are memorised. "
            "Use more prompts and fewer epochs"
        )
    return found
