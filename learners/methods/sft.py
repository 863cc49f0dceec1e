"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from learners.learner import BaseLearner, LogProbs, LossOutput
from learners.losses import nll
from learners.preferences import Example, Selection, action_sample, demonstrations
from mathenv.types import Trajectory


class SFT(BaseLearner):
    """Token-mean NLL of demonstrations' action tokens (paper, section 3.1)."""

    name = "sft"
    from_demonstrations = True
    unit = "right"

    def examples(
        self, trajectories: Iterable[Trajectory], *, seed: int
    ) -> tuple[list[Example], Selection]:
        kept, report = demonstrations(trajectories, self.config.pairs)
        return [Example((action_sample(t),)) for t in kept], report

    def loss(self, logps: LogProbs, examples: Sequence[Example]) -> LossOutput:
        targets = logps.policy.new_tensor([e.targets for e in examples])
        losses = nll(logps.policy)
        chosen = logps.policy.detach()
        return LossOutput(losses.sum(), {"logps/chosen": chosen, "nll_loss": -chosen / targets})

    def denominator(self, examples: Sequence[Example]) -> float:
        return float(sum(e.targets for e in examples))
