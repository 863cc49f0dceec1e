"""Supervised fine-tuning, and RAFT, which is the same loss on self-generated winners."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from learners.learner import LearnerConfig, LossOutput, register_learner
from learners.losses import nll
from learners.preferences import Example, Selection, action_sample, demonstrations, winners
from mathenv.types import Trajectory


@register_learner("sft")
class SFT:
    """Token-mean NLL of demonstrations' action tokens (paper, section 3.1)."""

    name = "sft"
    uses_reference = False
    from_demonstrations = True

    def __init__(self, config: LearnerConfig) -> None:
        self.config = config

    def examples(
        self, trajectories: Iterable[Trajectory], *, seed: int
    ) -> tuple[list[Example], Selection]:
        kept, report = demonstrations(trajectories, self.config.pairs)
        return [Example((action_sample(t),)) for t in kept], report

    def loss(
        self, logps: Tensor, ref_logps: Tensor | None, examples: Sequence[Example]
    ) -> LossOutput:
        targets = logps.new_tensor([e.targets for e in examples])
        losses = nll(logps)
        chosen = logps.detach()
        return LossOutput(losses.sum(), {"logps/chosen": chosen, "nll_loss": -chosen / targets})

    def denominator(self, examples: Sequence[Example]) -> float:
        return float(sum(e.targets for e in examples))


@register_learner("raft")
class RAFT(SFT):
    """Rejection-sampling fine-tuning: SFT on correct sampled trajectories, k per problem."""

    name = "raft"
    from_demonstrations = False

    def examples(
        self, trajectories: Iterable[Trajectory], *, seed: int
    ) -> tuple[list[Example], Selection]:
        kept, report = winners(trajectories, self.config.pairs, seed=seed)
        return [Example((action_sample(t),)) for t in kept], report
