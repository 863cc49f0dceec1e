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

`iterate` is a loop over `run_iteration`, which is there for loops of your own:

    policies = Policies.start(Path("sft"))
    for number, prompts in enumerate(splits, start=1):
        data = Data(prompts, validation)
        result = run_iteration(policies, data, "mdpo", Path(f"run/{number}"), number=number)
        policies = policies.after(result)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from agents.base import SamplingParams, WeightedAgent
from agents.distributed import RayConfig, WorkerSetup, collect_with
from agents.llm import derive_seed
from agents.policy import load_policy
from agents.rollout import jobs_of, read_collected
from learners.diagnose import diagnose
from learners.learner import Learner, make_learner
from learners.preferences import Example, why_none
from learners.reporter import Reporter
from learners.settings import IterateConfig, Method, ReferenceMoves
from learners.training.checkpoint import check_finished, drop_state, step_folders
from learners.training.records import RESULT, SELECTION, IterationResult, read_result, selected
from learners.training.train import Stage, train
from learners.training.weights import same_weights
from mathenv.env import shared_interpreter
from mathenv.errors import ConfigError, DataError, TrainingError
from mathenv.files import writing
from mathenv.interpreter import Interpreter, Limits
from mathenv.locking import hold
from mathenv.store import TrajectoryStore, write_atomic
from mathenv.types import Problem, Trajectory


@dataclass(frozen=True, slots=True)
class Data:
    """What a run learns from: prompts (split over the iterations) and held-out problems.

    `demonstrations` are for learners that train on them (SFT for longer).
    """

    prompts: Sequence[Problem]
    validation: Sequence[Problem]
    demonstrations: Sequence[Trajectory] = ()


