"""How a stage trains: its settings, what each step is given, at which rate, what is kept."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from learners.lora import LoRA
from learners.preferences import Example
from mathenv.errors import ConfigError
from mathenv.settings import (
    Count,
    CountFrom0,
    NotNegative,
    Positive,
    PositiveOrInf,
    Share,
    ShareBelow1,
    check_settings,
)

_SCHEDULES = ("constant", "linear", "cosine")
_PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How one stage trains.

    Args:
        lr: peak learning rate of AdamW.
        epochs: passes over the examples (paper: 1 for preference learning).
        batch_size: examples (pairs, or demonstrations) per optimizer step, over all devices.
        warmup: share of the steps in which the rate rises linearly.
        schedule: what follows the warm-up: "constant", or "linear" or "cosine" towards zero, which
            would be reached one step after the last.
        weight_decay: AdamW's decoupled weight decay, on all weights.
        clip_norm: the gradient is scaled down to this norm where it is larger.
        token_budget: tokens per forward pass and device, padding included; memory grows
            with it. A step takes as many passes as it needs.
        checkpoints: how many checkpoints to keep, evenly spaced, the last step included.
        betas: AdamW's decay rates of the first and second moment.
        precision: "fp32", "bf16" or "fp16": what the forward pass computes in. Weights,
            gradients and moments stay in float32; fp16 scales its loss.
        recompute_every: activation checkpointing. The backward pass computes the activations
            of every n-th layer again instead of keeping them: 1 all, 2 half of them, 0 none.
        processes: how many train together, started for each stage: at most one per GPU, or per
            CPU thread. Under `accelerate launch` and `torchrun` theirs train, and no others.
        shard: several processes share weights, gradients and moments out (FSDP2) instead of
            each having them whole (DDP). Also set by `accelerate launch --use_fsdp`.
        lora: adapters to train instead of the weights; off by default.
    """

    lr: Positive = 1e-5
    epochs: Count = 1
    batch_size: Count = 32
    warmup: Share = 0.1
    schedule: str = "cosine"
    weight_decay: NotNegative = 0.0
    clip_norm: PositiveOrInf = 1.0
    token_budget: Count = 8192
    checkpoints: Count = 3
    betas: tuple[ShareBelow1, ShareBelow1] = (0.9, 0.999)
    precision: str = "fp32"
    recompute_every: CountFrom0 = 0
    processes: Count = 1
    shard: bool = False
    lora: LoRA = field(default_factory=LoRA)

    def __post_init__(self) -> None:
        check_settings(self)
        for name, known in (("schedule", _SCHEDULES), ("precision", _PRECISIONS)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"no {name} is called {getattr(self, name)!r}: there are {', '.join(known)}"
                )


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
