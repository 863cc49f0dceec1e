"""Every statistic against a second computation: equations, enumeration, closed forms."""

import itertools
import math
from statistics import fmean, stdev

import numpy as np
import pytest

from benchmarks import intervals, metrics
from mathenv.errors import ConfigError
from mathenv.types import ExecutionStatus

Z = 1.959963984540054  # standard normal, 97.5%


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (4, 10), (6, 10), (10, 10), (977, 1319)])
def test_wilson_bounds_solve_the_score_equation(successes: int, n: int) -> None:
    estimate = metrics.wilson(successes, n)
    assert estimate.low <= estimate.value == successes / n <= estimate.high
    for bound in (estimate.low, estimate.high):
        if 0 < bound < 1:
            distance = abs(successes / n - bound)
            assert distance == pytest.approx(Z * math.sqrt(bound * (1 - bound) / n), rel=1e-9)


def test_wilson_known_values() -> None:
    """Ends have the closed form z^2 / (n + z^2)."""
    assert metrics.wilson(0, 10).low == 0.0
    assert metrics.wilson(0, 10).high == pytest.approx(Z**2 / (10 + Z**2))
    assert metrics.wilson(10, 10).low == pytest.approx(10 / (10 + Z**2))
    assert metrics.wilson(10, 10).high == 1.0


@pytest.mark.parametrize("successes", [1, 2, 3])
def test_a_bound_near_0_or_1_is_that_of_a_rare_count(successes: int) -> None:
    """A Poisson count of the bound's rate reaches so many successes once in twenty."""
    few, many = metrics.wilson(successes, 40), metrics.wilson(40 - successes, 40)
    rate = 40 * few.low
    missed = sum(math.exp(-rate) * rate**i / math.factorial(i) for i in range(successes))
    assert 1 - missed == pytest.approx(0.05)
    assert (1 - many.high, 1 - many.low) == pytest.approx((few.low, few.high))


def test_wilson_refuses_what_is_no_share() -> None:
    with pytest.raises(ConfigError):
        metrics.wilson(3, 2)
    with pytest.raises(ConfigError):
        metrics.wilson(0, 0)


def _all_resampled_means(values: list[float]) -> np.ndarray:
    return np.array([fmean(draw) for draw in itertools.product(values, repeat=len(values))])


def test_the_interval_of_few_problems_solves_the_score_equation() -> None:
    """12 problems: Student's t of the 8 that are not right throughout, and their variance."""
    means = [1.0] * 4 + [0.0, 0.25, 0.25, 0.5, 0.6, 0.4, 0.1, 0.2]
    results = {str(i): tuple(float(k < 20 * m) for k in range(20)) for i, m in enumerate(means)}
    estimate = metrics.cluster_interval(results)
    share, error = fmean(means), stdev(means) / math.sqrt(12)
    scale = 2.364624 * error / math.sqrt(share * (1 - share))  # t of 7 degrees of freedom
    assert (estimate.value, estimate.method) == (pytest.approx(share), "wilson")
    for bound in (estimate.low, estimate.high):
        assert abs(share - bound) == pytest.approx(scale * math.sqrt(bound * (1 - bound)), rel=1e-5)


def test_few_problems_are_never_less_certain_than_one_trial_each() -> None:
    results = {str(i): (float(i < 6),) * 3 for i in range(10)}
    assert metrics.cluster_interval(results) == metrics.wilson(6, 10)


def test_bootstrap_agrees_with_all_resamples() -> None:
    means = [1.0, 0.5, 0.0, 1 / 3, 1.0]
    estimate = intervals.bootstrap(np.array(means), 0.95, 200_000, 0)
    exact = _all_resampled_means(means)
    assert estimate.value == pytest.approx(fmean(means))
    assert estimate.low == pytest.approx(np.quantile(exact, 0.025), abs=0.02)
    assert estimate.high == pytest.approx(np.quantile(exact, 0.975), abs=0.02)


def test_cluster_interval_approaches_the_normal_interval() -> None:
    rng = np.random.default_rng(1)
    results = {str(i): tuple(rng.integers(0, 2, 4).astype(float)) for i in range(2000)}
    estimate = metrics.cluster_interval(results)
    means = [fmean(v) for v in results.values()]
    half = Z * stdev(means) / math.sqrt(len(means))
    assert estimate.low == pytest.approx(fmean(means) - half, rel=0.01)
    assert estimate.high == pytest.approx(fmean(means) + half, rel=0.01)
    assert (estimate.n, estimate.method) == (2000, "bootstrap")


