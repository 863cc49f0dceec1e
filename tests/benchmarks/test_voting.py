"""pass@k and maj@k against enumeration of every choice of k samples."""

import itertools
from dataclasses import replace
from fractions import Fraction
from functools import partial
from statistics import fmean

import pytest

from benchmarks.metrics import summarize
from benchmarks.voting import (
    Ballot,
    ballots,
    class_sizes,
    graded_equal,
    maj_at_k,
    pass_at_k,
    sizes,
)
from mathenv.errors import ConfigError
from mathenv.types import Grade, GradeStatus

BALLOTS = [
    Ballot(3, (), 0),
    Ballot(0, (2, 1), 1),
    Ballot(2, (2,), 0),
    Ballot(2, (2, 2), 1),
    Ballot(1, (3, 1), 2),
    Ballot(3, (2, 1, 1), 1),
    Ballot(1, (), 3),
]


def voters(ballot):
    """Every sample as a name: `right`, its wrong class, or None for no answer."""
    wrong = [f"wrong {i}" for i, size in enumerate(ballot.wrong) for _ in range(size)]
    return ["right"] * ballot.correct + wrong + [None] * ballot.abstained


def enumerated_majority(ballot, k):
    scores = []
    for chosen in itertools.combinations(voters(ballot), k):
        votes = [vote for vote in chosen if vote is not None]
        most = max((votes.count(vote) for vote in set(votes)), default=0)
        winners = {vote for vote in votes if votes.count(vote) == most}
        scores.append(Fraction("right" in winners, max(1, len(winners))))
    return float(sum(scores) / len(scores))


@pytest.mark.parametrize("ballot", BALLOTS, ids=str)
def test_both_agree_with_enumeration(ballot):
    for k in range(1, ballot.samples + 1):
        chosen = list(itertools.combinations(voters(ballot), k))
        assert pass_at_k(ballot, k) == pytest.approx(fmean("right" in c for c in chosen))
        assert maj_at_k(ballot, k) == pytest.approx(enumerated_majority(ballot, k))


@pytest.mark.parametrize("ballot", BALLOTS, ids=str)
def test_one_sample_is_pass_at_1(ballot):
    share = ballot.correct / ballot.samples
    assert pass_at_k(ballot, 1) == pytest.approx(share)
    assert maj_at_k(ballot, 1) == pytest.approx(share)


def test_the_estimator_of_chen_et_al():
    """Their numerically stable product, 1 - prod(1 - k / i), for i from n-c+1 to n."""
    n, c, k = 200, 13, 100
    product = 1.0
    for i in range(n - c + 1, n + 1):
        product *= 1 - k / i
    assert pass_at_k(Ballot(c, (n - c,), 0), k) == pytest.approx(1 - product)


def test_pass_at_k_is_unbiased():
    """Over all outcomes of n trials its expectation is 1 - (1 - p)^k."""
    n, k, p = 6, 3, 0.3
    expected = 0.0
    for outcome in itertools.product((0, 1), repeat=n):
        c = sum(outcome)
        expected += p**c * (1 - p) ** (n - c) * pass_at_k(Ballot(c, (n - c,), 0), k)
    assert expected == pytest.approx(1 - (1 - p) ** k)


def test_many_samples_are_fast_enough_to_be_exact():
    ballot = Ballot(20, (18, 9, *([1] * 10)), 7)
    assert 0.5 < maj_at_k(ballot, 64) < 1.01
    assert maj_at_k(ballot, 64) == 1.0  # all of them: 20 votes to 18
    assert 0.3 < maj_at_k(ballot, 32) < 1.0


def test_k_must_be_possible():
    for k in (0, 4):
        with pytest.raises(ConfigError, match="1 to 3"):
            pass_at_k(Ballot(3, (), 0), k)
        with pytest.raises(ConfigError, match="1 to 3"):
            maj_at_k(Ballot(3, (), 0), k)


def test_which_k_are_reported():
    assert sizes(0) == sizes(1) == ()
    assert sizes(2) == (1, 2)
    assert sizes(8) == (1, 2, 4, 8)
    assert sizes(10) == (1, 2, 4, 8, 10)


def test_classes_are_what_the_grader_calls_equal():
    answers = ["1/2", "0.5", r"\frac{1}{2}", "3", "1/2", "three", "x+1", "1+x"]
    assert class_sizes(answers) == (4, 1, 1, 2)


def test_the_same_text_is_compared_once():
    compared = []

    def equal(first, second):
        compared.append((first, second))
        return False

    assert class_sizes(["a", "b", "a", "b", "a"], equal) == (3, 2)
    assert compared == [("a", "b")]


def test_ballots_of_trajectories(make_trajectory):
    from dataclasses import replace

    silent = Grade(False, GradeStatus.NO_ANSWER, None)
    runs = [
        make_trajectory("a", True, sample=0),
        make_trajectory("a", False, sample=1),
        make_trajectory("a", False, sample=2),
        replace(make_trajectory("a", False, sample=3), grade=silent),
        make_trajectory("a", True, sample=4, infra=True),
        make_trajectory("b", False),
    ]
    assert ballots(runs) == {"a": Ballot(1, (2,), 1), "b": Ballot(0, (1,), 0)}


def test_votes_are_grouped_under_the_policy_of_the_run(make_trajectory):
    """The paper's grader takes 100 times an answer for the answer, ours does not."""
    under_paper = partial(graded_equal, policy="paper")
    assert class_sizes(["5", "500"]) == (1, 1)
    assert class_sizes(["5", "500"], under_paper) == (2,)
    runs = [make_trajectory("a", True)]
    for sample, answer in ((1, "5"), (2, "500")):
        wrong = make_trajectory("a", False, sample=sample)
        runs.append(replace(wrong, grade=replace(wrong.grade, answer=answer)))
    assert summarize(runs).maj_at_k[3].value == pytest.approx(1 / 3)  # three by lot
    assert summarize(runs, policy="paper").maj_at_k[3].value == 0.0
