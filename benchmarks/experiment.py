"""Run a recipe for learners and seeds, measure every stage on the test problems, report.

run/seed-0/            see `learners.run`; learners share its base model and SFT
run/seed-0/test/       greedy test episodes per policy
run/results.md         tables; experiment.json the same as data
run/curve.png          test pass@1 per stage
run/transcript.txt     one problem before and after
run/report.html        all of it, and every trajectory, to be opened in a browser
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks import results
from benchmarks.curve import learning_curve
from benchmarks.intervals import Estimate
from benchmarks.metrics import Outcomes, by_problem, outcomes, paired_difference, pass_at_1
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
from benchmarks.results import is_experiment
from benchmarks.transcript import compare, improved, plain
from learners.iterate import evaluate
from learners.recipe import Recipe
from learners.reporter import Reporter
from learners.run import ProblemSets, Start, fine_tune, prepare, problem_sets, run_iterations
from mathenv.files import writing
from mathenv.locking import hold
from mathenv.manifest import environment
from mathenv.store import write_atomic
from mathenv.types import Trajectory

FILE = "experiment.json"
SCHEMA = 1
Stages = list[tuple[str, list[Trajectory]]]


@dataclass(frozen=True, slots=True)
class LearnerRun:
    """Test episodes of one learner and seed: SFT first, then every iteration."""

    learner: str
    seed: int
    stages: Stages

    def outcomes(self, stage: int) -> Outcomes:
        """Outcomes of one stage by problem."""
        return outcomes(self.stages[stage][1])


def run_experiment(
    recipe: Recipe, run: Path, learners: Sequence[str], seeds: Sequence[int], reporter: Reporter
) -> list[LearnerRun]:
    """Run or resume everything and write the reports into `run`.

    Raises:
        ConfigError: another run is in the folder, or it belongs to another recipe.
        DataError: a file in it is damaged. InfraError: the disk is full.
    """
    sets = problem_sets(recipe.problems)
    with hold(run), writing(run):
        return _run_all(recipe, run, learners, seeds, sets, reporter)


def _run_all(
    recipe: Recipe,
    run: Path,
    learners: Sequence[str],
    seeds: Sequence[int],
    sets: ProblemSets,
    reporter: Reporter,
) -> list[LearnerRun]:
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
    iterations = run_iterations(folder, recipe, sets, start, reporter)
    policies = [("SFT", start.policy, "sft")]
    policies += [
        (f"{recipe.learner}, iteration {r.number}", r.policy, f"{recipe.learner}-{r.number}")
        for r in iterations
    ]
    stages: Stages = []
    with reporter.stage("test", len(policies) * len(sets.test), "problems") as advance:
        for index, (name, policy, file) in enumerate(policies, start=1):
            path = folder / "test" / f"{file}.jsonl"
            stages.append((name, evaluate(policy, sets.test, path, recipe.iterate)))
            advance(index * len(sets.test))
    return LearnerRun(recipe.learner, recipe.seed, stages)


def write_reports(run: Path, runs: Sequence[LearnerRun], recipe: Recipe) -> None:
    """Write results.md, experiment.json, curve.png and transcript.txt."""
    parts = ["# Results", _made_with(recipe, runs)]
    if len(runs) > 1:
        parts.append(_summary(runs))
    parts += [
        f"## {r.learner}, seed {r.seed}\n\n{stage_markdown(stage_rows(r.stages))}" for r in runs
    ]
    write_atomic(run / "results.md", "\n\n".join(p.rstrip() for p in parts) + "\n")
    data = {
        "schema": SCHEMA,
        "recipe": asdict(recipe),
        "environment": environment(),
        "runs": [
            {"learner": r.learner, "seed": r.seed, "stages": [_data(row) for row in rows]}
            for r, rows in ((r, stage_rows(r.stages)) for r in runs)
        ],
    }
    write_atomic(run / FILE, json.dumps(data, indent=1) + "\n")
    # Earlier versions gave it the name of a benchmark's file, which holds something else.
    if is_experiment(run / results.FILE):
        (run / results.FILE).unlink()
    lines = {name: pooled_curve(group) for name, group in _by_learner(runs).items()}
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
        "gains are paired, problem by problem (`benchmarks/intervals.py`); where no problem "
        "changed, the larger of Wilson's and the exact bound on what so many could have missed."
    )


def _about_seeds(seeds: int) -> str:
    return (
        "The seeds share the test problems: a problem is resampled with its outcomes in all seeds. "
        f"{seeds} seeds are few, so what another seed would give is known less well than these "
        "intervals say."
    )


def _summary(runs: Sequence[LearnerRun]) -> str:
    groups = _by_learner(runs)
    first = next(iter(groups))
    best = [run.outcomes(-1) for run in groups[first]]
    rows = [["SFT", *_score([run.outcomes(0) for run in groups[first]]), *[""] * 6]]
    for name, group in groups.items():
        start, final = ([run.outcomes(stage) for run in group] for stage in (0, -1))
        against = _change(final, best) if name != first else [""] * 3
        rows.append([name, *_score(final), *_change(start, final), *against])
    measured = ("pass@1", "gain over SFT", f"{first} minus this")
    columns = ["policy", *(c for name in measured for c in (name, "interval", "by seed"))]
    parts = ["## Last iteration, all seeds together"]
    seeds = len(groups[first])
    parts += [_about_seeds(seeds)] if seeds > 1 else []
    return "\n\n".join([*parts, markdown_table(columns, rows)])


def _score(seeds: Sequence[Outcomes]) -> list[str]:
    score = pass_at_1(by_problem(seeds))
    each = ", ".join(f"{100 * pass_at_1(seed).value:.1f}" for seed in seeds)
    return [percent(score.value), interval(score), each]


def _change(before: Sequence[Outcomes], after: Sequence[Outcomes]) -> list[str]:
    change = paired_difference(by_problem(before), by_problem(after))
    pairs = zip(before, after, strict=True)
    each = ", ".join(points(paired_difference(old, new).value) for old, new in pairs)
    return [points(change.value), f"{points(change.low)} to {points(change.high)}", each]


def _data(row: StageRow) -> dict[str, object]:
    gain = None if row.gain is None else asdict(row.gain)
    score = {"stage": row.name, "pass@1": asdict(row.score)}
    return {**score, "gain": gain, "excluded": row.excluded}


def _by_learner(runs: Sequence[LearnerRun]) -> Mapping[str, list[LearnerRun]]:
    groups: dict[str, list[LearnerRun]] = {}
    for run in runs:
        groups.setdefault(run.learner, []).append(run)
    return groups


def pooled_curve(runs: Sequence[LearnerRun]) -> list[Estimate]:
    """Score the stages that all seeds of a learner have, the seeds together."""
    stages = min(len(run.stages) for run in runs)
    return [pass_at_1(by_problem([r.outcomes(stage) for r in runs])) for stage in range(stages)]