def test_samples_of_one_problem_are_not_independent() -> None:
    """40 equal samples of 10 problems must be as uncertain as 1 sample of 10 problems."""
    many = {str(i): (float(i < 6),) * 40 for i in range(10)}
    estimate = metrics.pass_at_1(many)
    assert estimate.value == pytest.approx(0.6)
    assert estimate.high - estimate.low > 0.5


def test_no_certainty_from_equal_problems() -> None:
    assert metrics.pass_at_1({"a": (1.0, 1.0), "b": (1.0, 1.0)}) == metrics.wilson(2, 2)


def test_pass_at_1_weighs_problems_equally() -> None:
    assert metrics.pass_at_1({"a": (1.0,), "b": (0.0, 0.0, 0.0)}).value == 0.5


def test_pass_at_1_of_single_samples_is_wilson() -> None:
    results = {"a": (1.0,), "b": (0.0,), "c": (1.0,)}
    assert metrics.pass_at_1(results) == metrics.wilson(2, 3)
    with pytest.raises(ConfigError, match="nothing to score"):
        metrics.pass_at_1({})


def test_paired_difference_by_hand() -> None:
    """Four gained, one lost, one the same: adjusted Wald of 8 problems, all 32 sign patterns."""
    first = {"a": (0.0,), "b": (0.0,), "c": (1.0,), "d": (0.0,), "e": (1.0,), "f": (0.0,)}
    second = {"a": (1.0,), "b": (1.0,), "c": (1.0,), "d": (1.0,), "e": (0.0,), "f": (1.0,)}
    result = metrics.paired_difference(first, second)
    assert result.value == pytest.approx(3 / 6)
    assert result.p_value == pytest.approx(2 * (1 + 5) / 32) == metrics.mcnemar(first, second)
    half = Z * math.sqrt((7 / 8 - (3 / 8) ** 2) / 8)
    assert (result.low, result.high) == pytest.approx((3 / 8 - half, 3 / 8 + half))


def test_paired_difference_of_many_problems_resamples_them() -> None:
    rng = np.random.default_rng(0)
    first, second = (
        {str(i): (float(right),) for i, right in enumerate(rng.random(400) < share)}
        for share in (0.4, 0.6)
    )
    result = metrics.paired_difference(first, second)
    steps = [second[k][0] - first[k][0] for k in first]
    half = Z * stdev(steps) / math.sqrt(len(steps))
    assert result.low == pytest.approx(fmean(steps) - half, abs=0.005)
    assert result.high == pytest.approx(fmean(steps) + half, abs=0.005)


@pytest.mark.parametrize("problems", [1, 40, 500])
def test_paired_difference_of_equal_runs_claims_no_certainty(problems: int) -> None:
    same = {str(i): (float(i % 2),) for i in range(problems)}
    result = metrics.paired_difference(same, same)
    unseen = may_have_been_missed(problems)
    assert (result.value, result.p_value) == (0.0, 1.0)
    assert (result.low, result.high) == (-unseen, unseen)


def may_have_been_missed(problems: int) -> float:
    return max(metrics.wilson(0, problems).high, 1 - 0.025 ** (1 / problems))


def test_paired_difference_where_every_problem_was_gained() -> None:
    first, second = ({str(i): (right,) for i in range(20)} for right in (0.0, 1.0))
    result = metrics.paired_difference(first, second)
    assert (result.value, result.high) == (1.0, 1.0)
    assert result.low == pytest.approx(1 - may_have_been_missed(20))


def test_seeds_over_the_same_problems_are_clusters_of_them() -> None:
    """An exact repetition says nothing new: the intervals of one seed are those of three."""
    rng = np.random.default_rng(0)
    before, after = (
        {str(i): (float(right),) for i, right in enumerate(rng.random(200) < share)}
        for share in (0.6, 0.7)
    )
    pooled = [metrics.by_problem([run] * 3) for run in (before, after)]
    assert all(len(values) == 3 for run in pooled for values in run.values())
    assert metrics.paired_difference(*pooled) == metrics.paired_difference(before, after)
    score = metrics.pass_at_1(pooled[0])
    assert (score.n, score.method) == (200, "bootstrap")
    assert score.low == pytest.approx(metrics.pass_at_1(before).low, abs=0.01)
    assert score.high == pytest.approx(metrics.pass_at_1(before).high, abs=0.01)


