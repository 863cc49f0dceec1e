"""`mathenv iterate` and `mathenv demo`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from benchmarks.agent_options import InterpreterName
from benchmarks.experiment import LearnerRun, run_experiment
from benchmarks.learning import LearningReporter
from benchmarks.report import stage_rows, stage_table
from benchmarks.tracking import WandbReporter
from benchmarks.transcript import compare, improved
from learners.iterate import Method
from learners.learner import make_learner
from learners.preflight import require
from learners.recipe import Recipe, check_effect, load_recipe
from learners.reporter import Reporter
from mathenv.env import SandboxTier
from mathenv.errors import ConfigError
from mathenv.settings import Seed, check_settings

_DEFAULT_RECIPE = "tiny"


@dataclass(frozen=True, slots=True)
class Iterate:
    """Run the online loop of a recipe: SFT, then sample, grade, pair, train, again.

    Everything goes into one run folder. A run that was stopped goes on when the same
    command is given again. Several learners start from the same SFT policy and are
    compared on the same test problems.

    Args:
        recipe: a recipe that ships (tiny, mistral-7b-v0.3, ...) or a TOML file; flags below
            override it.
        out: the run folder.
        learners: which learners to run (default: the recipe's): mdpo, dpo, raft, sft, ...
        seeds: seeds to run (default: the recipe's).
        interpreter: what runs the code, this machine's sandbox or Docker (default: the
            recipe's).
        min_tier: refuse to run code in a weaker sandbox than this (default: the recipe's).
        wandb: log to Weights and Biases (`WANDB_MODE=offline` keeps it on this machine).
        settings: the recipe's own settings.
    """

    recipe: str = _DEFAULT_RECIPE
    out: Path = Path("runs/iterate")
    learners: tuple[str, ...] = ()
    seeds: tuple[Seed, ...] = ()
    interpreter: InterpreterName | None = None
    min_tier: SandboxTier | None = None
    wandb: bool = False
    settings: Annotated[Recipe, tyro.conf.arg(name="")] = field(
        default_factory=lambda: load_recipe(_DEFAULT_RECIPE)
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def defaults(cls, words: list[str]) -> Iterate:
        """Return what flags override: the settings of the recipe named in `words`."""
        recipe = _DEFAULT_RECIPE
        for index, word in enumerate(words):
            if word == "--recipe" and index + 1 < len(words):
                recipe = words[index + 1]
            elif word.startswith("--recipe="):
                recipe = word.removeprefix("--recipe=")
        return cls(recipe=recipe, settings=load_recipe(recipe))

    def run(self) -> None:
        """Run or resume, print the final table and where everything is."""
        started = time.monotonic()
        learners = self.learners or (self.settings.learner,)
        recipe = self._recipe()
        check_effect(recipe)
        seeds = self.seeds or (recipe.seed,)
        for flag, given in (("--learners", learners), ("--seeds", seeds)):
            twice = [value for value in given if given.count(value) > 1]
            if twice:
                raise ConfigError(f"{flag} names {twice[0]} twice: each is run once")
        for name in learners:  # what is wrong is an error now, not after an hour
            make_learner(name, recipe.methods.get(name, Method()).loss)
        require(recipe, learners)
        reporter: Reporter = LearningReporter()
        if self.wandb:
            reporter = WandbReporter(reporter, self.out, recipe)
        runs = run_experiment(recipe, self.out, learners, seeds, reporter)
        if isinstance(reporter, WandbReporter):
            reporter.close()
        _show(runs, self.out, time.monotonic() - started)

    def _recipe(self) -> Recipe:
        iterate = self.settings.iterate
        iterate = replace(
            iterate,
            interpreter=self.interpreter or iterate.interpreter,
            min_tier=self.min_tier or iterate.min_tier,
        )
        return replace(self.settings, iterate=iterate)


@dataclass(frozen=True, slots=True)
class Demo:
    """The whole method in minutes on two CPU cores: SFT, then three iterations of M-DPO.

    A tiny model is made on the spot and learns to solve word problems with Python. Nothing
    is downloaded.

    Args:
        out: the run folder.
        seed: fixes every random choice.
        interpreter: what runs the code, this machine's sandbox or Docker.
        min_tier: refuse to run code in a weaker sandbox than this (default: any that works).
        wandb: log to Weights and Biases (`WANDB_MODE=offline` keeps it on this machine).
    """

    out: Path = Path("runs/demo")
    seed: Seed = 0
    interpreter: InterpreterName = "local"
    min_tier: SandboxTier | None = None
    wandb: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self) -> None:
        """Run or resume the demo."""
        Iterate(
            out=self.out,
            seeds=(self.seed,),
            interpreter=self.interpreter,
            min_tier=self.min_tier,
            wandb=self.wandb,
        ).run()


def _show(runs: list[LearnerRun], out: Path, seconds: float) -> None:
    console = Console()
    pairs = improved(runs[0].stages[0][1], runs[0].stages[-1][1])
    if pairs:
        console.print(compare(*pairs[0]))
    for run in runs:
        title = f"{run.learner}, seed {run.seed}: greedy pass@1 on the test problems"
        console.print(stage_table(stage_rows(run.stages), title))
    console.print(
        f"{seconds:.0f} s. In {out}: report.html, results.md, experiment.json, curve.png",
        highlight=False,
    )
