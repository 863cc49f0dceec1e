"""`mathenv plan`."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro
from rich.table import Table

from benchmarks.console import ResultConsole
from learners.costs import Range
from learners.plan import Plan, make_plan
from learners.recipe import load_recipe
from learners.shapes import parse_gpus
from mathenv.errors import ConfigError
from mathenv.settings import Count, check_settings


@dataclass(frozen=True, slots=True)
class PlanCommand:
    """Say what a recipe needs on given GPUs: memory per GPU and time of each stage.

    An estimate from model shapes and published speeds; nothing is loaded. It ends with exit
    code 2 where something does not fit, and says what would.

    Args:
        recipe: a recipe that ships, or a TOML file.
        gpus: how many of which: 8xA100-80G, H200-141G, 2xRTX4090-24G, ...
        learner: plan for this learner instead of the recipe's.
        interpreter_cores: CPU cores that run the model's code (default: as many as needed).
        json: print JSON instead of tables.
    """

    recipe: Annotated[str, tyro.conf.Positional]
    gpus: str
    learner: str | None = None
    interpreter_cores: Count | None = None
    json: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self) -> None:
        """Print the plan; refuse what cannot fit."""
        count, device = parse_gpus(self.gpus)
        recipe = load_recipe(self.recipe)
        plan = make_plan(recipe, count, device, learner=self.learner, cores=self.interpreter_cores)
        console = ResultConsole()
        if self.json:
            console.say(json.dumps(as_data(plan), indent=1))
        else:
            _show(console, plan, self.recipe)
        if plan.refusals:
            raise ConfigError(
                f"{self.recipe} does not fit on {self.gpus}: {' | '.join(plan.refusals)}"
            )


def as_data(plan: Plan) -> dict[str, object]:
    """Return the plan as plain data; times that are not finite become null."""
    data = asdict(plan)
    for row in (data, *data["stages"]):
        row["seconds"] = {k: v if math.isfinite(v) else None for k, v in row["seconds"].items()}
    return data | {"fits": not plan.refusals}


def duration(seconds: Range) -> str:
    """Write a range of time in the unit that suits its upper end."""
    if not math.isfinite(seconds.high):
        return "-"
    if seconds.high >= 2 * 3600:
        return f"{seconds.low / 3600:.1f} to {seconds.high / 3600:.1f} h"
    if seconds.high >= 120:
        return f"{seconds.low / 60:.0f} to {seconds.high / 60:.0f} min"
    return f"{seconds.low:.0f} to {seconds.high:.0f} s"


def _show(console: ResultConsole, plan: Plan, recipe: str) -> None:
    console.say(
        f"{recipe}, {plan.learner}: {plan.model}, {plan.parameters / 1e9:.2f} billion parameters, "
        f"on {plan.gpus} x {plan.device}, {plan.usable_gigabytes:.0f} GB usable of each"
    )
    table = Table()
    table.add_column("stage")
    for name in ("GB per GPU", "time of one", "runs", "time of all"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in plan.stages:
        too_much = "" if stage.gigabytes <= plan.usable_gigabytes else " (too much)"
        table.add_row(
            stage.name,
            f"{stage.gigabytes:.1f}{too_much}",
            duration(stage.seconds),
            str(stage.runs),
            duration(stage.seconds.times(stage.runs)),
        )
    table.add_section()
    table.add_row("all", "", "", "", duration(plan.seconds))
    console.print(table)
    for stage in plan.stages:
        parts = ", ".join(f"{name} {value:.1f}" for name, value in stage.memory.items())
        console.say(f"{stage.name}: {stage.work}. GB: {parts}")
    cores = plan.interpreter_cores
    console.say(f"Disk for checkpoints: {plan.disk_gigabytes:,.0f} GB at most")
    if cores.high > 0:
        console.say(
            f"Interpreter: {cores.low:.0f} to {cores.high:.0f} CPU cores keep up with sampling"
        )
    for title, lines in (("Assumed", plan.assumptions), ("Not done here yet", plan.gaps)):
        console.say(f"{title}:")
        for line in lines:
            console.say(f"  - {line}")
