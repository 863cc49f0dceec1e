"""RAFT: supervised fine-tuning on correct samples of the policy itself."""

from __future__ import annotations

from collections.abc import Iterable

from learners.learner import register_learner
from learners.preferences import Example, Selection, action_sample, winners
from learners.sft import SFT
from mathenv.types import Trajectory


@register_learner("raft")
class RAFT(SFT):
    """Rejection sampling (arXiv 2304.06767): SFT on k correct trajectories per problem."""

    name = "raft"
    from_demonstrations = False
    ignores = ("eta", "nll_coef", "pairs.drop_error_winners")

    def examples(
        self, trajectories: Iterable[Trajectory], *, seed: int
    ) -> tuple[list[Example], Selection]:
        kept, report = winners(trajectories, self.config.pairs, seed=seed)
        return [Example((action_sample(t),)) for t in kept], report
