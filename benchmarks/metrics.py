"""Numbers about trajectories: pure functions, seeded, with intervals.

An outcome is 1.0 (right) or 0.0 (wrong). Accuracy is always the mean over problems of the
mean over a problem's samples, so a problem with fewer samples counts as much as any other.
Episodes that say nothing about the model (`Trajectory.counts` is False) are left out of
everything here and counted in `Metrics.excluded`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np

from mathenv.errors import ConfigError
from mathenv.types import ExecutionStatus, SpanKind, Trajectory

LEVEL = 0.95
RESAMPLES = 10_000

Outcomes = Mapping[str, Sequence[float]]  # problem id -> one outcome per sample


@dataclass(frozen=True, slots=True)
class Estimate:
    """A share with its interval. `n` is the number of problems it is the mean over."""

    value: float
    low: float
    high: float
    n: int
    method: str  # "wilson" or "bootstrap"


@dataclass(frozen=True, slots=True)
class Difference:
    """Second minus first, over the `n` problems both were scored on.

    `p_value` is two-sided, for "there is no difference".
    """

    value: float
    low: float
    high: float
    p_value: float
    n: int


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How the interpreter and the turns were used; means are per episode.

    `stop_reasons` covers all episodes, excluded ones too; the rest only those that count.
    `sampled_tokens` is None where no tokens were recorded.
    """

    turns: float
    code_turns: float
    cells: int
    cell_errors: float
    stop_reasons: Mapping[str, int]
    sampled_tokens: float | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Everything `summarize` says about a set of trajectories."""

    pass_at_1: Estimate
    by_level: Mapping[str, Estimate]
    tool_use: ToolUse
    episodes: int
    excluded: int


def outcomes(trajectories: Iterable[Trajectory]) -> dict[str, tuple[float, ...]]:
    """Group rewards by problem, in order of first appearance; excluded episodes are left out."""
    grouped: dict[str, list[float]] = {}
    for trajectory in trajectories:
        if trajectory.counts:
            grouped.setdefault(trajectory.problem.id, []).append(trajectory.reward)
    return {problem: tuple(rewards) for problem, rewards in grouped.items()}


def pass_at_1(results: Outcomes, *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Return mean accuracy with its interval.

    With one sample per problem the interval is Wilson's. With more, samples of a problem
    depend on each other, so whole problems are resampled (`cluster_bootstrap`).

    Raises:
        ConfigError: there is no outcome.
    """
    if not results:
        raise ConfigError("no episode counts: there is nothing to score")
    if all(len(samples) == 1 for samples in results.values()):
        return wilson(sum(s[0] for s in results.values()), len(results), level=level)
    return cluster_bootstrap(results, level=level, seed=seed)


def wilson(successes: float, n: int, *, level: float = LEVEL) -> Estimate:
    """Wilson's score interval of a share of `n` independent trials (Wilson, 1927)."""
    if n < 1 or not 0 <= successes <= n:
        raise ConfigError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    # At 0 and 1 the bound is exact; floating point would put it beside.
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return Estimate(share, low, high, n, "wilson")


