"""Step-wise DPO: pairs that part after some turns, trained from where they part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from learners.methods.dpo import MultiTurnDPO
from learners.preferences import (
    Example,
    Pair,
    Sample,
    Selection,
    action_sample,
    checked,
    pair_example,
    preference_pairs,
)
from learners.settings import LearnerConfig, StepDPOConfig
from mathenv.errors import TrainingError
from mathenv.types import Span, SpanKind, Trajectory


class StepDPO(MultiTurnDPO):
    """Equation 14 from the turn at which two trajectories part (arXiv 2409.02392, eq. 12).

    Both turns follow the same history s_h, so V_h(s_h) cancels as V_1 does for whole
    trajectories and the sum starts at h. Of the possible pairs of a problem those with the
    longest common history are taken, no trajectory twice. Which turns are common is read
    from the sampled tokens; `Trajectory.parent` is checked against it.
    """

    name = "stepdpo"
    Config: ClassVar[type[LearnerConfig]] = StepDPOConfig
    config: StepDPOConfig

    def examples(
        self, trajectories: Iterable[Trajectory], *, seed: int
    ) -> tuple[list[Example], Selection]:
        pairs, report = preference_pairs(
            trajectories, self.config.pairs, seed=seed, match=self._deepest
        )
        return [self._example(w, r) for w, r in pairs], report

    def _example(self, winner: Trajectory, loser: Trajectory) -> Example:
        turn = shared_turns(winner, loser)
        return pair_example(winner, loser, lambda t: from_turn(t, turn))

    def _deepest(self, winners: Sequence[Trajectory], losers: Sequence[Trajectory]) -> list[Pair]:
        # Read once: of 30 samples there may be 225 pairs.
        rights, wrongs = ([_History.of(t) for t in side] for side in (winners, losers))
        ranked = [(_shared(w, r), w.trajectory, r.trajectory) for w in rights for r in wrongs]
        ranked.sort(key=lambda row: -row[0])  # stable: equals stay shuffled
        used: set[str] = set()
        found = []
        for turns, winner, loser in ranked:
            if turns >= self.config.shared_turns and not used & {winner.key, loser.key}:
                used |= {winner.key, loser.key}
                found.append((winner, loser))
        return found


def shared_turns(a: Trajectory, b: Trajectory) -> int:
    """Return how many first turns two trajectories have in common, the tokens before included.

    Never all of one's turns: each side keeps one that follows the common history.

    Raises:
        TrainingError: one is said to branch from the other, or both from a third, after more
            turns than their tokens have in common.
    """
    return _shared(_History.of(a), _History.of(b))


@dataclass(frozen=True, slots=True)
class _History:
    """A trajectory's tokens, and where its turns start in them."""

    trajectory: Trajectory
    ids: tuple[int, ...]
    starts: list[int]

    @staticmethod
    def of(trajectory: Trajectory) -> _History:
        ids = action_sample(trajectory).ids  # an error where there are none
        return _History(trajectory, ids, [s.start for s in _sampled(trajectory)])


def _shared(first: _History, second: _History) -> int:
    pairs = enumerate(zip(first.ids, second.ids, strict=False))
    shortest = min(len(first.ids), len(second.ids))
    length = next((t for t, (x, y) in pairs if x != y), shortest)
    starts = zip(first.starts, second.starts, strict=False)
    common = [x for x, y in starts if x == y and x <= length]
    turns = max(len(common) - 1, 0)
    a, b = first.trajectory, second.trajectory
    related = a.parent == b.key or b.parent == a.key or (a.parent and a.parent == b.parent)
    branch = min(t.branch_turn for t in (a, b) if t.parent) if related else 0
    if turns < branch:
        raise TrainingError(
            f"{a.key} and {b.key} are recorded to branch after {branch} turns, but their tokens "
            f"have {turns} turns in common: one of them was sampled from another history"
        )
    return turns


def from_turn(trajectory: Trajectory, turn: int) -> Sample:
    """Return the action mask from turn `turn` (0-based) on."""
    sample = action_sample(trajectory)
    start = _sampled(trajectory)[turn].start
    mask = tuple(on and t >= start for t, on in enumerate(sample.mask))
    return checked(replace(sample, mask=mask))


def _sampled(trajectory: Trajectory) -> list[Span]:
    spans = trajectory.tokens.spans if trajectory.tokens else ()
    return [s for s in spans if s.kind is SpanKind.SAMPLED]