def test_seeds_are_pooled_over_the_problems_that_all_of_them_scored() -> None:
    runs = [{"a": (1.0,), "b": (0.0, 1.0)}, {"b": (1.0,), "c": (1.0,)}]
    assert metrics.by_problem(runs) == {"b": (0.0, 1.0, 1.0)}
    assert metrics.by_problem(runs[:1]) == runs[0]
    assert metrics.by_problem([]) == {}


def test_paired_difference_uses_shared_problems_and_the_seed() -> None:
    first = {str(i): (float(i % 3 == 0),) for i in range(200)}
    second = {str(i): (float(i % 2 == 0),) for i in range(10, 210)}
    result = metrics.paired_difference(first, second, seed=3)
    assert result.n == 190
    assert result == metrics.paired_difference(first, second, seed=3)
    with pytest.raises(ConfigError, match="no problem"):
        metrics.paired_difference({"a": (1.0,)}, {"b": (1.0,)})


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 1), (7, 7), (9, 2)])
def test_mcnemar_agrees_with_all_sign_patterns(gained: int, lost: int) -> None:
    first = {f"g{i}": (0.0,) for i in range(gained)} | {f"l{i}": (1.0,) for i in range(lost)}
    second = {f"g{i}": (1.0,) for i in range(gained)} | {f"l{i}": (0.0,) for i in range(lost)}
    first["tie"] = second["tie"] = (1.0,)
    n = gained + lost
    at_least = [
        abs(2 * sum(signs) - n) >= abs(gained - lost)
        for signs in itertools.product((0, 1), repeat=n)
    ]
    assert metrics.mcnemar(first, second) == pytest.approx(fmean(at_least))
    assert metrics.mcnemar(second, first) == metrics.mcnemar(first, second)


def test_mcnemar_needs_single_samples() -> None:
    with pytest.raises(ConfigError, match="one sample"):
        metrics.mcnemar({"a": (1.0, 0.0)}, {"a": (1.0, 0.0)})


def test_excluded_episodes_are_left_out_and_counted(make_trajectory) -> None:
    runs = [
        make_trajectory("a", True),
        make_trajectory("b", False),
        make_trajectory("c", False, infra=True, cells=(ExecutionStatus.INFRA,)),
    ]
    result = metrics.summarize(runs)
    assert result.pass_at_1 == metrics.wilson(1, 2)
    assert (result.episodes, result.excluded) == (3, 1)
    assert result.tool_use.cells == 2
    assert result.tool_use.stop_reasons == {"answered": 2, "infra": 1}
    assert metrics.outcomes(runs) == {"a": (1.0,), "b": (0.0,)}


def test_groups_are_sorted_and_split(make_trajectory) -> None:
    runs = [
        make_trajectory("a", True, level="Level 10"),
        make_trajectory("b", False, level="Level 2"),
        make_trajectory("c", True, level="Level 2"),
        make_trajectory("d", True, level="Level 2", infra=True),
        make_trajectory("e", True),
    ]
    levels = metrics.by_group(runs, lambda problem: problem.level)
    assert list(levels.items()) == [
        ("Level 2", metrics.wilson(1, 2)),
        ("Level 10", metrics.wilson(1, 1)),
    ]
    assert metrics.by_group(runs, lambda problem: problem.subject) == {}


def test_tool_use_by_hand(make_trajectory) -> None:
    ok, error = ExecutionStatus.OK, ExecutionStatus.ERROR
    use = metrics.tool_use(
        [
            make_trajectory("a", True, cells=(ok, error, ok), sampled=10),
            make_trajectory("b", True, cells=(), sampled=20),
        ]
    )
    assert (use.turns.value, use.code_turns.value, use.cells) == (2.5, 1.5, 3)
    # Two problems, Student's t of one degree of freedom; no episode has less than 0 turns.
    assert (use.turns.low, use.turns.high) == pytest.approx((0.0, 2.5 + 12.7062 * 1.5), abs=1e-3)
    assert use.code_lines.value == 1.5
    assert use.cell_errors.value == pytest.approx(1 / 3)
    assert use.cell_statuses == {"ok": 2, "error": 1}
    assert use.sampled_tokens is not None
    assert use.sampled_tokens.value == 15.0
    assert metrics.tool_use([make_trajectory("a", True)]).sampled_tokens is None
    nothing = metrics.tool_use([make_trajectory("a", False, infra=True)])
    assert (nothing.turns.n, nothing.cells, nothing.stop_reasons) == (0, 0, {"infra": 1})


