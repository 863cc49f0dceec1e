"""How a stage trains: its settings, what each step is given, at which rate, what is kept."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence

from learners.preferences import Example
from learners.settings import TrainConfig


def count_steps(examples: int, config: TrainConfig) -> int:
    """Return the number of optimizer steps."""
    return math.ceil(examples / config.batch_size) * config.epochs


def batches(examples: Sequence[Example], config: TrainConfig, seed: int) -> Iterator[list[Example]]:
    """Yield what each optimizer step is given, step after step."""
    for epoch in range(config.epochs):
        order = list(range(len(examples)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for first in range(0, len(order), config.batch_size):
            yield [examples[i] for i in order[first : first + config.batch_size]]


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the rate of a step, counted from 1. It is never 0.

    As in transformers' schedules, the peak is the first of the n steps that decay, and the rate
    would be 0 in the step after the last: step i of them, from 0, has 1 - i / n of the peak
    (linear), or (1 + cos(pi i / n)) / 2 of it (cosine). Were it 0 in the last step, that step's
    examples would not be learnt. Unlike there, the warm-up's first step has a rate too. The rates
    of both schedules sum to lr (steps + 1) / 2, whatever the warm-up.
    """
    return config.lr * _share(config, step, steps)


def save_steps(steps: int, checkpoints: int) -> set[int]:
    """Return the steps after which a checkpoint is written."""
    count = max(1, min(checkpoints, steps))
    return {round(steps * (i + 1) / count) for i in range(count)}


def _share(config: TrainConfig, step: int, steps: int) -> float:
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / (steps - warmup + 1)
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
    return 0.5 * (1 + math.cos(math.pi * progress))
