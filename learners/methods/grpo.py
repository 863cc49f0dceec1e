"""GRPO with the action mask: the online-RL baseline of the same harness."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, stdev
from typing import ClassVar

import torch
from torch import Tensor

from learners.learner import BaseLearner, LogProbs, LossOutput
from learners.losses import clipped_policy_gradient, k3
from learners.preferences import Example, Selection, action_sample, by_problem, on_policy
from learners.settings import GRPOConfig, LearnerConfig
from mathenv.types import Trajectory


class GRPO(BaseLearner):
    """Group-relative policy optimisation (arXiv 2402.03300) on the model's own tokens.

    The old policy is the one that began the stage, which sampled: its log-probs are
    evaluated by the trainer before the first step, for a sampler's own differ from the
    trainer's by more than rounding. So the ratio of the first step is 1.
    """

    name = "grpo"
    unit = "sample"
    uses_start = True
    per_token = True
    Config: ClassVar[type[LearnerConfig]] = GRPOConfig
    config: GRPOConfig

    def __init__(self, config: GRPOConfig) -> None:
        super().__init__(config)
        self.uses_reference = config.kl_coef > 0

    def examples(
        self, trajectories: Iterable[Trajectory], *, seed: int
    ) -> tuple[list[Example], Selection]:
        report = Selection()
        groups = by_problem(trajectories, self.config.pairs, report)
        examples: list[Example] = []
        for group in on_policy(groups, self.config.agent, report).values():
            rewards = [t.reward for t in group]
            if len(set(rewards)) < 2:  # no sample is better than another
                report.all_right += 1.0 in rewards
                report.all_wrong += 0.0 in rewards
                report.unusable += not rewards
                continue
            report.problems_used += 1
            for trajectory, advantage in zip(group, self._advantages(rewards), strict=True):
                examples.append(Example((action_sample(trajectory),), score=advantage))
                side = "chosen" if advantage > 0 else "rejected"
                report.provenance.append({side: trajectory.key})
        report.examples = len(examples)
        return examples, report

    def _advantages(self, rewards: Sequence[float]) -> list[float]:
        scale = stdev(rewards) + 1e-4 if self.config.scale else 1.0  # 1e-4 as in TRL
        return [(r - fmean(rewards)) / scale for r in rewards]

    def loss(self, logps: LogProbs, examples: Sequence[Example]) -> LossOutput:
        assert logps.start is not None
        policy, start = logps.policy, logps.start
        counts = torch.tensor([e.targets for e in examples], device=policy.device)
        advantages = policy.new_tensor([e.score for e in examples]).repeat_interleave(counts)
        low, high = self.config.clip_low, self.config.clip_high
        losses = clipped_policy_gradient(policy, start, advantages, clip_low=low, clip_high=high)
        with torch.no_grad():
            ratio = (policy - start).exp()
            clipped = (ratio < 1 - low) & (advantages < 0) | (ratio > 1 + high) & (advantages > 0)
        per_token = {"clip_ratio/region_mean": clipped.to(policy)}
        if logps.reference is not None:
            kl = k3(policy, logps.reference)
            losses = losses + self.config.kl_coef * kl
            per_token["kl"] = kl.detach()
        if self.config.average == "sequence":
            losses = losses / counts.repeat_interleave(counts)
        sums = _by_example(policy.detach(), counts)
        good = policy.new_tensor([e.score for e in examples]) > 0
        metrics = {key: _by_example(value, counts) / counts for key, value in per_token.items()}
        metrics |= {"logps/chosen": sums[good], "logps/rejected": sums[~good]}
        return LossOutput(losses.sum(), metrics)

    def denominator(self, examples: Sequence[Example]) -> float:
        if self.config.average == "sequence":
            return float(len(examples))
        return float(sum(e.targets for e in examples))


def _by_example(values: Tensor, counts: Tensor) -> Tensor:
    """Sum token values over each example. Shapes: (tokens,), (n,) to (n,)."""
    rows = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return values.new_zeros(len(counts)).index_add(0, rows, values)