def cluster_bootstrap(
    results: Outcomes, *, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Percentile interval of the mean, resampling problems with all their samples.

    Where every problem has the same mean a bootstrap sees no spread at all and would claim
    certainty; Wilson's interval over problems is given instead.
    """
    means = np.array([fmean(samples) for samples in results.values()])
    if np.ptp(means) == 0:
        return wilson(float(means.sum()), len(means), level=level)
    draws = _bootstrap_means(means, resamples, seed)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(means.mean()), float(low), float(high), len(means), "bootstrap")


def paired_bootstrap(
    first: Outcomes,
    second: Outcomes,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Return second minus first over the problems scored in both, by resampling problems.

    The interval is the percentile interval of the mean difference. The p-value is the share
    of resamples of the centred differences that are at least as far from zero as the
    difference seen, with one added to both counts so that it is never zero (Efron and
    Tibshirani, 1993, section 16.4).

    Raises:
        ConfigError: no problem was scored in both.
    """
    differences = _differences(first, second)
    observed = float(differences.mean())
    draws = _bootstrap_means(differences, resamples, seed)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    # A resampled mean of centred values is the resampled mean minus the mean. The tolerance
    # keeps draws that equal the observed difference up to rounding on the right side.
    extreme = np.count_nonzero(np.abs(draws - observed) >= abs(observed) - 1e-12)
    p_value = (int(extreme) + 1) / (resamples + 1)
    return Difference(observed, float(low), float(high), p_value, len(differences))


def mcnemar(first: Outcomes, second: Outcomes) -> float:
    """Exact two-sided p-value of McNemar's test, for one sample per problem.

    Only problems that exactly one of the two solved count: under "no difference" each is
    equally likely to be either's, a binomial with p = 1/2.

    Raises:
        ConfigError: a problem has several samples, or none was scored in both.
    """
    shared = [key for key in first if key in second]
    if not shared:
        raise ConfigError("no problem was scored in both: compare runs over the same problems")
    if any(len(first[key]) != 1 or len(second[key]) != 1 for key in shared):
        raise ConfigError("McNemar's test takes one sample per problem: use paired_bootstrap")
    gained = sum(second[key][0] > first[key][0] for key in shared)
    lost = sum(second[key][0] < first[key][0] for key in shared)
    n, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def by_level(trajectories: Iterable[Trajectory], *, seed: int = 0) -> dict[str, Estimate]:
    """Return accuracy per `Problem.level`, sorted by it; problems without one are left out."""
    levels: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        if trajectory.counts and trajectory.problem.level:
            levels.setdefault(trajectory.problem.level, []).append(trajectory)
    ordered = sorted(levels, key=lambda level: (len(level), level))  # "2" before "10"
    return {level: pass_at_1(outcomes(levels[level]), seed=seed) for level in ordered}


def tool_use(trajectories: Sequence[Trajectory]) -> ToolUse:
    """Return how turns, cells and tokens were used."""
    counted = [t for t in trajectories if t.counts]
    cells = [turn.execution for t in counted for turn in t.turns if turn.execution is not None]
    errors = sum(cell.status is not ExecutionStatus.OK for cell in cells)
    sampled = [n for t in counted if (n := _sampled_tokens(t)) is not None]
    stops = Counter(t.stop_reason.value for t in trajectories)
    return ToolUse(
        turns=_mean([len(t.turns) for t in counted]),
        code_turns=len(cells) / max(1, len(counted)),
        cells=len(cells),
        cell_errors=errors / max(1, len(cells)),
        stop_reasons=dict(stops.most_common()),
        sampled_tokens=fmean(sampled) if sampled else None,
    )


def summarize(trajectories: Iterable[Trajectory], *, seed: int = 0) -> Metrics:
    """Return all metrics of one run.

    Raises:
        ConfigError: no episode counts.
    """
    episodes = list(trajectories)
    return Metrics(
        pass_at_1=pass_at_1(outcomes(episodes), seed=seed),
        by_level=by_level(episodes, seed=seed),
        tool_use=tool_use(episodes),
        episodes=len(episodes),
        excluded=sum(not t.counts for t in episodes),
    )


def _differences(first: Outcomes, second: Outcomes) -> np.ndarray:
    shared = [key for key in first if key in second]
    if not shared:
        raise ConfigError("no problem was scored in both: compare runs over the same problems")
    return np.array([fmean(second[key]) - fmean(first[key]) for key in shared])


def _bootstrap_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return the means of `resamples` resamples of `values`. Shape: (resamples,).

    Drawing n of n values with replacement is drawing how often each distinct value occurs,
    a multinomial: the same distribution, without a (resamples, n) table.
    """
    distinct, counts = np.unique(values, return_counts=True)
    n = len(values)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    means: np.ndarray = drawn @ distinct / n
    return means


def _sampled_tokens(trajectory: Trajectory) -> int | None:
    if trajectory.tokens is None:
        return None
    spans = trajectory.tokens.spans
    return sum(span.end - span.start for span in spans if span.kind is SpanKind.SAMPLED)


def _mean(values: Sequence[float]) -> float:
    return fmean(values) if values else 0.0
