"""IPO over the model's own tokens: a squared loss that does not push the margin to infinity."""

from __future__ import annotations

from torch import Tensor

from learners.losses import ipo
from learners.methods.dpo import MultiTurnDPO, Sides


class IPO(MultiTurnDPO):
    """IPO (arXiv 2310.12036, equation 17) with the action mask. `eta` is the paper's tau."""

    name = "ipo"

    def pair_losses(self, sides: Sides) -> Tensor:
        chosen = (sides.chosen - sides.ref_chosen) / sides.chosen_targets
        rejected = (sides.rejected - sides.ref_rejected) / sides.rejected_targets
        return ipo(chosen, rejected, eta=self.config.eta)
