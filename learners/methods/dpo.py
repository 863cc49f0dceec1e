"""M-DPO, its single-turn baseline, and what every learner of pairs has in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learners.learner import BaseLearner, LogProbs, LossOutput
from learners.losses import dpo, implicit_reward, nll, preferred
from learners.preferences import (
    Example,
    Sample,
    Selection,
    action_sample,
    completion_sample,
    pair_example,
    preference_pairs,
)
from mathenv.types import Trajectory


@dataclass(frozen=True, slots=True)
class Sides:
    """Both sides of n pairs. Log-probs are sums over targets; shapes (n,).

    Without a reference model `ref_chosen` and `ref_rejected` are zero.
    """

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_targets: Tensor
    rejected_targets: Tensor

    @staticmethod
    def of(logps: LogProbs, examples: Sequence[Example]) -> Sides:
        policy = logps.policy
        reference = torch.zeros_like(policy) if logps.reference is None else logps.reference
        targets = policy.new_tensor([s.targets for e in examples for s in e.samples])
        return Sides(*(side for x in (policy, reference, targets) for side in (x[0::2], x[1::2])))


class MultiTurnDPO(BaseLearner):
    """M-DPO (arXiv 2409.02392, equation 14): DPO on the model's own tokens, all turns.

    Other learners of pairs override `pair_losses`, `rewards` or `sample`.
    """

    name = "mdpo"
    uses_reference = True

    def sample(self, trajectory: Trajectory) -> Sample:
        """Say which tokens are targets."""
        return action_sample(trajectory)

    def pair_losses(self, sides: Sides) -> Tensor:
        """Return one loss per pair, shape (n,)."""
        return dpo(
            sides.chosen,
            sides.rejected,
            sides.ref_chosen,
            sides.ref_rejected,
            eta=self.config.eta,
        )

    def rewards(self, logps: Tensor, ref_logps: Tensor, targets: Tensor) -> Tensor:
        """Return the implicit reward of one side, for the metrics."""
        return implicit_reward(logps, ref_logps, eta=self.config.eta)

    def examples(
        self, trajectories: Iterable[Trajectory], *, seed: int
    ) -> tuple[list[Example], Selection]:
        pairs, report = preference_pairs(trajectories, self.config.pairs, seed=seed)
        return [pair_example(w, r, self.sample) for w, r in pairs], report

    def loss(self, logps: LogProbs, examples: Sequence[Example]) -> LossOutput:
        sides = Sides.of(logps, examples)
        nll_mean = nll(sides.chosen) / sides.chosen_targets
        losses = self.pair_losses(sides) + self.config.nll_coef * nll_mean
        with torch.no_grad():
            reward_w = self.rewards(sides.chosen, sides.ref_chosen, sides.chosen_targets)
            reward_l = self.rewards(sides.rejected, sides.ref_rejected, sides.rejected_targets)
            metrics = {
                "rewards/chosen": reward_w,
                "rewards/rejected": reward_l,
                "rewards/margins": reward_w - reward_l,
                "rewards/accuracies": preferred(reward_w, reward_l),
                "logps/chosen": sides.chosen.detach(),
                "logps/rejected": sides.rejected.detach(),
                "nll_loss": nll_mean.detach(),
            }
        return LossOutput(losses.sum(), metrics)


class SingleTurnDPO(MultiTurnDPO):
    """The paper's baseline: everything after the prompt is trained on, observations too."""

    name = "dpo"

    def sample(self, trajectory: Trajectory) -> Sample:
        return completion_sample(trajectory)
