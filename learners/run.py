"""A whole run of a recipe in one folder: base model, demonstrations, SFT, iterations.

    run/manifest.json        recipe, seed, versions, machine
    run/base/                the starting model
    run/sft/                 demonstrations.jsonl, train/step-N
    run/<learner>/           iteration-N/, see `iterate`
    run/reference.sqlite     log-probs of reference policies, of all learners

Every part is resumable: the same call goes on where a killed one stopped.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from agents.base import WeightedAgent
from agents.dialects import find_dialect
from agents.models.hf import load_tokenizer
from agents.oracle import OracleAgent
from agents.rollout import CollectConfig, collect
from agents.tiny import make_tiny
from learners.iterate import Data, iterate
from learners.learner import make_learner
from learners.recipe import ProblemsConfig, Recipe, stored_recipe
from learners.reporter import Reporter
from learners.settings import Method
from learners.training.checkpoint import (
    check_finished,
    drop_state,
    read_manifest,
    replace_file,
    seal,
    step_folders,
)
from learners.training.records import IterationResult
from learners.training.train import Stage, data_hash, train
from mathenv.env import shared_interpreter
from mathenv.errors import ConfigError, DataError
from mathenv.files import writing
from mathenv.grading import STRICT
from mathenv.interpreter import Interpreter, Limits
from mathenv.locking import hold
from mathenv.manifest import environment
from mathenv.problems import load_problems
from mathenv.problems.base import split_file
from mathenv.store import TrajectoryStore, read_object, read_trajectories, write_atomic
from mathenv.types import Problem, Trajectory


@dataclass(frozen=True, slots=True)
class ProblemSets:
    """Disjoint problem sets of one run."""

    demonstrations: Sequence[Problem]
    prompts: Sequence[Problem]
    validation: Sequence[Problem]
    test: Sequence[Problem]


@dataclass(frozen=True, slots=True)
class Start:
    """Where the loop begins: the SFT policy, an earlier one, and the demonstrations."""

    policy: Path
    previous: Path
    demonstrations: Sequence[Trajectory]


def problem_sets(config: ProblemsConfig) -> ProblemSets:
    """Load and cut the problems.

    Raises:
        ConfigError: the source has too few, or one problem would be in two sets.
    """
    shown = 0 if config.demonstration_file else config.demonstrations
    wanted = shown + config.prompts
    own_validation = _has_validation(config.source)
    extra = 0 if own_validation else config.validation
    train_set = _load(config, "train", wanted + extra)
    validation = _load(config, "validation", config.validation) if own_validation else []
    test = _load(config, "test", config.test)
    ids = [p.id for p in (*train_set, *validation, *test)]
    if len(set(ids)) < len(ids):
        raise ConfigError(
            f"{config.source}: the splits share problems, so the test set would be trained on. "
            "Give a folder with train.jsonl and test.jsonl, not one file"
        )
    return ProblemSets(
        demonstrations=train_set[:shown],
        prompts=train_set[shown:wanted],
        validation=validation or train_set[wanted:],
        test=test,
    )


def _has_validation(source: str) -> bool:
    return source in ("words", "words_ood") or _holds(Path(source), "validation")


def _holds(folder: Path, split: str) -> bool:
    return folder.is_dir() and split_file(folder, split) is not None


def _load(config: ProblemsConfig, split: str, count: int) -> Sequence[Problem]:
    if count == 0:
        return ()
    found = load_problems(config.source, split, data=config.data, limit=count, seed=config.seed)
    if len(found) < count:
        raise ConfigError(f"{config.source}/{split} has {len(found)} problems, {count} are needed")
    return found


def prepare(run: Path, recipe: Recipe) -> None:
    """Open the run folder and pin it to the recipe.

    Raises:
        ConfigError: the folder belongs to another recipe, or Docker lacks its package or image.
        InfraError: what runs the code cannot be started here.
    """
    torch.set_num_threads(recipe.threads)
    run.mkdir(parents=True, exist_ok=True)
    file = run / "manifest.json"
    # Learners share a folder's base and SFT, so that they start from the same policy.
    wanted = json.loads(json.dumps({**asdict(recipe), "learner": "any"}))
    if file.exists():
        remedy = f"restore it from a copy, or remove {run} and begin again"
        stored = stored_recipe(read_object(file, remedy).get("recipe", {}), file)
        found = json.loads(json.dumps(asdict(stored)))
        changed = sorted(k for k in wanted if found.get(k) != wanted[k])
        if changed:
            raise ConfigError(
                f"{run} was started with another recipe (differs in {', '.join(changed)}); "
                "choose another run folder or remove this one"
            )
        return
    manifest = {
        "recipe": wanted,
        "environment": environment(),
        "interpreter": _interpreter(recipe).description,
        "grading": STRICT.record(),
    }
    write_atomic(file, json.dumps(manifest, indent=1))


def fine_tune(run: Path, recipe: Recipe, sets: ProblemSets, reporter: Reporter) -> Start:
    """Make the base model, write demonstrations through the interpreter, and run SFT."""
    with hold(run), writing(run):
        return _fine_tune(run, recipe, sets, reporter)


def _fine_tune(run: Path, recipe: Recipe, sets: ProblemSets, reporter: Reporter) -> Start:
    base = _base(run, recipe)
    folder = run / "sft"
    demonstrations = _demonstrations(folder, base, sets.demonstrations, recipe, reporter)
    learner = make_learner("sft", recipe.methods.get("sft", Method()).loss)
    examples, _ = learner.examples(demonstrations, seed=recipe.seed)
    stage = Stage(base, folder / "train", seed=recipe.seed)
    with reporter.stage(f"seed-{recipe.seed}/sft/train", None, "steps") as advance:
        done = folder / "done"
        if not done.exists():
            train(learner, examples, recipe.sft, stage, on_step=advance)
            write_atomic(done, "")
    checkpoints = [path for _, path in step_folders(folder / "train")]
    if not checkpoints:
        raise DataError(
            f"{done} says that this stage is finished, but {folder / 'train'} holds no checkpoint: "
            f"remove {done} to train it again"
        )
    trained_on = read_manifest(checkpoints[-1]).get("data")
    if trained_on not in (None, data_hash(examples)):
        raise DataError(
            f"{recipe.problems.demonstration_file or folder / 'demonstrations.jsonl'} no longer "
            "holds the demonstrations that SFT was trained on: restore it from a copy, or remove "
            f"{folder} to make and train them again"
        )
    # After `done` is written: a run killed in between must not find states half dropped.
    for path in checkpoints:
        drop_state(path)
        if recipe.iterate.rendering.dialect:
            _write_template(path, recipe.iterate.rendering.dialect)
    previous = checkpoints[-1 - recipe.first_previous :][0]
    return Start(checkpoints[-1], previous, demonstrations)


def run_iterations(
    run: Path, recipe: Recipe, sets: ProblemSets, start: Start, reporter: Reporter
) -> list[IterationResult]:
    """Run the recipe's online loop from the fine-tuned policy, in `run/<learner>`."""
    data = Data(sets.prompts, sets.validation, start.demonstrations)
    config = replace(recipe.iterate, seed=recipe.seed)
    method = recipe.methods.get(recipe.learner, Method())
    return iterate(
        start.policy,
        start.previous,
        data,
        recipe.learner,
        method,
        config,
        run / recipe.learner,
        reporter,
        cache=run / "reference.sqlite",
    )


