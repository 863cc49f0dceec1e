"""Numbers about trajectories: pure functions, seeded, with intervals.

An outcome is 1.0 (right) or 0.0 (wrong). Accuracy is always the mean over problems of the
mean over a problem's samples, so a problem with fewer samples counts as much as any other.
Episodes that say nothing about the model (`Trajectory.counts` is False) are left out of
everything here and counted in `Metrics.excluded`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import numpy as np

from benchmarks.intervals import (
    LEVEL,
    RESAMPLES,
    Difference,
    Estimate,
    bootstrap,
    count_different,
    difference_interval,
    is_many,
    mean_interval,
    share_interval,
    sign_flip_p,
    wilson,
)
from benchmarks.voting import Ballot, ballots, graded_equal, maj_at_k, pass_at_k, sizes
from mathenv.errors import ConfigError
from mathenv.grading.policy import STRICT, GradePolicy
from mathenv.problems import has_label_issue
from mathenv.types import (
    ExecutionStatus,
    GradeStatus,
    Problem,
    SpanKind,
    StopReason,
    Trajectory,
    Turn,
)

Outcomes = Mapping[str, Sequence[float]]  # problem id -> one outcome per sample


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How the interpreter and the turns were used; means are per episode.

    `cell_errors` is the share of the `cells` that did not end well, `cell_statuses` how they
    ended. `stop_reasons` covers all episodes, excluded ones too; the rest only those that
    count. `sampled_tokens` is None where no tokens were recorded.
    """

    turns: Estimate
    code_turns: Estimate
    code_lines: Estimate
    cells: int
    cell_errors: Estimate
    cell_statuses: Mapping[str, int]
    stop_reasons: Mapping[str, int]
    sampled_tokens: Estimate | None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Everything `summarize` says about a set of trajectories.

    `flagged` problems have a label that is known to be wrong (`mathenv.problems.label_issues`):
    they are part of every number but `without_flagged`. `excluded` episodes are part of none;
    `exclusions` says why: `infra`, the machinery failed, or `gold_error`, the reference answer
    cannot be graded.
    """

    pass_at_1: Estimate
    pass_at_k: Mapping[int, Estimate]
    maj_at_k: Mapping[int, Estimate]
    by_level: Mapping[str, Estimate]
    by_subject: Mapping[str, Estimate]
    flagged: int
    without_flagged: Estimate | None
    tool_use: ToolUse
    episodes: int
    excluded: int
    exclusions: Mapping[str, int]


def outcomes(trajectories: Iterable[Trajectory]) -> dict[str, tuple[float, ...]]:
    """Group rewards by problem, in order of first appearance; excluded episodes are left out."""
    grouped: dict[str, list[float]] = {}
    for trajectory in trajectories:
        if trajectory.counts:
            grouped.setdefault(trajectory.problem.id, []).append(trajectory.reward)
    return {problem: tuple(rewards) for problem, rewards in grouped.items()}


def by_problem(runs: Sequence[Outcomes]) -> dict[str, tuple[float, ...]]:
    """Pool runs over the same problems, e.g. the seeds of a recipe, for what follows here.

    Every problem that all runs scored has its outcomes in all of them. The problem is what is
    resampled then: three seeds over 500 problems are 500 clusters, not 1,500 independent trials.
    """
    first, *others = runs or [{}]
    return {
        problem: tuple(value for run in runs for value in run[problem])
        for problem in first
        if all(problem in other for other in others)
    }


def pass_at_1(results: Outcomes, *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Return mean accuracy with its interval.

    With one sample per problem the interval is Wilson's. With more, samples of a problem
    depend on each other, so the problem is the unit (`cluster_interval`).

    Raises:
        ConfigError: there is no outcome.
    """
    if not results:
        raise ConfigError("no episode counts: there is nothing to score")
    if all(len(samples) == 1 for samples in results.values()):
        return wilson(sum(s[0] for s in results.values()), len(results), level=level)
    return cluster_interval(results, level=level, seed=seed)


