"""The online iteration (arXiv 2409.02392, algorithm 1), readable top to bottom.

Each iteration samples from a mixture of the current and the previous policy, keeps the
problems with both right and wrong answers, trains, chooses the checkpoint on validation
problems, and moves the reference. Every stage writes into its own folder and can be
killed and started again:

    iteration-1/rollouts.jsonl     trajectories of the mixture
    iteration-1/selection.json     pairs with provenance, and what was left out and why
    iteration-1/train/step-N/      checkpoints, metrics.jsonl
    iteration-1/validation/*.jsonl greedy episodes per checkpoint
    iteration-1/result.json        the choice, its scores and the diagnosis
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from agents.base import SamplingParams, WeightedAgent
from agents.llm import derive_seed
from agents.policy import load_policy
from agents.rollout import CollectConfig, collect, read_collected
from learners.checkpoint import drop_state, step_folders
from learners.diagnose import diagnose
from learners.learner import Learner, LearnerConfig, make_learner
from learners.preferences import Example
from learners.reporter import Reporter
from learners.train import Stage, TrainConfig, train
from mathenv.errors import ConfigError
from mathenv.store import TrajectoryStore, read_trajectories, write_atomic
from mathenv.types import Problem, Trajectory


@dataclass(frozen=True, slots=True)
class IterateConfig:
    """One run of the online loop. Defaults follow the paper where it says something.

    Args:
        iterations: rounds of sampling and training (paper: 3).
        current_samples: samples per problem from the current policy (paper: 20).
        previous_samples: samples per problem from the policy before it (paper: 10).
        reference: "last" moves the reference to the newest policy (paper's default),
            "first" keeps the policy the run started from.
        sampling: how the mixture samples (paper: temperature 1).
        collect: episodes in flight, horizon and so on.
        seed: fixes sampling, pairing and the order of training.
    """

    iterations: int = 3
    current_samples: int = 20
    previous_samples: int = 10
    reference: str = "last"
    sampling: SamplingParams = field(default_factory=SamplingParams)
    collect: CollectConfig = field(default_factory=CollectConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.reference not in ("last", "first"):
            raise ConfigError(f"reference must be 'last' or 'first', not {self.reference!r}")
        if self.iterations < 1 or self.current_samples + self.previous_samples < 1:
            raise ConfigError("an iterative run needs at least one iteration and one sample")
        if min(self.current_samples, self.previous_samples) < 0:
            raise ConfigError("current_samples and previous_samples cannot be negative")


@dataclass(frozen=True, slots=True)
class Method:
    """How a learner learns.

    Args:
        loss: settings of the loss and of which trajectories it is given.
        train: settings of the training loop.
    """

    loss: LearnerConfig = field(default_factory=LearnerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, slots=True)
class Data:
    """What a run learns from: prompts (split over the iterations) and held-out problems.

    `demonstrations` are for learners that train on them (SFT for longer).
    """

    prompts: Sequence[Problem]
    validation: Sequence[Problem]
    demonstrations: Sequence[Trajectory] = ()


@dataclass(frozen=True, slots=True)
class IterationResult:
    """What one iteration chose. Scores are greedy pass@1 on the validation problems."""

    number: int
    policy: Path
    validation: float
    validation_before: float
    scores: dict[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Policies:
    current: Path
    previous: Path
    reference: Path


def iterate(
    start: Path,
    previous: Path,
    data: Data,
    learner_name: str,
    method: Method,
    config: IterateConfig,
    run: Path,
    reporter: Reporter | None = None,
) -> list[IterationResult]:
    """Run the loop from the policy `start` and return one result per iteration.

    `previous` is the second member of the first mixture (paper: an earlier SFT epoch).

    Raises:
        ConfigError: no such learner, or too few problems for the number of iterations.
        TrainingError: an iteration found nothing to train on.
    """
    reporter = reporter or Reporter()
    learner = make_learner(learner_name, method.loss)
    _check(learner, data, config)
    policies = _Policies(start, previous, start)
    results = []
    for number in range(1, config.iterations + 1):
        folder = run / f"iteration-{number}"
        prompts = _slice(data.prompts, number, config.iterations)
        trajectories: Sequence[Trajectory] = data.demonstrations
        if not learner.from_demonstrations:
            trajectories = _sample(policies, prompts, config, number, folder, reporter)
        seed = config.seed * 1000 + number
        examples = _select(learner, trajectories, seed, number, folder, reporter)
        checkpoints = _train(learner, examples, method, policies, seed, number, folder, reporter)
        result = _choose(policies, checkpoints, data.validation, config, number, folder, reporter)
        results.append(result)
        policies = _next(policies, result.policy, config)
    return results


def _check(learner: Learner, data: Data, config: IterateConfig) -> None:
    if not data.validation:
        raise ConfigError("checkpoints are chosen on validation problems, and there are none")
    if learner.from_demonstrations:
        if not data.demonstrations:
            raise ConfigError(f"{learner.name} trains on demonstrations, and there are none")
    elif len(data.prompts) < config.iterations:
        raise ConfigError(
            f"{len(data.prompts)} prompts cannot be split over {config.iterations} iterations"
        )


def _next(policies: _Policies, chosen: Path, config: IterateConfig) -> _Policies:
    """Return the next iteration's policies.

    Where the policy stayed, `previous` stays too: a mixture of a policy with itself would
    be no mixture.
    """
    moved = chosen != policies.current
    return _Policies(
        current=chosen,
        previous=policies.current if moved else policies.previous,
        reference=chosen if config.reference == "last" else policies.reference,
    )


def _slice(prompts: Sequence[Problem], number: int, iterations: int) -> Sequence[Problem]:
    """Disjoint prompts for each iteration, as in the paper."""
    size = len(prompts) // iterations
    return prompts[(number - 1) * size : number * size]


def _sample(
    policies: _Policies,
    prompts: Sequence[Problem],
    config: IterateConfig,
    number: int,
    folder: Path,
    reporter: Reporter,
) -> list[Trajectory]:
    """Sample the mixture; what an earlier, killed run finished is kept."""
    file = folder / "rollouts.jsonl"
    mixture = (
        ("current", policies.current, config.current_samples),
        ("previous", policies.previous, config.previous_samples),
    )
    total = len(prompts) * sum(samples for *_, samples in mixture)
    with (
        TrajectoryStore(file) as store,
        reporter.stage(f"iteration {number}: sampling", total, "trajectories") as advance,
    ):
        for name, path, samples in mixture:
            if samples == 0 or len(store) == total:
                continue
            # The name is in the seed: `current` and `previous` may be the same weights,
            # and must not give the same samples then.
            collecting = replace(config.collect, seed=derive_seed(config.seed, number, name))
            with load_policy(path, config.sampling, name=name) as agent:
                collect(
                    [WeightedAgent(agent, samples)],
                    prompts,
                    store,
                    collecting,
                    progress=lambda t, done, _: advance(done),
                )
    return read_collected(file)


def _select(
    learner: Learner,
    trajectories: Sequence[Trajectory],
    seed: int,
    number: int,
    folder: Path,
    reporter: Reporter,
) -> list[Example]:
    """Make training examples and write down which, and what was left out."""
    examples, selection = learner.examples(trajectories, seed=seed)
    record = {"counts": selection.counts(), "provenance": selection.provenance}
    write_atomic(folder / "selection.json", json.dumps(record, indent=1))
    reporter.say(
        f"iteration {number}: {selection.examples} examples from {selection.problems_used} of "
        f"{selection.problems} problems ({selection.all_right} always right, "
        f"{selection.all_wrong} never right, {selection.excluded_infra} episodes excluded)"
    )
    return examples


def _train(
    learner: Learner,
    examples: Sequence[Example],
    method: Method,
    policies: _Policies,
    seed: int,
    number: int,
    folder: Path,
    reporter: Reporter,
) -> list[Path]:
    stage = Stage(policies.current, folder / "train", policies.reference, seed)
    if (folder / "result.json").exists():  # finished before: optimizer states are gone
        return [path for _, path in step_folders(stage.out)]
    with reporter.stage(f"iteration {number}: {learner.name}", None, "steps") as advance:
        return train(learner, examples, method.train, stage, on_step=advance)


def _choose(
    policies: _Policies,
    checkpoints: Sequence[Path],
    validation: Sequence[Problem],
    config: IterateConfig,
    number: int,
    folder: Path,
    reporter: Reporter,
) -> IterationResult:
    """Choose the best checkpoint on validation, the latest of equals.

    The policy we came from stays unless a checkpoint is better than it: a tie is no
    evidence of a gain, and every move away from a good policy can cost.
    """
    candidates = {"before": policies.current} | {path.name: path for path in checkpoints}
    scores = {}
    with reporter.stage(
        f"iteration {number}: validation", len(candidates) * len(validation), "problems"
    ) as advance:
        for index, (name, path) in enumerate(candidates.items()):
            file = folder / "validation" / f"{name}.jsonl"
            trajectories = evaluate(path, validation, file, config)
            advance((index + 1) * len(validation))
            scores[name] = mean_reward(trajectories)
    best = max(reversed([path.name for path in checkpoints]), key=lambda name: scores[name])
    if scores[best] <= scores["before"]:
        best = "before"
    warnings = diagnose(scores, len(validation), folder / "train" / "metrics.jsonl")
    for warning in warnings:
        reporter.say(f"iteration {number}: {warning}")
    result = IterationResult(
        number, candidates[best], scores[best], scores["before"], scores, tuple(warnings)
    )
    write_atomic(folder / "result.json", json.dumps({**asdict(result), "policy": best}, indent=1))
    for _, path in step_folders(folder / "train"):
        drop_state(path)
    return result


def evaluate(
    policy: Path, problems: Sequence[Problem], file: Path, config: IterateConfig
) -> list[Trajectory]:
    """Play every problem once, greedily within the config's limits. Resumable."""
    with TrajectoryStore(file) as store:
        if len(store) < len(problems):
            sampling = replace(config.sampling, temperature=0.0)
            with load_policy(policy, sampling, name="greedy") as agent:
                collect([WeightedAgent(agent)], problems, store, config.collect)
    return list(read_trajectories(file))


def mean_reward(trajectories: Sequence[Trajectory]) -> float:
    """Pass@1 over the trajectories that count; 0.0 where none does."""
    counted = [t.reward for t in trajectories if t.counts]
    return sum(counted) / len(counted) if counted else 0.0
