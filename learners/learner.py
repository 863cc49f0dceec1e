"""What a learner is. Read this file first.

A learner says which trajectories it trains on, which tokens of them are targets, and
what the loss of summed log-probabilities is. The loop around it is `train`; the online
iteration is `iterate`. Everything that two learners share is not in a learner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Protocol, TypeVar

from torch import Tensor

from learners.preferences import Example, PairRules, Selection
from mathenv.errors import ConfigError
from mathenv.types import Trajectory

ENTRY_POINT_GROUP = "mathenv.learners"


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    """Settings a learner may use.

    Args:
        eta: strength of the KL penalty (TRL's `beta`; paper: 0.1). Used by dpo and mdpo.
        nll_coef: weight of the token-mean NLL of the chosen side (paper: 0, an ablation).
            Used by dpo and mdpo.
        pairs: which trajectories may be used, and how many per problem.
    """

    eta: float = 0.1
    nll_coef: float = 0.0
    pairs: PairRules = field(default_factory=PairRules)


@dataclass(frozen=True, slots=True)
class LossOutput:
    """`loss` is a sum, divided by the learner's denominator; metrics are means' parts.

    `metrics` holds detached per-example values, shape (n,), under TRL's names.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class Learner(Protocol):
    """A preference learner or baseline.

    `from_demonstrations` learners (SFT) are given demonstrations, the others what the
    agents sampled.
    """

    name: str
    uses_reference: bool
    from_demonstrations: bool
    config: LearnerConfig  # written into every checkpoint's manifest

    def examples(
        self, trajectories: Iterable[Trajectory], *, seed: int
    ) -> tuple[list[Example], Selection]: ...

    def loss(
        self, logps: Tensor, ref_logps: Tensor | None, examples: Sequence[Example]
    ) -> LossOutput:
        """Return the summed loss of a micro-batch.

        `logps` and `ref_logps` have one value per sample, in the order of
        `[s for e in examples for s in e.samples]`.
        """
        ...

    def denominator(self, examples: Sequence[Example]) -> float:
        """What one optimizer step's summed loss is divided by (pairs, or tokens)."""
        ...


Factory = Callable[[LearnerConfig], Learner]
_FactoryT = TypeVar("_FactoryT", bound=Factory)
_REGISTRY: dict[str, Factory] = {}


def register_learner(name: str) -> Callable[[_FactoryT], _FactoryT]:
    """Register a learner class or factory under a name (decorator)."""

    def add(factory: _FactoryT) -> _FactoryT:
        _REGISTRY[name] = factory
        return factory

    return add


def learner_names() -> tuple[str, ...]:
    """Names that `make_learner` knows, third parties' included."""
    return tuple(sorted({*_REGISTRY, *(e.name for e in entry_points(group=ENTRY_POINT_GROUP))}))


def make_learner(name: str, config: LearnerConfig | None = None) -> Learner:
    """Build a learner by name: ours, or any in the entry-point group `mathenv.learners`.

    Raises:
        ConfigError: no learner has this name.
    """
    factory = _REGISTRY.get(name)
    if factory is None:
        for entry in entry_points(group=ENTRY_POINT_GROUP):
            if entry.name == name:
                factory = entry.load()
    if factory is None:
        raise ConfigError(f"no learner is called {name!r}; there are {', '.join(learner_names())}")
    return factory(config or LearnerConfig())
