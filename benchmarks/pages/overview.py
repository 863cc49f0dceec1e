"""The tables and curves of a run from the outcomes of its files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.intervals import Estimate
from benchmarks.metrics import Outcomes, by_problem, pass_at_1
from benchmarks.pages import charts, tables
from benchmarks.pages.sources import RunFiles, SeedFolder, Source
from benchmarks.pages.tables import Stage, Table
from benchmarks.results import read_result

_WITH_SEEDS = ", each with its outcomes in all seeds"


@dataclass(frozen=True, slots=True)
class Scored:
    """A run's files and their outcomes, by (`key` of the file, seed)."""

    files: RunFiles
    stages: Mapping[tuple[str, int], Stage]


def key(source: Source) -> str:
    """Name a file so that seeds of one run have the same names."""
    return "/".join((source.phase, source.learner, str(source.iteration), source.name))


def stage_name(source: Source) -> str:
    """Name the policy that played a file of a training run."""
    return "SFT" if not source.iteration else f"{source.learner}, iteration {source.iteration}"


def _test_stages(scored: Scored, learner: str, seed: int) -> list[Stage]:
    """Return the scored test stages of one learner and seed, SFT first; none without SFT."""
    found = [
        scored.stages[key(s), seed]
        for s in scored.files.sources
        if s.phase == "test" and s.seed == seed and s.learner in ("", learner)
    ]
    counted = [stage for stage in found if stage.outcomes]
    return counted if counted and counted[0].name == "SFT" else []


def _learners(scored: Scored) -> dict[str, list[SeedFolder]]:
    found: dict[str, list[SeedFolder]] = {}
    for seed in scored.files.seeds:
        for learner in seed.learners:
            found.setdefault(learner, []).append(seed)
    return found


def result_tables(scored: Scored) -> Iterator[Table]:
    """Yield the tables: all seeds together first, then each."""
    results = [read_result(folder) for folder in scored.files.bench]
    if results:
        yield from tables.bench_tables(results)
    pooled: list[Stage] = []
    for learner, seeds in _learners(scored).items():
        stages = _pooled([_test_stages(scored, learner, seed.seed) for seed in seeds])
        pooled += stages[1:] if pooled else stages  # all start from the same policy
    if pooled:
        every = scored.files.seeds
        title = f"Seed {every[0].seed}"
        if len(every) > 1:
            title = f"{len(every)} seeds together; intervals resample problems{_WITH_SEEDS}"
        yield tables.stage_table(title, pooled)
    if len(scored.files.seeds) > 1:
        yield from _seed_tables(scored)


def _seed_tables(scored: Scored) -> Iterator[Table]:
    for learner, seeds in _learners(scored).items():
        for seed in seeds:
            stages = _test_stages(scored, learner, seed.seed)
            if stages:
                yield tables.stage_table(f"{learner}, seed {seed.seed}", stages)


def _pooled(per_seed: Sequence[Sequence[Stage]]) -> list[Stage]:
    """Return the stages that all seeds have, a problem with its outcomes in all of them."""
    pooled = []
    for stages in zip(*per_seed, strict=False):
        found = by_problem([stage.outcomes for stage in stages])
        if not found:  # a run that is going on: the seeds have no problem in common yet
            break
        pooled.append(Stage(stages[0].name, found, sum(s.excluded for s in stages)))
    return pooled


def chart_groups(scored: Scored) -> Iterator[dict[str, Any]]:
    """Yield groups of charts: over all seeds first, then each training run."""
    if not scored.files.seeds:
        return
    bars = "bars are 95% intervals over problems"
    bars += f"{_WITH_SEEDS}." if len(scored.files.seeds) > 1 else "."
    sampled = f"Mean reward of what was sampled for training, by problem; {bars}"
    overview = [
        _overview(scored, "test", "Test pass@1", f"Greedy, test problems; {bars}"),
        _overview(scored, "rollouts", "Reward of the rollouts", sampled),
    ]
    yield {"name": "All runs", "charts": [chart for chart in overview if chart["series"]]}
    for learner, seeds in _learners(scored).items():
        for seed in seeds:
            found = charts.training_charts(seed, learner)
            checked = _validation(scored, learner, seed)
            if found or checked["series"]:
                both = [*([checked] if checked["series"] else []), *found]
                yield {"name": f"{learner}, seed {seed.seed}", "charts": both}
    for seed in scored.files.seeds:
        found = charts.sft_charts(seed)
        if found:
            yield {"name": f"fine-tuning before the loop, seed {seed.seed}", "charts": found}


def _overview(scored: Scored, phase: str, title: str, about: str) -> dict[str, Any]:
    lines: dict[str, list[tuple[int, Estimate]]] = {}
    last = 0
    for learner, seeds in _learners(scored).items():
        points = []
        for number in range(1 + max(n for seed in seeds for n, _ in seed.iterations(learner))):
            pooled = _outcomes_of(scored, phase, learner, number, seeds)
            if pooled:
                points.append((number, pass_at_1(pooled)))
                last = max(last, number)
        lines[learner] = points
    ticks = ["SFT", *(f"iteration {number}" for number in range(1, last + 1))]
    if phase == "rollouts":  # nothing is sampled before the first iteration
        ticks = ticks[1:]
        lines = {name: [(x - 1, e) for x, e in points] for name, points in lines.items()}
    return charts.stage_chart(title, about, lines, ticks)


def _outcomes_of(
    scored: Scored, phase: str, learner: str, iteration: int, seeds: Sequence[SeedFolder]
) -> Outcomes:
    owners = ("", learner) if iteration == 0 else (learner,)
    numbers = {seed.seed for seed in seeds}
    return by_problem(
        [
            scored.stages[key(s), s.seed or 0].outcomes
            for s in scored.files.sources
            if (s.phase, s.iteration) == (phase, iteration)
            and s.learner in owners
            and s.seed in numbers
        ]
    )


def _validation(scored: Scored, learner: str, seed: SeedFolder) -> dict[str, Any]:
    """Return the scores that chose checkpoints, in the order in which they were trained."""
    ticks: list[str] = []
    breaks: list[dict[str, Any]] = []
    points: list[tuple[int, Estimate]] = []
    for source in scored.files.sources:
        if (source.phase, source.learner, source.seed) == ("validation", learner, seed.seed):
            found = scored.stages[key(source), seed.seed].outcomes
            if found:
                label = f"iteration {source.iteration}"
                if not breaks or breaks[-1]["label"] != label:
                    breaks.append({"x": len(ticks) - 0.5, "label": label})
                points.append((len(ticks), pass_at_1(found)))
                ticks.append(source.name)
    about = "Greedy, on the problems that choose the checkpoint; bars are 95% intervals."
    chart = charts.stage_chart("Validation pass@1", about, {"validation": points}, ticks)
    return {**chart, "breaks": breaks}
