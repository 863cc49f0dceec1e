"""Every interval covers what it claims, and no p-value is too small, from 5 to 500 problems.

Where all results of a design can be counted, coverage is computed exactly; elsewhere simulated.
"""

import math
from functools import cache

import numpy as np
import pytest

from benchmarks import metrics
from benchmarks.intervals import difference_interval, sign_flip_p, student_t

LEAST = 0.93


def noise(repeats: int) -> float:
    """Three standard errors of a simulated coverage."""
    return 3 * math.sqrt(LEAST * (1 - LEAST) / repeats)


# --- one run, one sample per problem


@pytest.mark.parametrize("n", [5, 10, 20, 50, 100, pytest.param(500, marks=pytest.mark.slow)])
def test_wilson_covers_a_share_near_0_and_1_too(n):
    bounds = [(e.low, e.high) for e in (metrics.wilson(x, n) for x in range(n + 1))]
    coverage = []
    for share in [0.002, 0.005, 0.01, 0.017, 0.02, 0.05, *np.linspace(0.1, 0.9, 41), 0.98, 0.995]:
        logs = [
            math.lgamma(n + 1) - math.lgamma(x + 1) - math.lgamma(n - x + 1)
            + x * math.log(share) + (n - x) * math.log1p(-share)
            for x in range(n + 1)
        ]  # fmt: skip
        chances = np.exp(logs)
        inside = [low <= share <= high for low, high in bounds]
        coverage.append(float(chances[inside].sum()))
    assert min(coverage) > 0.915  # the share's chance values; see the docstring of the module
    assert np.mean(coverage) > 0.95


# --- one run, several samples per problem


