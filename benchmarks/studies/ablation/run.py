"""Run the variants: one folder each, sharing what is the same.

    out/config.json                what the folder is for
    out/seed-0/manifest.json       see `learners.run`; base/ and sft/ are the variants' common start
    out/seed-0/shared/START/       first rollouts and validation of a common start
    out/seed-0/VARIANT/            iteration-1/, ... (see `learners.iterate`), variant.json,
                                   then measured.json, or failed.json with the reason
    out/seed-0/test/VARIANT-1.jsonl, ood/, samples/
                                   greedy test episodes per iteration, and the last policy's others

Rollouts are shared where the mathematics allows it: variants with one start and one noise
level sample the same distribution in their first iteration, and an episode's seed depends on
its problem, agent and number alone. A variant that wants fewer samples gets the first of them.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from agents.base import WeightedAgent
from agents.llm import derive_seed
from agents.policy import load_policy
from agents.rollout import collect
from benchmarks.studies.ablation.measure import Files, measure
from benchmarks.studies.ablation.noise import NoisyInterpreter
from benchmarks.studies.ablation.sft import adopt, check_sft
from benchmarks.studies.ablation.variants import Sizes, Variant, recipe_of
from learners.iterate import Data, Policies, evaluate, run_iteration
from learners.recipe import Recipe, stored_recipe
from learners.reporter import Reporter
from learners.run import ProblemSets, Start, fine_tune, prepare, problem_sets
from learners.training.checkpoint import step_folders
from learners.training.records import IterationResult
from mathenv.env import shared_interpreter
from mathenv.errors import ConfigError, TrainingError
from mathenv.files import writing
from mathenv.interpreter import Interpreter, Limits
from mathenv.locking import LOCK_NAME, hold
from mathenv.manifest import environment
from mathenv.problems import load_problems
from mathenv.store import TrajectoryStore, read_object, read_trajectories, write_atomic
from mathenv.types import Problem

CONFIG, MEASURED, FAILED = "config.json", "measured.json", "failed.json"
START = "sft"  # the name of the policy that all variants but those of group `sft` start from


def run_all(
    variants: Sequence[Variant],
    recipe: Recipe,
    sizes: Sizes,
    seeds: Sequence[int],
    out: Path,
    reporter: Reporter,
    after_group: Callable[[], None] = lambda: None,
    sft: Path | None = None,
) -> None:
    """Run or resume variants in their order, all seeds of a group before the next group.

    A variant that cannot be trained is written down with the reason, and the rest goes on.

    Args:
        sft: a run folder of `learners.run` whose base models and SFT are taken.

    Raises:
        ConfigError: the folder belongs to another configuration, or `sft` to another recipe, or
            another run is in the folder. InfraError: the disk is full.
    """
    if sft is not None:  # before anything is done: an error in an hour would be late
        for seed in seeds:
            check_sft(sft / f"seed-{seed}", replace(recipe, seed=seed))
    with hold(out), writing(out):
        _run_all(variants, recipe, sizes, seeds, out, reporter, after_group, sft)


def _run_all(
    variants: Sequence[Variant],
    recipe: Recipe,
    sizes: Sizes,
    seeds: Sequence[int],
    out: Path,
    reporter: Reporter,
    after_group: Callable[[], None],
    sft: Path | None,
) -> None:
    pin(out, recipe, sizes)
    worlds = {
        seed: World(out / f"seed-{seed}", replace(recipe, seed=seed), sizes, reporter, sft)
        for seed in seeds
    }
    groups = list(dict.fromkeys(variant.group for variant in variants))
    for number, group in enumerate(groups, start=1):
        rows = [variant for variant in variants if variant.group == group]
        for seed, world in worlds.items():
            reporter.say(f"group {group} ({number} of {len(groups)}), seed {seed}")
            world.measure_start()
            for variant in rows:
                world.run(variant, variants)
        after_group()


def pin(out: Path, recipe: Recipe, sizes: Sizes) -> None:
    """Write what the folder is for, or check that it is the same.

    Raises:
        ConfigError: it is another. DataError: its file is damaged.
    """
    file = out / CONFIG
    wanted = json.loads(json.dumps({"recipe": asdict(recipe), "sizes": asdict(sizes)}))
    if not file.exists():
        if out.is_dir() and any(file.name != LOCK_NAME for file in out.iterdir()):
            raise ConfigError(f"{out} holds something else: choose a new folder for --out")
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps({**wanted, "environment": environment()}, indent=1))
        return
    found = read_config(out)
    stored = stored_recipe(found.get("recipe", {}), file)
    found["recipe"] = json.loads(json.dumps(asdict(stored)))
    changed = sorted(
        f"{part}.{name}"
        for part, values in wanted.items()
        for name in values
        if found.get(part, {}).get(name) != values[name]
    )
    if changed:
        raise ConfigError(
            f"{out} was started with another configuration (differs in {', '.join(changed)}); "
            "choose another --out or remove the folder"
        )


def read_config(out: Path) -> dict[str, dict[str, object]]:
    """Return what a folder was started with.

    Raises:
        ConfigError: nothing was started there. DataError: the file is damaged.
    """
    file = out / CONFIG
    if not file.exists():
        raise ConfigError(f"{out} holds no ablations: give the --out folder of mathenv ablate")
    return read_object(file, "restore it from a copy, or choose another --out")


@dataclass(frozen=True)
class World:
    """What the variants of one seed share: problems, base model, SFT, first rollouts."""

    folder: Path
    recipe: Recipe
    sizes: Sizes
    reporter: Reporter
    source: Path | None = None

    @cached_property
    def sets(self) -> ProblemSets:
        return problem_sets(self.recipe.problems)

    @cached_property
    def ood(self) -> Sequence[Problem]:
        return load_problems("words_ood", "test", limit=self.sizes.ood)

    @cached_property
    def sft(self) -> Start:
        prepare(self.folder, self.recipe)
        if self.source is not None:
            adopt(self.source / self.folder.name, self.folder, self.recipe)
        return fine_tune(self.folder, self.recipe, self.sets, self.reporter)

    def start(self, variant: Variant) -> Start:
        """Return where a variant begins: SFT, or an earlier checkpoint of it."""
        if variant.start == 1:
            return self.sft
        steps = [path for _, path in step_folders(self.folder / "sft" / "train")]
        index = max(1, round(variant.start * len(steps))) - 1
        previous = steps[max(0, index - self.recipe.first_previous)]
        return Start(steps[index], previous, self.sft.demonstrations)

    def measure_start(self) -> None:
        """Measure the policy that variants start from, like the variants themselves."""
        folder = self.folder / "shared" / START
        if (folder / MEASURED).exists():
            return
        files = self._files(START)
        self._play(self.sft.policy, files, self.sizes.many, {})
        _write(folder / MEASURED, measure(files, []))

    def run(self, variant: Variant, among: Sequence[Variant]) -> None:
        """Run and measure one variant, unless that is done."""
        folder = self.folder / variant.name
        self._claim(folder, variant)
        if (folder / MEASURED).exists() or (folder / FAILED).exists():
            return
        self.reporter.say(f"{variant.name}, seed {self.recipe.seed}: {variant.about}")
        begun = time.monotonic()
        try:
            results = list(self._iterations(variant, among, folder))
        except TrainingError as error:
            self.reporter.say(f"{variant.name}, seed {self.recipe.seed} failed: {error}")
            _write(folder / FAILED, {"reason": str(error)})
            return
        start = self.start(variant)
        files = self._files(variant.name, results)
        if variant.start != 1:  # what its gain is measured against
            test = self.folder / "test" / f"{START}-{start.policy.name}.jsonl"
            evaluate(start.policy, self.sets.test, test, self.recipe.iterate)
            files = replace(files, tests={0: test, **files.tests})
        self._test(variant, start, results, files)
        found = measure(files, results)
        _write(folder / MEASURED, {**found, "seconds": round(time.monotonic() - begun, 1)})

    def _claim(self, folder: Path, variant: Variant) -> None:
        file = folder / "variant.json"
        wanted = json.loads(json.dumps(asdict(variant)))
        if file.exists():
            found = read_object(file, f"restore it from a copy, or remove {folder} to run it again")
            told = ("learner", "changes", "start", "noise")
            changed = [name for name in told if found.get(name) != wanted[name]]
            if changed:
                raise ConfigError(
                    f"{folder} is another variant of that name (differs in {', '.join(changed)}): "
                    "choose another --out or remove the folder"
                )
        else:
            folder.mkdir(parents=True, exist_ok=True)
            _write(file, wanted)

    def _iterations(
        self, variant: Variant, among: Sequence[Variant], folder: Path
    ) -> Iterator[IterationResult]:
        """Run one iteration after the other.

        What is known already is put in place first: the rollouts of the first iteration, and
        how the policy that an iteration begins with does on validation.
        """
        recipe = recipe_of(variant, self.recipe, self.recipe.seed)
        start = self.start(variant)
        shared = self._shared(variant, among, start)
        wanted = (recipe.iterate.current_samples, recipe.iterate.previous_samples)
        _copy_samples(shared / "rollouts.jsonl", folder / "iteration-1" / "rollouts.jsonl", wanted)
        before = shared / "validation.jsonl"
        interpreter = _interpreter(variant.noise)
        policies = Policies.start(start.policy, start.previous)
        size = self.sizes.prompts
        for number in range(1, recipe.iterate.iterations + 1):
            place = folder / f"iteration-{number}"
            _copy(before, place / "validation" / "before.jsonl")
            prompts = self.sets.prompts[(number - 1) * size : number * size]
            result = run_iteration(
                policies,
                Data(prompts, self.sets.validation, start.demonstrations),
                recipe.learner,
                place,
                number=number,
                method=recipe.methods.get(recipe.learner),
                config=replace(recipe.iterate, seed=recipe.seed),
                reporter=self.reporter,
                interpreter=interpreter,
            )
            yield result
            policies = policies.after(result, recipe.iterate.reference)
            stayed = result.policy.parent.parent.name != place.name
            last = "before" if stayed else result.policy.name
            before = place / "validation" / f"{last}.jsonl"

    def _shared(self, variant: Variant, among: Sequence[Variant], start: Start) -> Path:
        """Sample and validate the start of a variant, for all variants that begin like it.

        `among` are the variants of this run: as many samples are drawn as any of them wants.
        """
        alike = [v for v in among if (v.start, v.noise) == (variant.start, variant.noise)]
        recipes = [recipe_of(v, self.recipe, self.recipe.seed).iterate for v in alike]
        name = f"{START}-{start.policy.name}" + (f"-noise-{variant.noise:g}" * bool(variant.noise))
        folder = self.folder / "shared" / name
        mixture = {
            "current": (start.policy, max(r.current_samples for r in recipes)),
            "previous": (start.previous, max(r.previous_samples for r in recipes)),
        }
        prompts = self.sets.prompts[: self.sizes.prompts]
        config = self.recipe.iterate
        total = len(prompts) * sum(samples for _, samples in mixture.values())
        with (
            TrajectoryStore(folder / "rollouts.jsonl") as store,
            self.reporter.stage(f"{name}: sampling", total, "trajectories") as advance,
        ):
            for agent_name, (policy, samples) in mixture.items():
                if len(store) >= total:
                    break
                # As the first iteration of `learners.iterate` would seed it.
                seed = derive_seed(self.recipe.seed, 1, agent_name)
                with load_policy(policy, config.sampling, name=agent_name) as agent:
                    collect(
                        [WeightedAgent(agent, samples)],
                        prompts,
                        store,
                        replace(config.collect, seed=seed),
                        interpreter=_interpreter(variant.noise),
                        progress=lambda t, done, _: advance(done),
                    )
        evaluate(start.policy, self.sets.validation, folder / "validation.jsonl", config)
        return folder

    def _files(self, name: str, results: Sequence[IterationResult] = ()) -> Files:
        numbers = [result.number for result in results] or [0]
        return Files(
            folder=self.folder / name,
            tests={n: self.folder / "test" / f"{name}-{n}.jsonl" for n in numbers},
            ood=self.folder / "ood" / f"{name}.jsonl",
            samples=self.folder / "samples" / f"{name}.jsonl",
        )

    def _test(
        self,
        variant: Variant,
        start: Start,
        results: Sequence[IterationResult],
        files: Files,
    ) -> None:
        """Play test problems with the policies of a variant; no policy plays them twice."""
        known: dict[Path, Files] = {}
        if variant.start == 1:
            known[start.policy] = self._files(START)
        samples = self.sizes.many if variant.samples else self.sizes.samples
        for result in results:
            last = result is results[-1]
            if last or variant.every:
                one = replace(files, tests={result.number: files.tests[result.number]})
                self._play(result.policy, one, samples if last else 0, known)
                known[result.policy] = one

    def _play(
        self,
        policy: Path,
        files: Files,
        samples: int,
        known: Mapping[Path, Files],
    ) -> None:
        """Play a policy greedily, and where `samples` are wanted also out of distribution."""
        ((_, test),) = files.tests.items()
        config = self.recipe.iterate
        found = known.get(policy)
        if found is not None:
            _copy(next(iter(found.tests.values())), test)
        name = test.stem
        with self.reporter.stage(f"{name}: test", len(self.sets.test), "problems") as advance:
            advance(len(evaluate(policy, self.sets.test, test, config)))
        if not samples:
            return
        if found is not None and found.samples.exists():
            _copy(found.ood, files.ood)
            _copy_samples(found.samples, files.samples, (samples, 0))
        with self.reporter.stage(
            f"{name}: out of distribution", len(self.ood), "problems"
        ) as advance:
            advance(len(evaluate(policy, self.ood, files.ood, config)))
        problems = self.sets.test[: self.sizes.sampled]
        total = samples * len(problems)
        with (
            TrajectoryStore(files.samples) as store,
            self.reporter.stage(f"{name}: {samples} samples", total, "trajectories") as advance,
            load_policy(policy, config.sampling, name="current") as agent,
        ):
            collect(
                [WeightedAgent(agent, samples)],
                problems,
                store,
                replace(config.collect, seed=derive_seed(self.recipe.seed, "samples")),
                progress=lambda t, done, _: advance(done),
            )


def _interpreter(noise: float) -> Interpreter:
    local = shared_interpreter("local", Limits())
    return NoisyInterpreter(local, noise) if noise else local


def _copy_samples(source: Path, target: Path, wanted: tuple[int, int]) -> None:
    """Copy the first samples of agent `current` and of `previous` into a new file."""
    if target.exists():
        return
    most = dict(zip(("current", "previous"), wanted, strict=True))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial.jsonl")
    partial.unlink(missing_ok=True)
    with TrajectoryStore(partial) as store:
        for trajectory in read_trajectories(source):
            if trajectory.sample < most[trajectory.agent]:
                store.append(trajectory)
    partial.rename(target)


def _copy(source: Path, target: Path) -> None:
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        shutil.copyfile(source, partial)
        partial.rename(target)


def _write(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps(value, indent=1) + "\n")
