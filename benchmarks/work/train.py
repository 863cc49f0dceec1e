"""What `mathenv train` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agents.models.hf import load_tokenizer
from agents.models.location import check_model
from agents.settings import RenderOptions
from benchmarks.commands.train import TrainCommand
from benchmarks.console import ResultConsole
from benchmarks.learning import LearningReporter
from benchmarks.tracking import WandbReporter, check_login
from learners.learner import Learner, make_learner
from learners.preferences import Example, Selection, why_none
from learners.registry import check_used
from learners.reporter import Reporter
from learners.training.parallel import Devices
from learners.training.train import Stage, train
from mathenv.errors import ConfigError, DataError, TrainingError
from mathenv.files import writing
from mathenv.store import read_trajectories, write_atomic
from mathenv.types import Trajectory


def run(command: TrainCommand) -> None:
    """Select examples, say which, train, and print the checkpoints."""
    learner = make_learner(command.learner, command.loss)
    check_used(command.learner, command.loss)
    if command.reference is not None and not learner.uses_reference:
        raise ConfigError(f"{command.learner} has no reference model: leave out --reference")
    for model in filter(None, (command.policy, command.reference)):
        check_model(model)  # a wrong name is an error now, not after the data are read
    if command.wandb:
        check_login()
    policy = Path(command.policy)
    stored = [t for path in command.trajectories for t in read_trajectories(path)]
    if not stored:
        files = ", ".join(map(str, command.trajectories)) or "--trajectories"
        raise DataError(f"no trajectory in {files}: there is nothing to train on")
    trajectories = tokenized(_distinct(stored), learner, policy, command.dialect)
    examples, selection = learner.examples(trajectories, seed=command.seed)
    devices = Devices()
    with devices.holding(command.out), writing(command.out):
        _train(command, learner, examples, selection, devices)
    devices.close()


def _train(
    command: TrainCommand,
    learner: Learner,
    examples: Sequence[Example],
    selection: Selection,
    devices: Devices,
) -> None:
    policy = Path(command.policy)
    reporter: Reporter = LearningReporter() if devices.is_main else Reporter()
    if command.wandb and devices.is_main:
        reporter = WandbReporter(reporter, command.out, command)
    counts = selection.counts()
    reporter.say(", ".join(f"{name} {count}" for name, count in counts.items() if count))
    if devices.is_main:
        record = {"counts": counts, "provenance": selection.provenance}
        write_atomic(command.out / "selection.json", json.dumps(record, indent=1) + "\n")
    if not examples:
        raise TrainingError(why_none(command.learner, selection, learner.config.pairs))
    reference = Path(command.reference or policy) if learner.uses_reference else None
    stage = Stage(policy, command.out, reference, command.seed)
    with reporter.stage("train", None, "steps") as advance:
        checkpoints = train(learner, examples, command.optim, stage, on_step=advance)
    if isinstance(reporter, WandbReporter):
        reporter.close()
    if devices.is_main:
        console = ResultConsole()
        for path in checkpoints:
            console.say(path)


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