def _base(run: Path, recipe: Recipe) -> Path:
    if recipe.model != "tiny":
        return Path(recipe.model)
    base = run / "base"
    if not base.exists():
        partial = make_tiny(run / ".base.partial", config=recipe.tiny, seed=recipe.seed)
        seal(partial)
        partial.rename(base)
    check_finished(base)
    return base


def _write_template(checkpoint: Path, dialect: str) -> None:
    """Make a dialect the checkpoint's own, and so its descendants', for servers and reports."""
    replace_file(checkpoint, "chat_template.jinja", find_dialect(dialect).template)


def _demonstrations(
    folder: Path,
    base: Path,
    problems: Sequence[Problem],
    recipe: Recipe,
    reporter: Reporter,
) -> list[Trajectory]:
    """Return the recipe's demonstrations, or else reference solutions, with tokens as rendered."""
    given = recipe.problems.demonstration_file
    file = Path(given) if given else _play_solutions(folder, problems, recipe, reporter)
    renderer = recipe.iterate.rendering.renderer(load_tokenizer(base))
    right = (t for t in read_trajectories(file) if t.grade.correct)
    wanted = recipe.problems.demonstrations if given else None
    found = [
        replace(t, tokens=renderer.record_turns(t.problem.question, t.turns))
        for t in islice(right, wanted)
    ]
    if wanted is not None and len(found) < wanted:
        raise ConfigError(f"{file} has {len(found)} right demonstrations, {wanted} are needed")
    return found


def _play_solutions(
    folder: Path, problems: Sequence[Problem], recipe: Recipe, reporter: Reporter
) -> Path:
    """Write reference solutions as trajectories, with real interpreter output."""
    file = folder / "demonstrations.jsonl"
    if file.exists() and (folder / "train").exists():
        return file  # training has begun: one that failed then must not join later
    direct = [p for p in problems if _is_direct(p, recipe.problems)]
    with_tool = [p for p in problems if not _is_direct(p, recipe.problems)]
    told = recipe.iterate.collect
    config = CollectConfig(
        horizon=told.horizon, protocol=told.protocol, say_empty=told.say_empty, seed=recipe.seed
    )
    with (
        TrajectoryStore(file) as store,
        reporter.stage(
            f"seed-{recipe.seed}/sft/demonstrations", len(problems), "trajectories"
        ) as advance,
    ):
        for agent, shown in (
            (OracleAgent(with_tool), with_tool),
            (OracleAgent(direct, use_tool=False), direct),
        ):
            collect(
                [WeightedAgent(agent)],
                shown,
                store,
                config,
                interpreter=_interpreter(recipe),
                progress=lambda _, done, __: advance(done),
            )
    return file


def _interpreter(recipe: Recipe) -> Interpreter:
    return shared_interpreter(recipe.iterate.interpreter, Limits(), recipe.iterate.min_tier)


def _is_direct(problem: Problem, config: ProblemsConfig) -> bool:
    chance = random.Random(f"direct/{config.seed}/{problem.id}").random()
    return chance < config.direct_share.get(problem.level, 0.0)
