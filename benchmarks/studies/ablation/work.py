"""What `mathenv ablate` does."""

from __future__ import annotations

from benchmarks.console import ResultConsole
from benchmarks.learning import LearningReporter
from benchmarks.studies.ablation.command import Ablate
from benchmarks.studies.ablation.page import write_pages
from benchmarks.studies.ablation.run import run_all
from benchmarks.studies.ablation.variants import QUICK, Sizes, base_recipe, chosen
from mathenv.errors import ConfigError


def run(command: Ablate) -> None:
    """Run or resume, then write the pages."""
    console = ResultConsole()
    if command.page is not None:
        console.say(f"written: {', '.join(map(str, write_pages(command.out, command.page)))}")
        return
    seeds = command.seeds or ((0,) if command.quick else (0, 1, 2))
    if len(set(seeds)) < len(seeds):
        raise ConfigError("--seeds: a seed is named twice")
    sizes = QUICK if command.quick else Sizes()
    variants = chosen(command.only)
    recipe = base_recipe(sizes, quick=command.quick, threads=command.threads)
    page = command.out / "ablations.md"

    def report() -> None:
        write_pages(command.out, page)

    run_all(variants, recipe, sizes, seeds, command.out, LearningReporter(), report, command.sft)
    console.say(f"written: {page}, {page.with_suffix('.html')}")
