"""DMPO: M-DPO whose turns are weighted so that the length of a trajectory does not count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from learners.dpo import MultiTurnDPO
from learners.learner import LearnerConfig, register_learner
from learners.preferences import Sample, action_sample
from mathenv.settings import PositiveShare, check_settings
from mathenv.types import SpanKind, Trajectory


@dataclass(frozen=True, slots=True)
class DMPOConfig(LearnerConfig):
    """Settings of DMPO.

    Args:
        discount: gamma in (0, 1]; smaller weighs the first turns more.
    """

    discount: PositiveShare = 0.9

    def __post_init__(self) -> None:
        check_settings(self)


def turn_weight(turn: int, turns: int, discount: float) -> float:
    """Return `gamma^t (1 - gamma^(T - t)) / (1 - gamma^T)`, its limit `(T - t) / T` for gamma 1.

    The weight of turn t of T (from 0) that a discounted occupancy measure gives its log-ratio
    when rewards are divided by `(1 - gamma^T) / (1 - gamma)` (arXiv 2406.14868, section 4).
    """
    if discount == 1:
        return (turns - turn) / turns
    return discount**turn * (1 - discount ** (turns - turn)) / (1 - discount**turns)


@register_learner("dmpo")
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
