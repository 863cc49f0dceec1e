"""DMPO: M-DPO whose turns are weighted so that the length of a trajectory does not count."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from learners.methods.dpo import MultiTurnDPO
from learners.preferences import Sample, action_sample
from learners.settings import DMPOConfig, LearnerConfig
from mathenv.types import SpanKind, Trajectory


def turn_weight(turn: int, turns: int, discount: float) -> float:
    """Return `gamma^t (1 - gamma^(T - t)) / (1 - gamma^T)`, its limit `(T - t) / T` for gamma 1.

    The weight of turn t of T (from 0) that a discounted occupancy measure gives its log-ratio
    when rewards are divided by `(1 - gamma^T) / (1 - gamma)` (arXiv 2406.14868, section 4).
    """
    if discount == 1:
        return (turns - turn) / turns
    return discount**turn * (1 - discount ** (turns - turn)) / (1 - discount**turns)


class DMPO(MultiTurnDPO):
    """DMPO (arXiv 2406.14868): a weighted sum of the turns' log-ratios in place of the sum.

    With one turn it is DPO. The NLL term and the metrics are of the weighted sums too.
    """

    name = "dmpo"
    Config: ClassVar[type[LearnerConfig]] = DMPOConfig
    config: DMPOConfig

    def sample(self, trajectory: Trajectory) -> Sample:
        sample = action_sample(trajectory)
        assert trajectory.tokens is not None
        sampled = [s for s in trajectory.tokens.spans if s.kind is SpanKind.SAMPLED]
        order = {turn: t for t, turn in enumerate(sorted({s.turn for s in sampled}))}
        weights = [
            turn_weight(order[s.turn], len(order), self.config.discount)
            for s in sampled
            for _ in range(s.end - s.start)
        ]
        return replace(sample, weights=tuple(weights))
