"""Which of the paper's findings hold here: verdicts on claims, from intervals.

A verdict is computed from the paired difference of a claim's policies on the same problems
and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean

from benchmarks.comparison import SIGNIFICANCE
from benchmarks.intervals import Difference
from benchmarks.metrics import Outcomes, mcnemar, paired_difference
from benchmarks.studies.ablation.claims import CLAIMS, Claim
from benchmarks.studies.ablation.results import Results, is_share, pooled

FLOOR = 0.05  # where both policies are below it, nothing can be compared


class Verdict(StrEnum):
    """What the intervals say about a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "cannot be told"
    MISSING = "was not run"


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim with its verdict. `seeds` has the difference of each seed, `mcnemar` its p-value.

    `reason` says what stands in the way of a verdict, where something does. `sign_p` is the
    p-value of the exact sign test over problems: McNemar's, with the mean over seeds.
    """

    claim: Claim
    verdict: Verdict
    reason: str = ""
    better: float = 0.0
    worse: float = 0.0
    difference: Difference | None = None
    sign_p: float = 1.0
    seeds: tuple[float, ...] = ()
    mcnemar: tuple[float, ...] = ()


def findings(results: Results, claims: Sequence[Claim] = CLAIMS) -> list[Finding]:
    """Judge every claim."""
    return [judge(claim, results) for claim in claims]


def judge(claim: Claim, results: Results) -> Finding:
    """Compare a claim's policies over the problems and seeds that both have."""
    better, worse = (results.scores(p, claim.measure) for p in (claim.better, claim.worse))
    seeds = sorted(set(better) & set(worse))
    if not seeds:
        return Finding(claim, Verdict.MISSING, _why_missing(claim, results))
    high, low = pooled(better, seeds), pooled(worse, seeds)
    difference = paired_difference(low, high)
    sign_p = _sign_test(low, high)
    steps = [paired_difference(_one(low, i), _one(high, i)).value for i in range(len(seeds))]
    means = _mean(high), _mean(low)
    verdict, reason = _verdict(claim, difference, sign_p, steps, means)
    tested = claim.measure in ("test", "ood")
    p_values = [mcnemar(_one(low, i), _one(high, i)) for i in range(len(seeds)) if tested]
    return Finding(
        claim, verdict, reason, *means, difference, sign_p, tuple(steps), tuple(p_values)
    )


def _verdict(
    claim: Claim,
    difference: Difference,
    sign_p: float,
    steps: Sequence[float],
    means: tuple[float, float],
) -> tuple[Verdict, str]:
    low, high = difference.low, difference.high
    if is_share(claim.measure) and max(means) < FLOOR:
        return Verdict.OPEN, "both are near zero: the tiny model is too small to show an effect"
    margin = claim.same_within
    if margin is not None:
        if -margin < low and high < margin:
            return Verdict.HOLDS, ""
        if low > margin or high < -margin:
            return Verdict.FAILS, "they differ by more than the margin"
        return Verdict.OPEN, "the interval reaches over the margin"
    if low <= 0 <= high:
        return Verdict.OPEN, "the interval includes 0, chance alone may explain the difference"
    if sign_p >= SIGNIFICANCE:
        return Verdict.OPEN, "the interval excludes 0, but too few problems differ (sign test)"
    sign = 1 if low > 0 else -1
    if any(sign * step < 0 for step in steps):
        return Verdict.OPEN, "the interval excludes 0, but the seeds point in different directions"
    return (Verdict.HOLDS, "") if sign > 0 else (Verdict.FAILS, "it is the other way round")


def _sign_test(first: Outcomes, second: Outcomes) -> float:
    steps = {p: fmean(second[p]) - fmean(first[p]) for p in first if p in second}
    worse: Outcomes = {p: (float(step < 0),) for p, step in steps.items()}
    better: Outcomes = {p: (float(step > 0),) for p, step in steps.items()}
    return mcnemar(worse, better)


def _why_missing(claim: Claim, results: Results) -> str:
    reasons = []
    for policy in (claim.better, claim.worse):
        failed = [text for (name, _), text in results.failed.items() if name == policy.variant]
        if failed:
            reasons.append(f"`{policy.variant}` failed: {failed[0].rstrip('.')}")
        elif not results.seeds_of(policy.variant):
            reasons.append(f"`{policy.variant}` is missing")
        elif not results.scores(policy, claim.measure):
            reasons.append(f"`{policy.variant}` has no {claim.measure} here")
    return "; ".join(dict.fromkeys(reasons)) or "the two share no seed"


def _one(outcomes: Outcomes, index: int) -> Outcomes:
    return {problem: (values[index],) for problem, values in outcomes.items()}


def _mean(outcomes: Outcomes) -> float:
    return fmean(fmean(values) for values in outcomes.values())
