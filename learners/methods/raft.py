"""RAFT: supervised fine-tuning on correct samples of the policy itself."""

from __future__ import annotations

from collections.abc import Iterable

from learners.methods.sft import SFT
from learners.preferences import Example, Selection, action_sample, winners
from mathenv.types import Trajectory


class RAFT(SFT):
    """Rejection sampling (arXiv 2304.06767): SFT on k correct trajectories per problem."""

    name = "raft"
    from_demonstrations = False

    def examples(
        self, trajectories: Iterable[Trajectory], *, seed: int
    ) -> tuple[list[Example], Selection]:
        kept, report = winners(trajectories, self.config.pairs, seed=seed)
        return [Example((action_sample(t),)) for t in kept], report
