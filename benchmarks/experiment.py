"""Run a recipe for learners and seeds, measure every stage on the test problems, report.

run/seed-0/            see `learners.run`; learners share its base model and SFT
run/seed-0/test/       greedy test episodes per policy
run/results.md         tables; results.json the same as data
run/curve.png          test pass@1 per stage
run/transcript.txt     one problem before and after
run/report.html        all of it, and every trajectory, to be opened in a browser
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.curve import learning_curve
from benchmarks.metrics import (
    Difference,
    Estimate,
    Outcomes,
    outcomes,
    paired_bootstrap,
    pass_at_1,
)
from benchmarks.pages.page import write_report
from benchmarks.report import (
    StageRow,
    interval,
    markdown_table,
    percent,
    points,
    stage_markdown,
    stage_rows,
)
from benchmarks.transcript import compare, improved, plain
from learners.iterate import evaluate
from learners.recipe import Recipe
from learners.reporter import Reporter
from learners.run import ProblemSets, Start, fine_tune, prepare, problem_sets, run_iterations
from mathenv.manifest import environment
from mathenv.store import write_atomic
from mathenv.types import Trajectory

Stages = list[tuple[str, list[Trajectory]]]


@dataclass(frozen=True, slots=True)
class LearnerRun:
    """Test episodes of one learner and seed: SFT first, then every iteration."""

    learner: str
    seed: int
    stages: Stages

    def pooled(self, stage: int) -> Outcomes:
        """Outcomes of one stage under keys that differ between seeds."""
        found = outcomes(self.stages[stage][1])
        return {f"{self.seed}/{problem}": values for problem, values in found.items()}


def run_experiment(
    recipe: Recipe, run: Path, learners: Sequence[str], seeds: Sequence[int], reporter: Reporter
) -> list[LearnerRun]:
    """Run or resume everything and write the reports into `run`."""
    sets = problem_sets(recipe.problems)
    runs = []
    for seed in seeds:
        folder = run / f"seed-{seed}"
        seeded = replace(recipe, seed=seed)
        prepare(folder, seeded)
        start = fine_tune(folder, seeded, sets, reporter)
        for learner in learners:
            chosen = replace(seeded, learner=learner)
            runs.append(_run_learner(chosen, folder, sets, start, reporter))
    write_reports(run, runs, recipe)
    write_report(run)
    return runs


def _run_learner(
    recipe: Recipe, folder: Path, sets: ProblemSets, start: Start, reporter: Reporter
) -> LearnerRun:
    results = run_iterations(folder, recipe, sets, start, reporter)
    policies = [("SFT", start.policy, "sft")]
    policies += [
        (f"{recipe.learner}, iteration {r.number}", r.policy, f"{recipe.learner}-{r.number}")
        for r in results
    ]
    stages: Stages = []
    with reporter.stage("test", len(policies) * len(sets.test), "problems") as advance:
        for index, (name, policy, file) in enumerate(policies, start=1):
            path = folder / "test" / f"{file}.jsonl"
            stages.append((name, evaluate(policy, sets.test, path, recipe.iterate)))
            advance(index * len(sets.test))
    return LearnerRun(recipe.learner, recipe.seed, stages)


def write_reports(run: Path, runs: Sequence[LearnerRun], recipe: Recipe) -> None:
    """Write results.md, results.json, curve.png and transcript.txt."""
    parts = ["# Results", _made_with(recipe, runs)]
    if len(runs) > 1:
        parts.append(_summary(runs))
    parts += [
        f"## {r.learner}, seed {r.seed}\n\n{stage_markdown(stage_rows(r.stages))}" for r in runs
    ]
    write_atomic(run / "results.md", "\n\n".join(p.rstrip() for p in parts) + "\n")
    data = {
        "recipe": asdict(recipe),
        "environment": environment(),
        "runs": [
            {"learner": r.learner, "seed": r.seed, "stages": [_data(row) for row in rows]}
            for r, rows in ((r, stage_rows(r.stages)) for r in runs)
        ],
    }
    write_atomic(run / "results.json", json.dumps(data, indent=1) + "\n")
    lines = {name: _pooled_curve(group) for name, group in _by_learner(runs).items()}
    stages = ["SFT", *(f"iteration {i}" for i in range(1, max(map(len, lines.values()))))]
    learning_curve(run / "curve.png", lines, stages, title=recipe.problems.source)
    pairs = improved(runs[0].stages[0][1], runs[0].stages[-1][1])
    if pairs:
        write_atomic(run / "transcript.txt", plain(compare(*pairs[0])))


def _made_with(recipe: Recipe, runs: Sequence[LearnerRun]) -> str:
    machine = environment()
    seeds = sorted({r.seed for r in runs})
    return (
        f"Problems: {recipe.problems.source}, {recipe.problems.test} test problems, greedy. "
        f"Seeds: {', '.join(map(str, seeds))}. Machine: {machine['platform']}, "
        f"{machine['cpus']} CPUs, torch {machine['packages'].get('torch', '?')}. Intervals: 95%; "
        "gains by paired bootstrap over problems."
    )


def _summary(runs: Sequence[LearnerRun]) -> str:
    groups = _by_learner(runs)
    first = next(iter(groups))
    rows = []
    start = _pool(groups[first], 0)
    rows.append(
        ["SFT", percent(pass_at_1(start).value), interval(pass_at_1(start)), "", "", "", ""]
    )
    best = _pool(groups[first], -1)
    for name, group in groups.items():
        final = _pool(group, -1)
        score = pass_at_1(final)
        gain = paired_bootstrap(start, final)
        against = _difference(paired_bootstrap(final, best)) if name != first else ("", "")
        rows.append([name, percent(score.value), interval(score), *_difference(gain), *against])
    columns = (
        "policy",
        "pass@1",
        "interval",
        "gain over SFT",
        "interval",
        f"{first} minus this",
        "interval",
    )
    return f"## Last iteration, all seeds together\n\n{markdown_table(columns, rows)}"


def _difference(difference: Difference) -> tuple[str, str]:
    return points(difference.value), f"{points(difference.low)} to {points(difference.high)}"


def _data(row: StageRow) -> dict[str, object]:
    gain = None if row.gain is None else asdict(row.gain)
    return {"stage": row.name, "pass@1": asdict(row.score), "gain": gain}


def _by_learner(runs: Sequence[LearnerRun]) -> Mapping[str, list[LearnerRun]]:
    groups: dict[str, list[LearnerRun]] = {}
    for run in runs:
        groups.setdefault(run.learner, []).append(run)
    return groups


def _pool(runs: Sequence[LearnerRun], stage: int) -> Outcomes:
    return {key: values for run in runs for key, values in run.pooled(stage).items()}


def _pooled_curve(runs: Sequence[LearnerRun]) -> list[Estimate]:
    stages = min(len(run.stages) for run in runs)
    return [pass_at_1(_pool(runs, stage)) for stage in range(stages)]
