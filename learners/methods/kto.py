"""M-KTO and its single-turn baseline: single trajectories, labelled good or bad."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from learners.learner import BaseLearner, LogProbs, LossOutput
from learners.losses import implicit_reward, kto, nll, off_policy_k3
from learners.numerics.logprobs import sums
from learners.preferences import (
    Example,
    Sample,
    Selection,
    action_sample,
    by_problem,
    completion_sample,
    on_policy,
    preference_pairs,
    prompt,
)
from learners.settings import KTOConfig, LearnerConfig
from mathenv.errors import TrainingError
from mathenv.types import Trajectory


class MultiTurnKTO(BaseLearner):
    """M-KTO (arXiv 2409.02392, equation 15): KTO on the model's own tokens, all turns.

    The samples are those of the pairs that M-DPO would have, as in the paper. z0 is a mean
    over the control samples, detached and at least 0.
    """

    name = "mkto"
    unit = "side"
    uses_reference = True
    Config: ClassVar[type[LearnerConfig]] = KTOConfig
    config: KTOConfig

    def __init__(self, config: KTOConfig) -> None:
        super().__init__(config)
        self.controls = 0 if config.kl == "none" else config.kl_sequences
        self.per_token = self.uses_start = config.kl == "on_policy"  # see `baseline`

    def sample(self, trajectory: Trajectory) -> Sample:
        """Say which tokens are targets."""
        return action_sample(trajectory)

    def examples(
        self, trajectories: Iterable[Trajectory], *, seed: int
    ) -> tuple[list[Example], Selection]:
        stored = list(trajectories)
        pairs, report = preference_pairs(stored, self.config.pairs, seed=seed)
        labelled = [(t, t is winner) for winner, loser in pairs for t in (winner, loser)]
        report.examples = len(labelled)
        report.provenance = [{"chosen" if good else "rejected": t.key} for t, good in labelled]
        controls = self._controls([t for t, _ in labelled], stored, seed)
        return [
            Example((self.sample(t),), float(good), control)
            for (t, good), control in zip(labelled, controls, strict=True)
        ], report

    def _controls(
        self, used: Sequence[Trajectory], stored: Sequence[Trajectory], seed: int
    ) -> Sequence[Sample | None]:
        """Return one control sample for each trajectory used, for the same problem."""
        if self.config.kl == "none" or not used:
            return [None] * len(used)
        if self.config.kl == "mismatched":
            return [self._mismatched(used, i) for i in range(len(used))]
        groups = by_problem(stored, self.config.pairs, Selection())
        own = on_policy(groups, self.config.agent, Selection())
        every = [t for group in own.values() for t in group]
        drawn = (random.Random(f"{seed}/{t.key}").choice(own[t.problem.id] or every) for t in used)
        # Not `self.sample`: observations were not drawn from a policy, and their log-probs
        # say nothing about a KL.
        return [action_sample(t) for t in drawn]

    def _mismatched(self, used: Sequence[Trajectory], index: int) -> Sample:
        """The prompt of one trajectory with the completion of the next of another problem.

        Every second one is looked at, so that good and bad completions stay equally many.
        """
        mine = used[index]
        after = (used[(index + step) % len(used)] for step in range(2, len(used), 2))
        other = next((t for t in after if t.problem.id != mine.problem.id), None)
        if other is None:
            raise TrainingError(
                f"{mine.key}: no other problem has a pair, so there is no completion to mismatch "
                'its prompt with. Sample more problems, or set kl = "on_policy" or "none"'
            )
        sample, begin, cut = self.sample(other), prompt(mine), len(prompt(other))
        ids = (*begin, *sample.ids[cut:])
        mask = (*(False for _ in begin), *sample.mask[cut:])
        return Sample(f"{mine.problem.id}|{other.key}", ids, mask, fingerprint=sample.fingerprint)

    def baseline(self, logps: LogProbs, controls: Sequence[Sample]) -> Tensor:
        """Return what z0 is the mean of: docs/theory.md, M-KTO.

        The policy that began the stage sampled the on-policy controls. Unweighted, their
        log-ratio is 0 or less in the mean where that policy is the reference.
        """
        if self.config.kl != "on_policy":
            return super().baseline(logps, controls)
        assert logps.reference is not None
        assert logps.start is not None
        return sums(off_policy_k3(logps.policy, logps.reference, logps.start), controls)

    def loss(self, logps: LogProbs, examples: Sequence[Example]) -> LossOutput:
        policy, reference = logps.policy, logps.reference
        assert reference is not None
        if self.per_token:
            samples = [s for e in examples for s in e.samples]
            policy, reference = sums(policy, samples), sums(reference, samples)
        zero = torch.zeros((), dtype=policy.dtype, device=policy.device)
        z0 = zero if logps.baseline is None else logps.baseline.detach().clamp(min=0)
        good = torch.tensor([e.score > 0 for e in examples], device=policy.device)
        losses = kto(
            policy,
            reference,
            good,
            eta=self.config.eta,
            z0=z0,
            desirable_weight=self.config.desirable_weight,
            undesirable_weight=self.config.undesirable_weight,
        )
        nll_mean = nll(policy) / policy.new_tensor([e.targets for e in examples])
        losses = losses + self.config.nll_coef * nll_mean * good
        with torch.no_grad():
            rewards = implicit_reward(policy, reference, eta=self.config.eta)
            metrics = {
                "rewards/chosen": rewards[good],
                "rewards/rejected": rewards[~good],
                "logps/chosen": policy[good].detach(),
                "logps/rejected": policy[~good].detach(),
                "nll_loss": nll_mean[good].detach(),
                "kl": z0.expand(len(examples)),
            }
        return LossOutput(losses.sum(), metrics)


class SingleTurnKTO(MultiTurnKTO):
    """The paper's baseline: everything after the prompt is trained on, observations too."""

    name = "kto"

    def sample(self, trajectory: Trajectory) -> Sample:
        return completion_sample(trajectory)
