"""SimPO over the model's own tokens: mean log-probs, a target margin, no reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from learners.dpo import MultiTurnDPO, Sides
from learners.learner import LearnerConfig, register_learner
from learners.losses import simpo
from mathenv.settings import NotNegative, Positive, check_settings


@dataclass(frozen=True, slots=True)
class SimPOConfig(LearnerConfig):
    """Settings of SimPO. Its `eta` is of another size than DPO's: 2 to 10 in the paper.

    Args:
        gamma: target margin between the two rewards.
    """

    eta: Positive = 2.0
    gamma: NotNegative = 1.0

    def __post_init__(self) -> None:
        check_settings(self)


@register_learner("simpo")
class SimPO(MultiTurnDPO):
    """SimPO (arXiv 2405.14734, equation 6) with the action mask."""

    name = "simpo"
    uses_reference = False
    Config: ClassVar[type[LearnerConfig]] = SimPOConfig
    config: SimPOConfig

    def pair_losses(self, sides: Sides) -> Tensor:
        return simpo(
            sides.chosen / sides.chosen_targets,
            sides.rejected / sides.rejected_targets,
            eta=self.config.eta,
            gamma=self.config.gamma,
        )

    def rewards(self, logps: Tensor, ref_logps: Tensor, targets: Tensor) -> Tensor:
        return self.config.eta * logps / targets