@pytest.mark.parametrize("share", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("n", [5, 10, 20, 50, 100, pytest.param(500, marks=pytest.mark.slow)])
def test_samples_of_few_problems_are_covered(n, share):
    """Problems of very different and of nearly equal difficulty, 8 samples each."""
    rng, repeats = np.random.default_rng(n), 300 if n < 100 else 100
    for concentration in (1.0, 30.0):
        a, b = share * concentration, (1 - share) * concentration
        inside = 0
        for _ in range(repeats):
            right = rng.binomial(8, rng.beta(a, b, size=n))
            runs = {str(i): (1.0,) * r + (0.0,) * (8 - r) for i, r in enumerate(right)}
            found = metrics.pass_at_1(runs)
            inside += found.low <= share <= found.high
        assert inside / repeats > LEAST - noise(repeats)


@pytest.mark.parametrize("n", [5, 20, 100])
def test_the_share_of_failed_cells_is_covered(n):
    rng, repeats, share = np.random.default_rng(n), 300 if n < 100 else 100, 0.1
    inside = 0
    for _ in range(repeats):
        cells = rng.integers(1, 7, size=n)
        failed = rng.binomial(cells, rng.beta(0.5, 4.5, size=n))
        counts = {
            str(i): (float(f), float(c)) for i, (f, c) in enumerate(zip(failed, cells, strict=True))
        }
        found = metrics.ratio_estimate(counts)
        inside += found.low <= share <= found.high
    assert inside / repeats > LEAST - noise(repeats)


@pytest.mark.parametrize("n", [5, 20, 100])
def test_a_mean_of_counts_is_covered(n):
    rng, repeats = np.random.default_rng(n), 300 if n < 100 else 100
    inside = 0
    for _ in range(repeats):
        found = metrics.mean_estimate(
            {str(i): (float(v),) for i, v in enumerate(1 + rng.binomial(5, 0.4, size=n))}
        )
        inside += found.low <= 3.0 <= found.high
    assert inside / repeats > LEAST - noise(repeats)


# --- two runs on the same problems

TRUTHS = [  # chance that a problem is gained, lost
    (0.0, 0.0),
    (0.02, 0.0),
    (0.02, 0.02),
    (0.1, 0.0),
    (0.25, 0.25),
    (0.4, 0.1),
    (0.3, 0.05),
    (0.7, 0.0),
    (0.95, 0.0),
]


@cache
def difference(n, gained, lost):
    """Interval and p-value where so many of n problems are gained and lost."""
    values = np.array([1.0] * gained + [-1.0] * lost + [0.0] * (n - gained - lost))
    return (*difference_interval(values, resamples=1000), sign_flip_p(values, 1))


def outcomes_of(n):
    return ((g, x) for g in range(n + 1) for x in range(n + 1 - g))


def chance(n, g, x, gained, lost):
    """Multinomial probability."""
    logs = math.lgamma(n + 1) - sum(math.lgamma(k + 1) for k in (g, x, n - g - x))
    for count, share in ((g, gained), (x, lost), (n - g - x, 1 - gained - lost)):
        if count and not share:
            return 0.0
        logs += count * math.log(share) if count else 0.0
    return math.exp(logs)


@pytest.mark.parametrize(("gained", "lost"), TRUTHS)
@pytest.mark.parametrize("n", [5, 10, 20, 50])
def test_a_true_difference_is_covered(n, gained, lost):
    coverage = 0.0
    for g, x in outcomes_of(n):
        low, high, _ = difference(n, g, x)
        coverage += chance(n, g, x, gained, lost) * (low <= gained - lost <= high)
    assert coverage > LEAST


@pytest.mark.parametrize(("gained", "lost"), TRUTHS)
@pytest.mark.parametrize("n", [100, pytest.param(500, marks=pytest.mark.slow)])
def test_a_true_difference_of_many_problems_is_covered(n, gained, lost):
    rng, repeats = np.random.default_rng(n), 400
    drawn = rng.multinomial(n, (gained, lost, 1 - gained - lost), size=repeats)
    found = [difference(n, int(g), int(x)) for g, x, _ in drawn]
    inside = sum(low <= gained - lost <= high for low, high, _ in found)
    assert inside / repeats > LEAST - noise(repeats)


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("n", [5, 10, 20, 50, 100])
def test_a_true_difference_of_several_samples_is_covered(n, shift):
    """Four samples per problem; most problems nearly always or nearly never solved."""
    rng, repeats, inside = np.random.default_rng(n), 400, 0
    for _ in range(repeats):
        easy = rng.beta(0.3, 0.3, size=n) * (1 - shift)
        first, second = rng.binomial(4, easy) / 4, rng.binomial(4, easy + shift) / 4
        low, high = difference_interval(second - first, resamples=1000)
        inside += low <= shift <= high
    assert inside / repeats > LEAST - noise(repeats)


@pytest.mark.parametrize("changed", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [5, 10, 20, 50])
def test_no_p_value_is_too_small_where_nothing_differs(n, changed):
    for level in (0.01, 0.05, 0.2):
        rejected = sum(
            chance(n, g, x, changed / 2, changed / 2)
            for g, x in outcomes_of(n)
            if difference(n, g, x)[2] <= level
        )
        assert rejected <= level + 1e-9


def test_p_values_of_several_samples_are_not_too_small():
    rng, repeats = np.random.default_rng(0), 500
    for n in (5, 20, 100):
        easy = rng.beta(0.5, 0.5, size=(repeats, n))
        first, second = rng.binomial(4, easy) / 4, rng.binomial(4, easy) / 4
        p = np.array([sign_flip_p(row, 4) for row in second - first])
        for level in (0.05, 0.2):
            assert (p <= level).mean() < level + 3 * math.sqrt(level * (1 - level) / repeats)


# --- the parts, against tables and enumeration


def test_quantiles_of_student_are_those_of_tables():
    table = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 9: 2.26216, 30: 2.04227, 99: 1.98422}
    for freedom, expected in table.items():
        assert student_t(0.95, freedom) == pytest.approx(expected, abs=1e-4)
    assert student_t(0.99, 10) == pytest.approx(3.16927, abs=1e-4)


def test_sign_flips_agree_with_all_patterns_and_with_drawn_ones():
    import itertools

    values = np.array([0.5, -0.25, 0.75, 0.0, 0.25, 1.0, 0.5, -0.25])
    seen = abs(values.sum())
    patterns = [abs(np.dot(s, values)) for s in itertools.product((-1, 1), repeat=len(values))]
    exact = np.mean([value >= seen - 1e-12 for value in patterns])
    assert sign_flip_p(values, 4) == pytest.approx(exact)
    assert sign_flip_p(-values, 4) == pytest.approx(exact)
    assert sign_flip_p(values * math.pi, 1) == pytest.approx(exact, abs=0.006)
    assert sign_flip_p(np.zeros(7), 1) == 1.0


def test_a_p_value_is_never_0():
    assert sign_flip_p(np.ones(100), 1) == pytest.approx(2**-99)
    assert 0 < sign_flip_p(np.full(200, math.pi), 1) < 1e-4