@dataclass(frozen=True, slots=True)
class Policies:
    """The three policies of one iteration, as checkpoint folders.

    Args:
        current: what the iteration starts from, and the first member of the mixture.
        previous: the second member of the mixture.
        reference: the reference model of learners that use one.
    """

    current: Path
    previous: Path
    reference: Path

    @classmethod
    def start(cls, policy: Path, previous: Path | None = None) -> Policies:
        """Return those of a first iteration; `previous` is an earlier epoch of SFT, if any."""
        return cls(policy, previous or policy, policy)

    def after(self, result: IterationResult, reference: ReferenceMoves = "last") -> Policies:
        """Return the policies of the next iteration.

        Where the policy stayed, `previous` stays too: a mixture of a policy with itself would
        be no mixture.

        Args:
            reference: when the reference moves, as in `IterateConfig`.
        """
        match reference:
            case int(every):
                update = result.number % every == 0
            case word:
                update = word == "last"
        return Policies(
            current=result.policy,
            previous=self.current if result.policy != self.current else self.previous,
            reference=result.policy if update else self.reference,
        )


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
        ConfigError: no such learner, too few problems for the number of iterations, or another
            run is in the folder.
        TrainingError: an iteration found nothing to train on.
        DataError: a file in the folder is damaged. StorageError: the disk is full.
    """
    cache = cache or run / "reference.sqlite"
    _check(make_learner(learner_name, method.loss), data, config)
    policies, results = Policies.start(start, previous), []
    with hold(run), writing(run):
        for number in range(1, config.iterations + 1):
            result = run_iteration(
                policies,
                replace(data, prompts=_slice(data.prompts, number, config.iterations)),
                learner_name,
                run / f"iteration-{number}",
                number=number,
                method=method,
                config=config,
                reporter=reporter,
                interpreter=interpreter,
                cache=cache,
            )
            results.append(result)
            policies = policies.after(result, config.reference)
    return results


def run_iteration(
    policies: Policies,
    data: Data,
    learner_name: str,
    folder: Path,
    *,
    number: int = 1,
    method: Method | None = None,
    config: IterateConfig | None = None,
    reporter: Reporter | None = None,
    interpreter: str | Interpreter | None = None,
    cache: Path | None = None,
) -> IterationResult:
    """Run one iteration: sample, choose examples, train, and choose a checkpoint.

    Killed and called again with the same arguments it goes on where it stopped; one that is
    finished is only read.

    Args:
        policies: what to sample from, to start from and to compare with.
        data: the prompts of this iteration, all of which are used, and the validation problems.
        learner_name: which learner trains.
        folder: where the iteration writes, see the module.
        number: which iteration this is; part of its seeds.
        method: settings of the loss and of the training loop.
        config: sampling, engine and seed. Its `iterations` and `reference` say nothing here.
        reporter: told of the progress.
        interpreter: runs the sampled episodes' code in the place of the config's.
        cache: file for log-probs of the reference. Left out: `reference.sqlite` beside `folder`.

    Raises:
        ConfigError: no such learner, no validation problems or demonstrations to use, or
            another process works in the folder.
        TrainingError: there is nothing to train on.
        DataError: a file in the folder is damaged. StorageError: the disk is full.
    """
    method, config = method or Method(), config or IterateConfig()
    learner = make_learner(learner_name, method.loss)
    _check(learner, data, replace(config, iterations=1))
    name = f"seed-{config.seed}/{learner_name}/{folder.name}"
    place = _Place(name, folder, reporter or Reporter())
    with hold(folder), writing(folder):
        result = read_result(folder, number, policies.current)
        if result is None:
            for path in {policies.current, policies.previous, policies.reference}:
                check_finished(path)
            trajectories: Sequence[Trajectory] = data.demonstrations
            if not learner.from_demonstrations:
                runs_code = interpreter or config.interpreter
                trajectories = _sample(policies, data.prompts, config, number, place, runs_code)
            seed = config.seed * 1000 + number
            examples = _select(learner, trajectories, seed, place)
            cache = cache or folder.parent / "reference.sqlite"
            stage = Stage(policies.current, folder / "train", policies.reference, seed, cache)
            with place.reporter.stage(f"{name}/train", None, "steps") as advance:
                checkpoints = train(learner, examples, method.train, stage, on_step=advance)
            for path in checkpoints:
                check_finished(path)
            result = _choose(policies, checkpoints, data.validation, config, number, place)
        for _, path in step_folders(folder / "train"):
            drop_state(path)  # here, so that a kill after the result was written leaves none
    return result


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


def _slice(prompts: Sequence[Problem], number: int, iterations: int) -> Sequence[Problem]:
    """Disjoint prompts for each iteration, as in the paper."""
    size = len(prompts) // iterations
    return prompts[(number - 1) * size : number * size]


def _sample(
    policies: Policies,
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
    if selected(place.folder) is not None:
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


def _select(
    learner: Learner, trajectories: Sequence[Trajectory], seed: int, place: _Place
) -> list[Example]:
    """Make training examples and write down which, and what was left out."""
    examples, selection = learner.examples(trajectories, seed=seed)
    file = place.folder / SELECTION
    before = selected(place.folder)
    if before is not None and before != selection.provenance:
        raise DataError(
            f"{file} lists other examples than {place.folder / 'rollouts.jsonl'} gives: one of "
            "them is damaged. Restore it from a copy, or remove both and "
            f"{place.folder / 'train'} to sample, choose and train again"
        )
    if before is None:
        record = {"counts": selection.counts(), "provenance": selection.provenance}
        write_atomic(file, json.dumps(record, indent=1))
    place.reporter.say(
        f"{place.name}: {selection.examples} examples from {selection.problems_used} of "
        f"{selection.problems} problems ({selection.all_right} always right, "
        f"{selection.all_wrong} never right, {selection.excluded_infra} episodes excluded, "
        f"{selection.truncated} cut off by a token limit)"
    )
    if not examples:
        raise TrainingError(why_none(learner.name, selection, learner.config.pairs))
    return examples


def _choose(
    policies: Policies,
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
    write_atomic(place.folder / RESULT, json.dumps(row, indent=1))
    return result


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
