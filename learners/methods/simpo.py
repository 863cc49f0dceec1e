"""SimPO over the model's own tokens: mean log-probs, a target margin, no reference."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from learners.losses import simpo
from learners.methods.dpo import MultiTurnDPO, Sides
from learners.settings import LearnerConfig, SimPOConfig


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
