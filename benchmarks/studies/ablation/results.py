"""Finished variants of a run folder, and scores by problem that can be paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.intervals import Estimate
from benchmarks.metrics import Outcomes, by_problem, cluster_interval, mean_estimate
from benchmarks.studies.ablation.run import FAILED, MEASURED, START, read_config
from benchmarks.studies.ablation.sft import TAKEN
from benchmarks.voting import Ballot, pass_at_k
from mathenv.store import read_object

Scores = Mapping[int, Mapping[str, float]]  # seed -> problem -> score
SHARES = ("test", "ood", "correct", "tool")  # and pass@k; the other measures are counts


@dataclass(frozen=True, slots=True)
class Policy:
    """A variant's policy after an iteration: 0 is where it started, None its last one."""

    variant: str
    iteration: int | None = None


SFT = Policy(START)


@dataclass(frozen=True, slots=True)
class Results:
    """What a run folder holds so far, by (variant, seed).

    `taken` says of seeds whose SFT an earlier run made with how many threads.
    """

    config: Mapping[str, Any]
    measured: Mapping[tuple[str, int], Mapping[str, Any]]
    failed: Mapping[tuple[str, int], str]
    taken: Mapping[int, int] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        return sorted({seed for _, seed in (*self.measured, *self.failed)})

    def seeds_of(self, variant: str) -> list[int]:
        return sorted(seed for name, seed in self.measured if name == variant)

    def scores(self, policy: Policy, measure: str) -> Scores:
        """Return one score per problem for every seed that has this measure.

        `measure`: `test` and `ood` (greedy), `pass@K`, or what `measure.diversity` counts.
        """
        found = {}
        for seed in self.seeds_of(policy.variant):
            scored = _scores(self.measured[policy.variant, seed], policy.iteration, measure)
            if scored:
                found[seed] = scored
        return found

    def estimate(self, policy: Policy, measure: str) -> Estimate | None:
        """Return the mean over problems and seeds, resampling problems; None without any."""
        scores = self.scores(policy, measure)
        if not scores:
            return None
        together = pooled(scores, sorted(scores))
        return (cluster_interval if is_share(measure) else mean_estimate)(together)


def load_results(out: Path) -> Results:
    """Read what a run folder holds; variants that are not finished are not there.

    Raises:
        ConfigError: it is no such folder. DataError: a file is damaged.
    """
    config = read_config(out)
    measured: dict[tuple[str, int], Mapping[str, Any]] = {}
    failed: dict[tuple[str, int], str] = {}
    taken: dict[int, int] = {}
    for folder in out.glob("seed-*"):
        seed = int(folder.name.removeprefix("seed-"))
        for file in folder.glob(f"*/{MEASURED}"):
            measured[file.parent.name, seed] = _read(file)
        for file in folder.glob(f"*/{FAILED}"):
            failed[file.parent.name, seed] = str(_read(file)["reason"])
        start = folder / "shared" / START / MEASURED
        if start.exists():
            measured[START, seed] = _read(start)
        if (folder / TAKEN).exists():
            taken[seed] = int(_read(folder / TAKEN)["threads"])
    return Results(config, measured, failed, taken)


def pooled(scores: Scores, seeds: Sequence[int]) -> Outcomes:
    """Pool seeds: one score per seed for every problem that all of them have."""
    return by_problem([{p: (value,) for p, value in scores[seed].items()} for seed in seeds])


def is_share(measure: str) -> bool:
    """Say whether a measure is a share (of right answers, of samples), not a count."""
    return measure in SHARES or measure.startswith("pass@")


def _scores(found: Mapping[str, Any], iteration: int | None, measure: str) -> dict[str, float]:
    if measure == "test":
        tests = found["test"]
        number = max(tests, key=int) if iteration is None else str(iteration)
        return {problem: values[0] for problem, values in tests.get(number, {}).items()}
    if measure == "ood":
        return {problem: values[0] for problem, values in found["ood"].items()}
    if measure.startswith("pass@"):
        k = int(measure.removeprefix("pass@"))
        return {
            problem: pass_at_k(_ballot(values), k)
            for problem, values in found["samples"].items()
            if len(values) >= k
        }
    return dict(found["diversity"][measure])


def _ballot(values: Sequence[float]) -> Ballot:
    right = round(sum(values))
    return Ballot(correct=right, wrong=(), abstained=len(values) - right)


def _read(file: Path) -> dict[str, Any]:
    return read_object(file, "remove it and run again")
