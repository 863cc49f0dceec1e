"""Two runs compared problem by problem, and what that says in a plain sentence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from benchmarks.intervals import Difference, Estimate
from benchmarks.metrics import Outcomes, mcnemar, outcomes, paired_difference, pass_at_1
from mathenv.errors import ConfigError
from mathenv.types import Trajectory

SIGNIFICANCE = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """The second run against the first, over the problems that both scored.

    `gained` problems were answered better by the second run, `lost` ones by the first.
    `unshared` problems were scored in one run only and are left out. `mcnemar` is the p-value
    of McNemar's exact test, None where a problem has several samples.
    """

    first: str
    second: str
    first_score: Estimate
    second_score: Estimate
    difference: Difference
    gained: int
    lost: int
    mcnemar: float | None
    unshared: int

    @property
    def p_value(self) -> float:
        """The exact paired permutation test: McNemar's where a problem has one sample."""
        return self.difference.p_value

    @property
    def decided(self) -> bool:
        """True where chance alone explains the difference badly: test and interval say so.

        Near the edge they may not agree: with nine gained and two lost of twenty the interval
        excludes 0, and yet a fair coin falls so one time in fifteen.
        """
        return self.p_value < SIGNIFICANCE and self._interval_excludes_0

    @property
    def _interval_excludes_0(self) -> bool:
        return not self.difference.low <= 0 <= self.difference.high

    def sentence(self) -> str:
        """Say what the comparison shows, for people."""
        low, high = 100 * self.difference.low, 100 * self.difference.high
        test = "exact sign-flip test" if self.mcnemar is None else "McNemar's exact test"
        numbers = f"95% interval {low:+.1f} to {high:+.1f}, {test} {p_text(self.p_value)}"
        same = f"On the same {self.difference.n:,} problems"
        if not self.gained and not self.lost:
            return f"{same} {self.second} and {self.first} scored the same on every one."
        size = 100 * self.difference.value
        how = f"{abs(size):.1f} points {'more' if size >= 0 else 'fewer'} than"
        said = f"{same} {self.second} scores {how} {self.first} ({numbers}): "
        if self.decided:
            return said + "more than chance explains."
        if self._interval_excludes_0 or self.p_value < SIGNIFICANCE:
            differ = self.gained + self.lost
            said += f"interval and test do not agree ({differ} problems differ), and "
        return said + "chance alone may explain it, so these runs do not show which is better."


def compare_runs(
    first: Iterable[Trajectory],
    second: Iterable[Trajectory],
    *,
    names: tuple[str, str] = ("the first run", "the second run"),
    seed: int = 0,
) -> Comparison:
    """Compare two runs over the same problems.

    Raises:
        ConfigError: no problem was scored in both, or one problem id has two contents.
    """
    played, again = list(first), list(second)
    _check_contents(played, again)
    before, after = outcomes(played), outcomes(again)
    difference = paired_difference(before, after, seed=seed)  # refuses runs that share nothing
    shared = [key for key in before if key in after]
    old: Outcomes = {key: before[key] for key in shared}
    new: Outcomes = {key: after[key] for key in shared}
    single = all(len(old[key]) == len(new[key]) == 1 for key in shared)
    steps = [fmean(new[key]) - fmean(old[key]) for key in shared]
    return Comparison(
        first=names[0],
        second=names[1],
        first_score=pass_at_1(old, seed=seed),
        second_score=pass_at_1(new, seed=seed),
        difference=difference,
        gained=sum(step > 0 for step in steps),
        lost=sum(step < 0 for step in steps),
        mcnemar=mcnemar(old, new) if single else None,
        unshared=len(before) + len(after) - 2 * len(shared),
    )


def _check_contents(first: Iterable[Trajectory], second: Iterable[Trajectory]) -> None:
    known = {t.problem.id: (t.problem.question, t.problem.answer) for t in first}
    for trajectory in second:
        problem = trajectory.problem
        if known.get(problem.id, here := (problem.question, problem.answer)) != here:
            raise ConfigError(
                f"problem {problem.id} has another question or answer in one run than in the "
                "other: they were not given the same problems"
            )


def p_text(p_value: float) -> str:
    """Write a p-value."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
