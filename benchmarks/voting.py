"""Several samples per problem: pass@k and maj@k, exact functions of how a problem was answered.

Both are expectations over the choice of k of the n samples, without drawing any: pass@k is
the unbiased estimator of Chen et al. (2021, arXiv 2107.03374, equation 1). For maj@k the
answers are put into classes that the grader calls equal; a vote goes to the largest class
among the k, an equal number of votes is decided by lot (in expectation), and samples without
an answer abstain. Where nobody votes, the vote is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import comb

from mathenv.errors import ConfigError
from mathenv.grading import grade_answer
from mathenv.grading.policy import STRICT, GradePolicy
from mathenv.types import Trajectory

Equal = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Ballot:
    """How the samples of one problem were answered, those that count.

    `wrong` has the size of each class of equal wrong answers; `abstained` samples gave none.
    """

    correct: int
    wrong: tuple[int, ...]
    abstained: int

    @property
    def samples(self) -> int:
        return self.correct + sum(self.wrong) + self.abstained


def graded_equal(first: str, second: str, *, policy: str | GradePolicy = STRICT) -> bool:
    """Say whether the grader would accept the second answer if the first were the reference."""
    return grade_answer(first, second, policy).correct


def ballots(
    trajectories: Iterable[Trajectory], *, equal: Equal = graded_equal
) -> dict[str, Ballot]:
    """Return how each problem was answered, in order of first appearance.

    All correct samples are one class: each equals the reference answer. `equal` groups the wrong
    ones; it must be of the policy that the verdicts are of, else votes are counted by one rule
    and answers judged by another.
    """
    grouped: dict[str, list[Trajectory]] = {}
    for trajectory in trajectories:
        if trajectory.counts:
            grouped.setdefault(trajectory.problem.id, []).append(trajectory)
    return {problem: _ballot(samples, equal) for problem, samples in grouped.items()}


def _ballot(samples: Sequence[Trajectory], equal: Equal) -> Ballot:
    wrong = [t.grade.answer for t in samples if not t.grade.correct]
    answers = [answer for answer in wrong if answer is not None]
    return Ballot(
        correct=len(samples) - len(wrong),
        wrong=class_sizes(answers, equal),
        abstained=len(wrong) - len(answers),
    )


def class_sizes(answers: Iterable[str], equal: Equal = graded_equal) -> tuple[int, ...]:
    """Return the sizes of the classes of equal answers, in order of first appearance.

    An answer joins the first class whose first member it equals; the same text is never
    compared twice.
    """
    first_of: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for answer in answers:
        if answer not in first_of:
            found = (member for member in sizes if equal(member, answer))
            first_of[answer] = next(found, answer)
        member = first_of[answer]
        sizes[member] = sizes.get(member, 0) + 1
    return tuple(sizes.values())


def sizes(n: int) -> tuple[int, ...]:
    """Return the k that are reported for n samples: powers of two below n, and n; none for 1."""
    if n < 2:
        return ()
    powers = [2**i for i in range(n.bit_length()) if 2**i < n]
    return (*powers, n)


def pass_at_k(ballot: Ballot, k: int) -> float:
    """Return the probability that at least one of k samples is right: 1 - C(n-c, k) / C(n, k).

    Raises:
        ConfigError: k is less than 1 or more than there are samples.
    """
    n = _checked(ballot, k)
    return float(1 - Fraction(comb(n - ballot.correct, k), comb(n, k)))


def maj_at_k(ballot: Ballot, k: int) -> float:
    """Return the probability that the majority of k samples is right.

    Counted exactly: for each number of correct votes, in how many ways the other samples can
    be chosen with no larger class, and with how many classes of the same size.

    Raises:
        ConfigError: k is less than 1 or more than there are samples.
    """
    n = _checked(ballot, k)
    won = Fraction(0)
    for votes in range(1, min(k, ballot.correct) + 1):
        others = _ways(ballot, k - votes, votes)
        shares = sum((Fraction(ways, ties + 1) for ties, ways in others.items()), Fraction(0))
        won += comb(ballot.correct, votes) * shares
    return float(won / comb(n, k))


def _ways(ballot: Ballot, total: int, most: int) -> Mapping[int, int]:
    """Count choices of `total` samples that are not correct, none of a class more than `most`.

    Returns the number of choices for each number of classes chosen exactly `most` times.
    """
    table = {(0, 0): 1}  # (samples chosen, classes of size `most`) -> ways
    for size in ballot.wrong:
        grown: dict[tuple[int, int], int] = {}
        for (chosen, ties), ways in table.items():
            for votes in range(min(size, most, total - chosen) + 1):
                key = (chosen + votes, ties + (votes == most))
                grown[key] = grown.get(key, 0) + ways * comb(size, votes)
        table = grown
    counts: dict[int, int] = {}
    for (chosen, ties), ways in table.items():
        abstentions = comb(ballot.abstained, total - chosen)
        counts[ties] = counts.get(ties, 0) + ways * abstentions
    return counts


def _checked(ballot: Ballot, k: int) -> int:
    if not 1 <= k <= ballot.samples:
        raise ConfigError(f"k must lie in 1 to {ballot.samples}, the number of samples, got {k}")
    return ballot.samples
