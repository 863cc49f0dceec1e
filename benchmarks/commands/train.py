"""`mathenv train`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from learners.registry import learner_names, settings_type
from learners.settings import LearnerConfig, TrainConfig


@dataclass(frozen=True, slots=True)
class TrainCommand:
    """Train a learner on stored trajectories and write checkpoint folders.

    Demonstrations without tokens (such as the oracle's) are rendered with the policy's chat
    template or a dialect; sampled trajectories must have been sampled with the policy's
    tokenizer. A run that was stopped goes on from its last checkpoint when the same command is
    given again. With `accelerate launch -m benchmarks train` or `torchrun -m benchmarks train`
    several processes train together.

    Args:
        learner: mdpo, mkto, dpo, kto, ipo, simpo, dmpo, stepdpo, grpo, raft, sft, or the
            name of an installed learner. Its own settings are flags: put it before them.
        trajectories: .jsonl files or the folders that `mathenv collect` wrote.
        policy: model folder to start from.
        out: folder for the checkpoints (step-N) and metrics.jsonl.
        reference: model folder of the reference model (mdpo, dpo, kto, ...). Left out: the policy.
        seed: fixes pairing and the order of training.
        dialect: how demonstrations without tokens are written, a name in agents/dialects.toml.
            Left out: the policy's own chat template. Tokens that were sampled say it themselves.
        wandb: log to Weights and Biases (`WANDB_MODE=offline` keeps it on this machine), under
            TRL's names: `train/loss`, `train/rewards/margins`, ...
        loss: settings of the learner.
        optim: settings of the training loop.
    """

    learner: Annotated[str, tyro.conf.Positional]
    trajectories: tuple[Path, ...]
    policy: str
    out: Path
    reference: str | None = None
    seed: int = 0
    dialect: str | None = None
    wandb: bool = False
    loss: LearnerConfig = field(default_factory=LearnerConfig)
    optim: TrainConfig = field(default_factory=TrainConfig)

    @classmethod
    def defaults(cls, words: list[str]) -> TrainCommand:
        """Return what flags override: the settings that the named learner has."""
        name = next((word for word in words if word in learner_names()), None)
        missing: Any = tyro.MISSING
        return cls(
            learner=missing,
            trajectories=missing,
            policy=missing,
            out=missing,
            loss=settings_type(name)() if name else LearnerConfig(),
        )
