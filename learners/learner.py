"""What a learner is. Read this file first.

A learner says which trajectories it trains on, which tokens of them are targets, and
what the loss of their log-probabilities is. The loop around it is `train`; the online
iteration is `iterate`. Everything that two learners share is not in a learner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

from torch import Tensor

from learners.numerics.logprobs import sums
from learners.preferences import Example, Sample, Selection
from learners.registry import find_factory, learner_names, register_learner, settings_type
from learners.settings import LearnerConfig
from mathenv.errors import ConfigError
from mathenv.settings import check_settings
from mathenv.types import Trajectory

__all__ = [
    "BaseLearner",
    "Learner",
    "LearnerConfig",
    "LogProbs",
    "LossOutput",
    "learner_names",
    "make_learner",
    "register_learner",
    "settings_type",
]


@dataclass(frozen=True, slots=True)
class LogProbs:
    """What a loss is a function of. Natural logarithms; only `policy` has a gradient.

    Shape `(n,)`: one sum per sample, in the order of `[s for e in examples for s in
    e.samples]`. For a learner with `per_token` one value per target token, sample after
    sample.

    Args:
        policy: of the model in training.
        reference: of the reference model, where the learner uses one.
        start: of the policy that began the stage (PPO's "old"), where the learner uses it.
        baseline: mean of the learner's `baseline` over this step's control samples, a scalar,
            where the learner has any (z0 of M-KTO before it is clamped).
    """

    policy: Tensor
    reference: Tensor | None = None
    start: Tensor | None = None
    baseline: Tensor | None = None


@dataclass(frozen=True, slots=True)
class LossOutput:
    """`loss` is a sum, divided by the learner's denominator; metrics are means' parts.

    `metrics` holds detached values under TRL's names, shape (m,) with m <= examples: one
    per example that has such a value.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class Learner(Protocol):
    """A preference learner or baseline.

    Attributes:
        config: written into every checkpoint's manifest.
        uses_reference: a reference model's log-probs are given to the loss.
        uses_start: so are those of the policy that began the stage.
        per_token: log-probs come one per target token instead of summed.
        controls: how many of the examples' control samples are evaluated without gradient
            for each step's baseline, over all devices. 0: no baseline.
        from_demonstrations: given demonstrations (SFT), not what the agents sampled.
        unit: what an example is, by which a plan counts them: a "pair", one "side" of a pair,
            a "right" trajectory, or any "sample" of the current policy, of problems with right
            and wrong ones. Only a pair has two sequences.
    """

    name: str
    uses_reference: bool
    uses_start: bool
    per_token: bool
    controls: int
    from_demonstrations: bool
    unit: str

    @property
    def config(self) -> LearnerConfig: ...

    def examples(
        self, trajectories: Iterable[Trajectory], *, seed: int
    ) -> tuple[list[Example], Selection]: ...

    def baseline(self, logps: LogProbs, controls: Sequence[Sample]) -> Tensor:
        """Return one value per control sample, whose mean is the step's baseline."""
        ...

    def loss(self, logps: LogProbs, examples: Sequence[Example]) -> LossOutput:
        """Return the summed loss of a micro-batch."""
        ...

    def denominator(self, examples: Sequence[Example]) -> float:
        """What one optimizer step's summed loss is divided by (pairs, or tokens)."""
        ...


class BaseLearner:
    """The defaults of a `Learner`; a learner overrides what differs."""

    Config: ClassVar[type[LearnerConfig]] = LearnerConfig
    uses_reference = False
    uses_start = False
    per_token = False
    controls = 0
    from_demonstrations = False
    unit = "pair"
    ignores: ClassVar[tuple[str, ...]] = ()  # settings of `Config` without effect (`OURS`: ours)

    def __init__(self, config: LearnerConfig) -> None:
        self.config = config

    def baseline(self, logps: LogProbs, controls: Sequence[Sample]) -> Tensor:
        """Return the log-ratio of policy to reference."""
        policy, reference = logps.policy, logps.reference
        ratios = policy if reference is None else policy - reference
        return sums(ratios, controls) if self.per_token else ratios

    def denominator(self, examples: Sequence[Example]) -> float:
        return float(len(examples))


def make_learner(name: str, config: LearnerConfig | None = None) -> Learner:
    """Build a learner by name: ours, or any in the entry-point group `mathenv.learners`.

    A plain `LearnerConfig` will do for any: what it leaves at a default takes the learner's.

    Raises:
        ConfigError: no learner has this name, or it lacks one of the settings.
    """
    wanted = settings_type(name)
    if config is None:
        config = wanted()
    elif type(config) is not wanted:
        values = [(f.name, getattr(config, f.name)) for f in fields(config)]
        given = {k: v for k, v in values if v != getattr(type(config)(), k)}
        foreign = given.keys() - {f.name for f in fields(wanted)}
        if foreign:
            raise ConfigError(f"{name} has no setting called {', '.join(sorted(foreign))}")
        config = wanted(**given)
    check_settings(config)  # again, for a `Config` with a `__post_init__` of its own
    learner: Learner = find_factory(name)(config)
    return learner
