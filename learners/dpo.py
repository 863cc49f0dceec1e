"""M-DPO and its single-turn baseline. They differ in one thing: the mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from learners.learner import LearnerConfig, LossOutput, register_learner
from learners.losses import dpo, implicit_reward, nll
from learners.preferences import (
    Example,
    Sample,
    Selection,
    action_sample,
    completion_sample,
    preference_pairs,
)
from mathenv.types import Trajectory


@register_learner("mdpo")
class MultiTurnDPO:
    """M-DPO (arXiv 2409.02392, equation 14): DPO on the model's own tokens, all turns."""

    name = "mdpo"
    uses_reference = True
    from_demonstrations = False
    sample: staticmethod[[Trajectory], Sample] = staticmethod(action_sample)

    def __init__(self, config: LearnerConfig) -> None:
        self.config = config

    def examples(
        self, trajectories: Iterable[Trajectory], *, seed: int
    ) -> tuple[list[Example], Selection]:
        pairs, report = preference_pairs(trajectories, self.config.pairs, seed=seed)
        to_sample: Callable[[Trajectory], Sample] = self.sample
        return [Example((to_sample(w), to_sample(r))) for w, r in pairs], report

    def loss(
        self, logps: Tensor, ref_logps: Tensor | None, examples: Sequence[Example]
    ) -> LossOutput:
        assert ref_logps is not None
        chosen, rejected = logps[0::2], logps[1::2]
        ref_chosen, ref_rejected = ref_logps[0::2], ref_logps[1::2]
        losses = dpo(chosen, rejected, ref_chosen, ref_rejected, eta=self.config.eta)
        targets = logps.new_tensor([e.samples[0].targets for e in examples])
        nll_mean = nll(chosen) / targets
        losses = losses + self.config.nll_coef * nll_mean
        with torch.no_grad():
            reward_w = implicit_reward(chosen, ref_chosen, eta=self.config.eta)
            reward_l = implicit_reward(rejected, ref_rejected, eta=self.config.eta)
            metrics = {
                "rewards/chosen": reward_w,
                "rewards/rejected": reward_l,
                "rewards/margins": reward_w - reward_l,
                "rewards/accuracies": (reward_w > reward_l).float(),
                "logps/chosen": chosen.detach(),
                "logps/rejected": rejected.detach(),
                "nll_loss": nll_mean.detach(),
            }
        return LossOutput(losses.sum(), metrics)

    def denominator(self, examples: Sequence[Example]) -> float:
        return float(len(examples))


@register_learner("dpo")
class SingleTurnDPO(MultiTurnDPO):
    """The paper's baseline: everything after the prompt is trained on, observations too."""

    name = "dpo"
    sample = staticmethod(completion_sample)
