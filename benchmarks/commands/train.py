"""`mathenv train`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from agents.models.transformers import load_tokenizer
from agents.rendering import ChatRenderer
from benchmarks.console import ResultConsole
from benchmarks.learning import LearningReporter
from learners.learner import (
    Learner,
    LearnerConfig,
    learner_names,
    make_learner,
    settings_type,
)
from learners.train import Stage, TrainConfig, train
from mathenv.errors import ConfigError, TrainingError
from mathenv.store import read_trajectories, write_atomic
from mathenv.types import Trajectory


@dataclass(frozen=True, slots=True)
class TrainCommand:
    """Train a learner on stored trajectories and write checkpoint folders.

    Demonstrations without tokens (such as the oracle's) are rendered with the policy's chat
    template; sampled trajectories must have been sampled with the policy's tokenizer. A run
    that was stopped goes on from its last checkpoint when the same command is given again.

    Args:
        learner: mdpo, mkto, dpo, kto, ipo, simpo, dmpo, stepdpo, grpo, raft, sft, or the
            name of an installed learner. Its own settings are flags: put it before them.
        trajectories: .jsonl files or the folders that `mathenv collect` wrote.
        policy: model folder to start from.
        out: folder for the checkpoints (step-N) and metrics.jsonl.
        reference: model folder of the reference model (mdpo, dpo, kto, ...). Left out: the policy.
        seed: fixes pairing and the order of training.
        loss: settings of the learner.
        optim: settings of the training loop.
    """

    learner: Annotated[str, tyro.conf.Positional]
    trajectories: tuple[Path, ...]
    policy: Path
    out: Path
    reference: Path | None = None
    seed: int = 0
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

    def run(self) -> None:
        """Select examples, say which, train, and print the checkpoints."""
        learner = make_learner(self.learner, self.loss)
        stored = [t for path in self.trajectories for t in read_trajectories(path)]
        trajectories = tokenized(_distinct(stored), learner, self.policy)
        examples, selection = learner.examples(trajectories, seed=self.seed)
        reporter = LearningReporter()
        counts = selection.counts()
        reporter.say(", ".join(f"{name} {count}" for name, count in counts.items() if count))
        write_atomic(
            self.out / "selection.json",
            json.dumps({"counts": counts, "provenance": selection.provenance}, indent=1) + "\n",
        )
        reference = (self.reference or self.policy) if learner.uses_reference else None
        stage = Stage(self.policy, self.out, reference, self.seed)
        with reporter.stage(f"train {learner.name}", None, "steps") as advance:
            checkpoints = train(learner, examples, self.optim, stage, on_step=advance)
        console = ResultConsole()
        for path in checkpoints:
            console.say(path)


def tokenized(
    trajectories: Sequence[Trajectory], learner: Learner, policy: Path
) -> list[Trajectory]:
    """Return the trajectories with tokens of the policy's tokenizer and template.

    Raises:
        TrainingError: a preference learner was given trajectories that no model sampled, or
            tokens were made by another tokenizer or template.
    """
    renderer = ChatRenderer(load_tokenizer(policy))
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
        elif trajectory.tokens.fingerprint != renderer.fingerprint:
            raise TrainingError(
                f"{trajectory.key} was sampled with another tokenizer or chat template than "
                f"{policy} has: its tokens would mean something else"
            )
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
