"""What `mathenv plan` does."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

from rich.table import Table

from benchmarks.commands.plan import PlanCommand
from benchmarks.console import ResultConsole
from learners.planning.costs import Range
from learners.planning.plan import Plan, make_plan
from learners.planning.shapes import parse_gpus
from learners.recipe import load_recipe
from mathenv.errors import ConfigError


def run(command: PlanCommand) -> None:
    """Print the plan; refuse what cannot fit."""
    count, device = parse_gpus(command.gpus)
    recipe = load_recipe(command.recipe)
    plan = make_plan(
        recipe, count, device, learner=command.learner, cores=command.interpreter_cores
    )
    console = ResultConsole()
    if command.json:
        console.say(json.dumps(as_data(plan), indent=1))
    else:
        _show(console, plan, command.recipe)
    if plan.refusals:
        raise ConfigError(
            f"{command.recipe} does not fit on {command.gpus}: {' | '.join(plan.refusals)}"
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
