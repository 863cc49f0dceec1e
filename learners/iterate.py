"""The online iteration (arXiv 2409.02392, algorithm 1), readable top to bottom.

Each iteration samples from a mixture of the current and the previous policy, keeps the
problems with both right and wrong answers, trains, chooses the checkpoint on validation
problems, and moves the reference. Every stage writes into its own folder and can be
killed and started again. What a stage began with stays: once the selection is written no
episode of it is sampled, and an iteration with a result is only read.

    iteration-1/rollouts.jsonl     trajectories of the mixture
    iteration-1/selection.json     pairs with provenance, and what was left out and why
    iteration-1/train/step-N/      checkpoints, metrics.jsonl
    iteration-1/validation/*.jsonl greedy episodes per checkpoint
    iteration-1/result.json        the choice, its scores and the diagnosis
    reference.sqlite               log-probs of reference policies (see `reference`)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

from agents.base import SamplingParams, WeightedAgent
from agents.distributed import RayConfig, WorkerSetup, collect_with
from agents.llm import derive_seed
from agents.policy import EngineOptions, RenderOptions, load_policy
from agents.rollout import CollectConfig, jobs_of, read_collected
from learners.checkpoint import drop_state, step_folders
from learners.diagnose import diagnose
from learners.learner import Learner, LearnerConfig, make_learner
from learners.preferences import Example
from learners.reporter import Reporter
from learners.train import Stage, TrainConfig, train
from learners.weights import same_weights
from mathenv.env import SandboxTier, shared_interpreter
from mathenv.errors import ConfigError
from mathenv.interpreter import Interpreter, Limits
from mathenv.settings import Count, CountFrom0, NotNegative, Seed, check_settings
from mathenv.store import TrajectoryStore, write_atomic
from mathenv.types import Problem, Trajectory

_RESULT = "result.json"

ReferenceMoves = Count | Literal["last", "first"]


@dataclass(frozen=True, slots=True)
class IterateConfig:
    """One run of the online loop. Defaults follow the paper where it says something.

    Args:
        iterations: rounds of sampling and training (paper: 3).
        current_samples: samples per problem from the current policy (paper: 20).
        previous_samples: samples per problem from the policy before it (paper: 10).
        reference: "last" moves the reference to the newest policy after every iteration
            (paper's default), a number k after every k iterations, and "first" keeps the
            policy that the run started from.
        sampling: how the mixture samples (paper: temperature 1).
        collect: episodes in flight, horizon and so on.
        engine: what samples and evaluates, one engine at a time and none while training.
        rendering: how conversations are written, in demonstrations too.
        interpreter: what runs the code, in demonstrations too: this machine's sandbox or Docker.
        min_tier: the weakest tier of its sandbox that will do; left out: any that works.
        ray: sample and evaluate with several workers, each with its own engine: the address of
            a Ray cluster, `auto`, or `local` to start one here. Left out: in this process.
        workers, worker_cpus, worker_gpus: how many, and what Ray reserves for each.
        seed: fixes sampling, pairing and the order of training.
    """

    iterations: Count = 3
    current_samples: CountFrom0 = 20
    previous_samples: CountFrom0 = 10
    reference: ReferenceMoves = "last"
    sampling: SamplingParams = field(default_factory=SamplingParams)
    collect: CollectConfig = field(default_factory=CollectConfig)
    engine: EngineOptions = field(default_factory=EngineOptions)
    rendering: RenderOptions = field(default_factory=RenderOptions)
    interpreter: Literal["local", "docker"] = "local"
    min_tier: SandboxTier | None = None
    ray: str | None = None
    workers: Count = 2
    worker_cpus: NotNegative = 1.0
    worker_gpus: NotNegative = 0.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        every = type(self.reference) is int and self.reference > 0
        if not every and self.reference not in ("last", "first"):
            raise ConfigError(
                "reference must be 'last', 'first' or after how many iterations it moves, not "
                f"{self.reference!r}"
            )
        check_settings(self)
        if self.current_samples + self.previous_samples < 1:
            raise ConfigError("current_samples and previous_samples cannot both be 0")


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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an iteration writes, and by what name it tells of itself.

    No two of a run with several seeds and learners have one name: a tracker's curves go by it.
    """

    name: str
    folder: Path
    reporter: Reporter


def iterate(
    start: Path,
    previous: Path,
    data: Data,
    learner_name: str,
    method: Method,
    config: IterateConfig,
    run: Path,
    reporter: Reporter | None = None,
    interpreter: str | Interpreter | None = None,
    cache: Path | None = None,
) -> list[IterationResult]:
    """Run the loop from the policy `start` and return one result per iteration.

    `previous` is the second member of the first mixture (paper: an earlier SFT epoch).
    `interpreter` runs the sampled episodes' code in the place of the config's, which validation
    is always played with.
    `cache` keeps log-probs of the reference, for other runs too; left out: a file in `run`.

    Raises:
        ConfigError: no such learner, or too few problems for the number of iterations.
        TrainingError: an iteration found nothing to train on.
    """
    reporter, cache = reporter or Reporter(), cache or run / "reference.sqlite"
    learner = make_learner(learner_name, method.loss)
    _check(learner, data, config)
    policies = _Policies(start, previous, start)
    results = []
    for number in range(1, config.iterations + 1):
        folder = run / f"iteration-{number}"
        result = _read_result(policies, number, folder)
        if result is None:
            place = _Place(f"seed-{config.seed}/{learner_name}/{folder.name}", folder, reporter)
            prompts = _slice(data.prompts, number, config.iterations)
            trajectories: Sequence[Trajectory] = data.demonstrations
            if not learner.from_demonstrations:
                runs_code = interpreter or config.interpreter
                trajectories = _sample(policies, prompts, config, number, place, runs_code)
            seed = config.seed * 1000 + number
            examples = _select(learner, trajectories, seed, place)
            stage = Stage(policies.current, folder / "train", policies.reference, seed, cache)
            with reporter.stage(f"{place.name}/train", None, "steps") as advance:
                checkpoints = train(learner, examples, method.train, stage, on_step=advance)
            result = _choose(policies, checkpoints, data.validation, config, number, place)
        for _, path in step_folders(folder / "train"):
            drop_state(path)  # here, so that a kill after the result was written leaves none
        results.append(result)
        policies = _next(policies, result.policy, number, config)
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


def _next(policies: _Policies, chosen: Path, number: int, config: IterateConfig) -> _Policies:
    """Return the policies of the iteration after this one.

    Where the policy stayed, `previous` stays too: a mixture of a policy with itself would
    be no mixture.
    """
    moved = chosen != policies.current
    match config.reference:
        case int(every):
            update = number % every == 0
        case word:
            update = word == "last"
    return _Policies(
        current=chosen,
        previous=policies.current if moved else policies.previous,
        reference=chosen if update else policies.reference,
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
    place: _Place,
    interpreter: str | Interpreter,
) -> list[Trajectory]:
    """Sample the mixture; what an earlier, killed run finished is kept.

    Once examples were chosen nothing is added: an episode that failed then and succeeds now
    would change what a half trained stage goes on with.
    """
    file = place.folder / "rollouts.jsonl"
    if _is_selected(place.folder):
        return read_collected(file)
    mixture = (
        ("current", policies.current, config.current_samples),
        ("previous", policies.previous, config.previous_samples),
    )
    total = len(prompts) * sum(samples for *_, samples in mixture)
    with (
        TrajectoryStore(file) as store,
        place.reporter.stage(f"{place.name}/sampling", total, "trajectories") as advance,
    ):
        for name, path, samples in mixture:
            if all(job.key in store for job in jobs_of([(name, samples)], prompts)):
                continue
            # The name is in the seed: `current` and `previous` may be the same weights,
            # and must not give the same samples then.
            collecting = replace(config.collect, seed=derive_seed(config.seed, number, name))
            collect_with(
                partial(_open, path, config.sampling, config, name, samples),
                _cluster(config),
                prompts,
                store,
                collecting,
                interpreter=interpreter,
                progress=lambda t, done, _: advance(done),
            )
    return read_collected(file)


def _is_selected(folder: Path) -> bool:
    """Whether examples were chosen. A selection without any is followed by more sampling."""
    file = folder / "selection.json"
    return file.exists() and json.loads(file.read_text())["counts"]["examples"] > 0


def _select(
    learner: Learner, trajectories: Sequence[Trajectory], seed: int, place: _Place
) -> list[Example]:
    """Make training examples and write down which, and what was left out."""
    examples, selection = learner.examples(trajectories, seed=seed)
    if not _is_selected(place.folder):
        record = {"counts": selection.counts(), "provenance": selection.provenance}
        write_atomic(place.folder / "selection.json", json.dumps(record, indent=1))
    place.reporter.say(
        f"{place.name}: {selection.examples} examples from {selection.problems_used} of "
        f"{selection.problems} problems ({selection.all_right} always right, "
        f"{selection.all_wrong} never right, {selection.excluded_infra} episodes excluded, "
        f"{selection.truncated} cut off by a token limit)"
    )
    return examples


def _choose(
    policies: _Policies,
    checkpoints: Sequence[Path],
    validation: Sequence[Problem],
    config: IterateConfig,
    number: int,
    place: _Place,
) -> IterationResult:
    """Choose the best checkpoint on validation, the latest of equals.

    The policy we came from stays unless a checkpoint is better than it: a tie is no
    evidence of a gain, and every move away from a good policy can cost. A checkpoint whose
    weights are those of an earlier candidate is that candidate, and is not played again.
    """
    candidates = {"before": policies.current}
    for path in checkpoints:
        known = next((n for n, other in candidates.items() if same_weights(path, other)), None)
        if known is None:
            candidates[path.name] = path
        else:
            place.reporter.say(f"{place.name}: {path.name} has the same weights as {known}")
    total = len(candidates) * len(validation)
    played: dict[str, list[Trajectory]] = {}
    with place.reporter.stage(f"{place.name}/validation", total, "problems") as advance:
        for name, path in candidates.items():
            file = place.folder / "validation" / f"{name}.jsonl"
            played[name] = evaluate(path, validation, file, config)
            advance(len(played) * len(validation))
        scores = {name: mean_reward(episodes) for name, episodes in played.items()}
        best = max(reversed(scores), key=lambda name: scores[name])
        if scores[best] <= scores["before"]:
            best = "before"
        advance(total, figures={"accuracy": scores[best], "before": scores["before"]})
    warnings = diagnose(
        scores,
        len(validation),
        place.folder / "train" / "metrics.jsonl",
        before=_rewards(played["before"]),
        after=_rewards(played[best]),
    )
    for warning in warnings:
        place.reporter.say(f"{place.name}: {warning}")
    result = IterationResult(
        number, candidates[best], scores[best], scores["before"], scores, tuple(warnings)
    )
    row = {**asdict(result), "policy": best}
    write_atomic(place.folder / _RESULT, json.dumps(row, indent=1))
    return result


def _read_result(policies: _Policies, number: int, folder: Path) -> IterationResult | None:
    """Return what an earlier run chose in an iteration, or None where it did not get that far."""
    file = folder / _RESULT
    if not file.exists():
        return None
    row = json.loads(file.read_text())
    best = row["policy"]
    return IterationResult(
        number,
        policies.current if best == "before" else folder / "train" / best,
        row["validation"],
        row["validation_before"],
        row["scores"],
        tuple(row["warnings"]),
    )


def _rewards(episodes: Sequence[Trajectory]) -> dict[str, float]:
    return {t.problem.id: t.reward for t in episodes if t.counts}


def evaluate(
    policy: Path, problems: Sequence[Problem], file: Path, config: IterateConfig
) -> list[Trajectory]:
    """Play every problem once, greedily within the config's limits. Resumable.

    Once all are played, those that failed in the machinery stay out and need no engine again,
    unless they are most: remove the file beside this one (`failed_path`) to play them.
    """
    with TrajectoryStore(file) as store:
        failed = len(read_collected(file)) - len(store)
        if len(store) + failed < len(problems) or failed > len(store):
            sampling = replace(config.sampling, temperature=0.0)
            opening = partial(_open, policy, sampling, config, "greedy", 1)
            collect_with(
                opening,
                _cluster(config),
                problems,
                store,
                config.collect,
                interpreter=config.interpreter,
            )
    return read_collected(file)


@contextmanager
def _open(
    policy: Path, sampling: SamplingParams, config: IterateConfig, name: str, samples: int
) -> Iterator[WorkerSetup]:
    """Open a policy's engine: in this process, or in each worker, where Ray sends this."""
    if config.min_tier is not None:
        shared_interpreter(config.interpreter, Limits(), config.min_tier)
    with load_policy(
        policy, sampling, name=name, engine=config.engine, rendering=config.rendering
    ) as agent:
        yield WorkerSetup([WeightedAgent(agent, samples)])


def _cluster(config: IterateConfig) -> RayConfig | None:
    if config.ray is None:
        return None
    return RayConfig(config.workers, config.ray, config.worker_cpus, config.worker_gpus)


def mean_reward(trajectories: Sequence[Trajectory]) -> float:
    """Pass@1 over the trajectories that count; 0.0 where none does."""
    counted = [t.reward for t in trajectories if t.counts]
    return sum(counted) / len(counted) if counted else 0.0