def test_error_rate_of_few_problems() -> None:
    counts = {"a": (0.0, 4.0), "b": (3.0, 3.0), "c": (1.0, 2.0), "d": (0.0, 1.0), "e": (0.0, 0.0)}
    estimate = metrics.ratio_estimate(counts)
    assert (estimate.value, estimate.n) == (0.4, 4)
    # Cells of one problem depend on each other: no more is known than from four trials.
    assert estimate.low == pytest.approx(-math.log(0.95) / 4)  # a rare count of 1
    assert estimate.high == pytest.approx(1 - 0.355362 / 4, abs=1e-6)  # and of 2: a table's value


def test_error_rate_of_many_problems_resamples_them() -> None:
    rng = np.random.default_rng(0)
    cells = rng.integers(1, 6, size=400)
    failed = rng.binomial(cells, 0.3)
    counts = {
        str(i): (float(f), float(c)) for i, (f, c) in enumerate(zip(failed, cells, strict=True))
    }
    estimate = metrics.ratio_estimate(counts)
    residuals = (failed - estimate.value * cells) / cells.mean()
    half = Z * residuals.std(ddof=1) / 20
    assert estimate.method == "bootstrap"
    assert estimate.high - estimate.low == pytest.approx(2 * half, rel=0.05)


def test_what_never_varies_has_no_interval() -> None:
    assert metrics.mean_estimate({"a": (2.0,), "b": (2.0,)}).method == "constant"
    equal = metrics.ratio_estimate({"a": (1.0, 2.0), "b": (1.0, 2.0)})
    assert equal == metrics.wilson(1, 2)  # a share that was not seen to vary is not certain
    assert metrics.mean_estimate({}).n == 0


def test_summary_of_several_samples(make_trajectory) -> None:
    runs = [
        make_trajectory("a", index < 3, sample=index, subject="algebra") for index in range(4)
    ] + [make_trajectory("b", index < 1, sample=index, subject="geometry") for index in range(4)]
    result = metrics.summarize(runs)
    assert result.pass_at_1.value == 0.5
    assert list(result.pass_at_k) == [1, 2, 4]
    assert result.pass_at_k[1].value == pytest.approx(result.pass_at_1.value)
    assert result.pass_at_k[4].value == 1.0
    # a: 3 of 4 right, a pair without a right one is impossible; b: 3 of 6 pairs hold the one.
    assert result.pass_at_k[2].value == pytest.approx((1 + 0.5) / 2)
    # maj@4: a is right (3 to 1), b is wrong (1 to 3).
    assert result.maj_at_k[4].value == 0.5
    assert list(result.by_subject) == ["algebra", "geometry"]


def test_problems_with_too_few_samples_are_left_out_of_pass_at_k(make_trajectory) -> None:
    runs = [make_trajectory("a", True, sample=0), make_trajectory("a", True, sample=1)]
    runs += [
        make_trajectory("b", True, sample=0),
        make_trajectory("b", False, sample=1, infra=True),
    ]
    result = metrics.summarize(runs)
    assert (result.pass_at_k[1].n, result.pass_at_k[2].n) == (2, 1)
    assert result.exclusions == {"infra": 1}


def test_flagged_problems_are_counted_with_and_without(make_trajectory) -> None:
    runs = [
        make_trajectory("a", True),
        make_trajectory("b", False, metadata={"label_issue": "the label is wrong"}),
    ]
    result = metrics.summarize(runs)
    assert (result.pass_at_1.value, result.flagged) == (0.5, 1)
    assert result.without_flagged == metrics.wilson(1, 1)
    assert metrics.summarize(runs[1:]).without_flagged is None
    assert metrics.summarize(runs[:1]).flagged == 0