def cluster_interval(results: Outcomes, *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Return the mean over problems of shares from 0 to 1, with the problem as the unit.

    Resamples problems with all their samples where there are many; else `share_interval`.

    Raises:
        ConfigError: there is no problem.
    """
    means = np.array([fmean(samples) for samples in results.values()])
    n, different = len(means), count_different(means)
    if not n:
        raise ConfigError("no episode counts: there is nothing to score")
    if is_many(n, different):
        return bootstrap(means, level, RESAMPLES, seed)
    variance = float(means.var(ddof=1)) / n if n > 1 else 0.0
    return share_interval(float(means.mean()), variance, n, different, level)


def mean_estimate(results: Outcomes, *, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Return the mean over problems of a quantity that is no share, e.g. turns or tokens."""
    means = np.array([fmean(samples) for samples in results.values()])
    return mean_interval(means, level, seed)


def ratio_estimate(
    counts: Mapping[str, tuple[float, float]],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Return the ratio of two sums, a share such as failed cells of cells, over problems.

    `counts` has (numerator, denominator) per problem; problems without a denominator say
    nothing. With few problems the variance is that of the linearised ratio (Cochran, 1977,
    section 6.4).
    """
    pairs = np.array([pair for pair in counts.values() if pair[1] > 0], dtype=float)
    n, different = len(pairs), count_different(pairs)
    if not n:
        return Estimate(0.0, 0.0, 0.0, 0, "constant")
    ratio = float(pairs[:, 0].sum() / pairs[:, 1].sum())
    if not is_many(n, different):
        residuals = (pairs[:, 0] - ratio * pairs[:, 1]) / pairs[:, 1].mean()
        variance = float((residuals**2).sum()) / max(1, n - 1) / n
        return share_interval(ratio, variance, n, different, level)
    distinct, weights = np.unique(pairs, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(n, weights / n, size=resamples)
    ratios = (drawn @ distinct[:, 0]) / (drawn @ distinct[:, 1])
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(ratio, float(low), float(high), n, "bootstrap")


def paired_difference(
    first: Outcomes,
    second: Outcomes,
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Return second minus first over the problems scored in both.

    The interval is `difference_interval`, the p-value the exact paired permutation test
    (`sign_flip_p`), however many problems there are.

    Raises:
        ConfigError: no problem was scored in both.
    """
    shared = _shared(first, second)
    differences = np.array([fmean(second[key]) - fmean(first[key]) for key in shared])
    low, high = difference_interval(differences, level, resamples, seed)
    # Means over so many samples are whole multiples of 1 / unit, where outcomes are whole.
    unit = math.lcm(*{len(run[key]) for run in (first, second) for key in shared})
    p_value = sign_flip_p(differences, unit, seed=seed)
    return Difference(float(differences.mean()), low, high, p_value, len(differences))


def mcnemar(first: Outcomes, second: Outcomes) -> float:
    """Exact two-sided p-value of McNemar's test, for one sample per problem.

    Only problems that exactly one of the two solved count: under "no difference" each is
    equally likely to be either's, a binomial with p = 1/2.

    Raises:
        ConfigError: a problem has several samples, or none was scored in both.
    """
    shared = _shared(first, second)
    if any(len(first[key]) != 1 or len(second[key]) != 1 for key in shared):
        raise ConfigError("McNemar's test takes one sample per problem: use paired_difference")
    gained = sum(second[key][0] > first[key][0] for key in shared)
    lost = sum(second[key][0] < first[key][0] for key in shared)
    n, fewer = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def by_group(
    trajectories: Iterable[Trajectory], group: Callable[[Problem], str], *, seed: int = 0
) -> dict[str, Estimate]:
    """Return accuracy per group of problems, sorted ("2" before "10"); "" is no group."""
    groups: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        name = group(trajectory.problem)
        if trajectory.counts and name:
            groups.setdefault(name, []).append(trajectory)
    ordered = sorted(groups, key=_natural)
    return {name: pass_at_1(outcomes(groups[name]), seed=seed) for name in ordered}


def tool_use(trajectories: Sequence[Trajectory], *, seed: int = 0) -> ToolUse:
    """Return how turns, cells and tokens were used."""
    counted = [t for t in trajectories if t.counts]
    statuses = Counter(_cell_status(turn) for t in counted for turn in t.turns if turn.execution)
    stops = Counter(t.stop_reason.value for t in trajectories)
    sampled = [t for t in counted if t.tokens is not None]

    def mean(quantity: Callable[[Trajectory], float]) -> Estimate:
        return mean_estimate(_per_problem(counted, quantity), seed=seed)

    return ToolUse(
        turns=mean(lambda t: len(t.turns)),
        code_turns=mean(lambda t: len(_cells(t))),
        code_lines=mean(lambda t: sum(_lines(turn.code or "") for turn in _cells(t))),
        cells=statuses.total(),
        cell_errors=ratio_estimate(_errors_and_cells(counted), seed=seed),
        cell_statuses=dict(statuses.most_common()),
        stop_reasons=dict(stops.most_common()),
        sampled_tokens=(
            mean_estimate(_per_problem(sampled, sampled_tokens), seed=seed) if sampled else None
        ),
    )


def sampled_tokens(trajectory: Trajectory) -> int:
    """Return how many tokens the model wrote, 0 where no tokens were recorded."""
    spans = trajectory.tokens.spans if trajectory.tokens is not None else ()
    return sum(span.end - span.start for span in spans if span.kind is SpanKind.SAMPLED)


def summarize(
    trajectories: Iterable[Trajectory], *, policy: str | GradePolicy = STRICT, seed: int = 0
) -> Metrics:
    """Return all metrics of one run. `policy` is what its verdicts were given under.

    Raises:
        ConfigError: no episode counts.
    """
    episodes = list(trajectories)
    clean = [t for t in episodes if not has_label_issue(t.problem)]
    flagged = {t.problem.id for t in episodes if t.counts and has_label_issue(t.problem)}
    votes = ballots(episodes, equal=partial(graded_equal, policy=policy))
    most = max((ballot.samples for ballot in votes.values()), default=0)
    return Metrics(
        pass_at_1=pass_at_1(outcomes(episodes), seed=seed),
        pass_at_k={k: _over_problems(votes, k, pass_at_k, seed) for k in sizes(most)},
        maj_at_k={k: _over_problems(votes, k, maj_at_k, seed) for k in sizes(most)},
        by_level=by_group(episodes, lambda problem: problem.level, seed=seed),
        by_subject=by_group(episodes, lambda problem: problem.subject, seed=seed),
        flagged=len(flagged),
        without_flagged=pass_at_1(outcomes(clean), seed=seed) if outcomes(clean) else None,
        tool_use=tool_use(episodes, seed=seed),
        episodes=len(episodes),
        excluded=sum(not t.counts for t in episodes),
        exclusions=dict(Counter(_exclusion(t) for t in episodes if not t.counts).most_common()),
    )


def _over_problems(
    votes: Mapping[str, Ballot], k: int, score: Callable[[Ballot, int], float], seed: int
) -> Estimate:
    """Mean over the problems with at least k samples that count (`Estimate.n` says how many)."""
    scores = {name: (score(b, k),) for name, b in votes.items() if b.samples >= k}
    return cluster_interval(scores, seed=seed)


def _exclusion(trajectory: Trajectory) -> str:
    gold = trajectory.grade.status is GradeStatus.GOLD_ERROR
    return GradeStatus.GOLD_ERROR.value if gold else StopReason.INFRA.value


def _natural(name: str) -> tuple[list[int], str]:
    return [int(digits) for digits in re.findall(r"\d+", name)], name


def _per_problem(
    trajectories: Iterable[Trajectory], quantity: Callable[[Trajectory], float]
) -> Outcomes:
    grouped: dict[str, list[float]] = {}
    for trajectory in trajectories:
        grouped.setdefault(trajectory.problem.id, []).append(quantity(trajectory))
    return grouped


def _cells(trajectory: Trajectory) -> list[Turn]:
    return [turn for turn in trajectory.turns if turn.execution is not None]


def _cell_status(turn: Turn) -> str:
    return turn.execution.status.value if turn.execution is not None else ""


def _lines(code: str) -> int:
    return sum(bool(line.strip()) for line in code.splitlines())


def _errors_and_cells(trajectories: Iterable[Trajectory]) -> dict[str, tuple[float, float]]:
    counts: dict[str, tuple[float, float]] = {}
    for trajectory in trajectories:
        errors, cells = counts.get(trajectory.problem.id, (0.0, 0.0))
        ran = [_cell_status(turn) for turn in _cells(trajectory)]
        errors += sum(status != ExecutionStatus.OK for status in ran)
        counts[trajectory.problem.id] = (errors, cells + len(ran))
    return counts


def _shared(first: Outcomes, second: Outcomes) -> list[str]:
    shared = [key for key in first if key in second]
    if not shared:
        raise ConfigError("no problem was scored in both: compare runs over the same problems")
    return shared
