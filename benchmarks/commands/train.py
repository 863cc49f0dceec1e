"""`mathenv train`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from itertools import dropwhile
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from agents.models.transformers import load_tokenizer
from agents.policy import RenderOptions
from benchmarks.console import ResultConsole
from benchmarks.learning import LearningReporter
from benchmarks.tracking import WandbReporter
from learners.learner import (
    Learner,
    LearnerConfig,
    check_used,
    learner_names,
    make_learner,
    settings_type,
)
from learners.parallel import Devices
from learners.reporter import Reporter
from learners.train import Stage, TrainConfig, train
from mathenv.errors import ConfigError, DataError, TrainingError
from mathenv.settings import Seed, check_settings
from mathenv.store import read_trajectories, write_atomic
from mathenv.types import Trajectory


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
    policy: Path
    out: Path
    reference: Path | None = None
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

    def run(self) -> None:
        """Select examples, say which, train, and print the checkpoints."""
        learner = make_learner(self.learner, self.loss)
        check_used(self.learner, self.loss)
        if self.reference is not None and not learner.uses_reference:
            raise ConfigError(f"{self.learner} has no reference model: leave out --reference")
        stored = [t for path in self.trajectories for t in read_trajectories(path)]
        if not stored:
            files = ", ".join(map(str, self.trajectories)) or "--trajectories"
            raise DataError(f"no trajectory in {files}: there is nothing to train on")
        trajectories = tokenized(_distinct(stored), learner, self.policy, self.dialect)
        examples, selection = learner.examples(trajectories, seed=self.seed)
        devices = Devices()
        reporter: Reporter = LearningReporter() if devices.is_main else Reporter()
        if self.wandb and devices.is_main:
            reporter = WandbReporter(reporter, self.out, self)
        counts = selection.counts()
        reporter.say(", ".join(f"{name} {count}" for name, count in counts.items() if count))
        if devices.is_main:
            record = {"counts": counts, "provenance": selection.provenance}
            write_atomic(self.out / "selection.json", json.dumps(record, indent=1) + "\n")
        reference = (self.reference or self.policy) if learner.uses_reference else None
        stage = Stage(self.policy, self.out, reference, self.seed)
        with reporter.stage("train", None, "steps") as advance:
            checkpoints = train(learner, examples, self.optim, stage, on_step=advance)
        if isinstance(reporter, WandbReporter):
            reporter.close()
        if devices.is_main:
            console = ResultConsole()
            for path in checkpoints:
                console.say(path)
        devices.close()


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


def tokenized(
    trajectories: Sequence[Trajectory],
    learner: Learner,
    policy: Path,
    dialect: str | None = None,
) -> list[Trajectory]:
    """Return the trajectories with tokens of the policy's tokenizer; those there are stay.

    Raises:
        ConfigError: no such dialect.
        RenderError: there is something to render, and the policy's template cannot.
        TrainingError: a preference learner was given trajectories that no model sampled.
    """
    if all(t.tokens for t in trajectories):
        return list(trajectories)  # whose tokens they are is checked where they are trained on
    renderer = RenderOptions(dialect).renderer(load_tokenizer(policy))
    ready = []
    for trajectory in trajectories:
        if trajectory.tokens is None:
            if not learner.from_demonstrations:
                raise TrainingError(
                    f"{trajectory.key} holds no tokens, so no model sampled it: {learner.name} "
                    "trains on what the policy sampled (mathenv collect --agent transformers)"
                )
            record = renderer.record_turns(trajectory.problem.question, trajectory.turns)
            trajectory = replace(trajectory, tokens=record)
        ready.append(trajectory)
    return ready


def _distinct(trajectories: Sequence[Trajectory]) -> Sequence[Trajectory]:
    seen: set[str] = set()
    for trajectory in trajectories:
        if trajectory.key in seen:
            raise ConfigError(
                f"{trajectory.key!r} stands in two of the files: sample with another --name"
            )
        seen.add(trajectory.key)
    return trajectories
