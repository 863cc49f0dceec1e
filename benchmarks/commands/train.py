"""`mathenv train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from learners.registry import learner_names, settings_type
from learners.settings import LearnerConfig, TrainConfig
from mathenv.settings import Seed, check_settings


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
            name of an installed learner. Its own settings are flags.
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
    seed: Seed = 0
    dialect: str | None = None
    wandb: bool = False
    loss: LearnerConfig = field(default_factory=LearnerConfig)
    optim: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def defaults(cls, words: list[str]) -> TrainCommand:
        """Return what flags override: the settings that the named learner has."""
        word = first_positional(words, _arities(cls))
        name = word if word in learner_names() else None
        missing: Any = tyro.MISSING
        return cls(
            learner=missing,
            trajectories=missing,
            policy=missing,
            out=missing,
            loss=settings_type(name)() if name else LearnerConfig(),
        )


def first_positional(words: Sequence[str], arities: Mapping[str, int | None]) -> str | None:
    """Return the first word that is no flag and no flag's value, None where there is none.

    Args:
        arities: values that a flag takes, None: all up to the next flag. A flag that is not
            here takes one.
    """
    left = iter(words)
    for word in left:
        if not word.startswith("--"):
            return word
        name, _, value = word.partition("=")
        arity = 0 if value else arities.get(name.replace("_", "-"), 1)
        if arity is None:
            left = dropwhile(lambda later: not later.startswith("--"), left)
            return first_positional(list(left), arities)
        for _ in range(arity):
            next(left, None)
    return None


def _arities(kind: Any) -> dict[str, int | None]:
    """Return how many values the flags of a dataclass take, those of all learners' too."""
    found: dict[str, int | None] = {}
    kinds = [kind, *map(settings_type, learner_names())]
    while kinds:
        here = kinds.pop()
        for name, hint in get_type_hints(here).items():
            flag = name.replace("_", "-")
            if is_dataclass(hint):
                kinds.append(hint)
            elif hint is bool:
                found |= {f"--{flag}": 0, f"--no-{flag}": 0}
            elif get_origin(hint) is tuple:
                arguments = get_args(hint)
                found[f"--{flag}"] = None if Ellipsis in arguments else len(arguments)
    return found
