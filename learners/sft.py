"""Supervised fine-tuning on demonstrations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from learners.learner import BaseLearner, LogProbs, LossOutput, register_learner
from learners.losses import nll
from learners.preferences import Example, Selection, action_sample, demonstrations
from mathenv.types import Trajectory


@register_learner("sft")
class SFT(BaseLearner):
    """Token-mean NLL of demonstrations' action tokens (paper, section 3.1)."""

    name = "sft"
    from_demonstrations = True
    unit = "right"
    ignores: ClassVar[tuple[str, ...]] = (
        "eta",
        "nll_coef",
        "pairs.per_problem",
        "pairs.drop_error_winners",
    )

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
