"""What `mathenv iterate` and `mathenv demo` do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.commands.iterate import Demo, Iterate
from benchmarks.console import ResultConsole
from benchmarks.experiment import LearnerRun, run_experiment
from benchmarks.learning import LearningReporter
from benchmarks.report import stage_rows, stage_table
from benchmarks.tracking import WandbReporter, check_login
from benchmarks.transcript import compare, improved
from learners.learner import make_learner
from learners.planning.preflight import require
from learners.recipe import Recipe, check_effect, load_recipe
from learners.reporter import Reporter
from learners.settings import Method
from mathenv.errors import ConfigError


def run(command: Iterate) -> None:
    """Run or resume, print the final table and where everything is."""
    started = time.monotonic()
    learners = command.learners or (command.settings.learner,)
    recipe = _recipe(command)
    check_effect(recipe)
    _check_flags(command, learners)
    seeds = command.seeds or (recipe.seed,)
    for flag, given in (("--learners", learners), ("--seeds", seeds)):
        twice = [value for value in given if given.count(value) > 1]
        if twice:
            raise ConfigError(f"{flag} names {twice[0]} twice: each is run once")
    for name in learners:  # what is wrong is an error now, not after an hour
        make_learner(name, recipe.methods.get(name, Method()).loss)
    if command.wandb:
        check_login()
    require(recipe, learners)
    reporter: Reporter = LearningReporter()
    if command.wandb:
        reporter = WandbReporter(reporter, command.out, recipe)
    runs = run_experiment(recipe, command.out, learners, seeds, reporter)
    if isinstance(reporter, WandbReporter):
        reporter.close()
    _show(runs, command.out, time.monotonic() - started)


def demo(command: Demo) -> None:
    """Run or resume the demo."""
    iterate = Iterate(
        out=command.out,
        seeds=(command.seed,),
        interpreter=command.interpreter,
        min_tier=command.min_tier,
        wandb=command.wandb,
    )
    run(iterate)


def _recipe(command: Iterate) -> Recipe:
    iterate = command.settings.iterate
    iterate = replace(
        iterate,
        interpreter=command.interpreter or iterate.interpreter,
        min_tier=command.min_tier or iterate.min_tier,
    )
    return replace(command.settings, iterate=iterate)


def _check_flags(command: Iterate, learners: Sequence[str]) -> None:
    """Refuse flags that this run would ignore.

    A recipe may hold more than one run uses, since it serves several; a flag is given for one.
    """
    given, recipe = command.settings, load_recipe(command.recipe)
    for name, method in given.methods.items():
        if name not in learners and method != recipe.methods.get(name):
            raise ConfigError(
                f"--methods.{name} would have no effect: the learners of this run are "
                f"{', '.join(learners)} (--learners)"
            )
    if given.model != "tiny" and given.tiny != recipe.tiny:
        raise ConfigError(
            f"--tiny would have no effect: it shapes the model that is made for --model tiny, not "
            f"{given.model}"
        )
    for name in ("workers", "worker_cpus", "worker_gpus"):
        changed = getattr(given.iterate, name) != getattr(recipe.iterate, name)
        if given.iterate.ray is None and changed:
            flag = f"--iterate.{name.replace('_', '-')}"
            raise ConfigError(f"{flag} would have no effect: workers need --iterate.ray")


def _show(runs: list[LearnerRun], out: Path, seconds: float) -> None:
    console = ResultConsole()
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
