"""What a learner is. Read this file first.

A learner says which trajectories it trains on, which tokens of them are targets, and
what the loss of their log-probabilities is. The loop around it is `train`; the online
iteration is `iterate`. Everything that two learners share is not in a learner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from operator import attrgetter
from typing import ClassVar, Protocol, TypeVar

from torch import Tensor

from learners.logprobs import sums
from learners.preferences import Example, PairRules, Sample, Selection
from mathenv.errors import ConfigError
from mathenv.settings import NotNegative, Positive, check_settings
from mathenv.types import Trajectory

ENTRY_POINT_GROUP = "mathenv.learners"


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    """Settings that several learners share. A learner with more has a subclass, its `Config`.

    Args:
        eta: strength of the KL penalty (TRL's `beta`; paper: 0.1).
        nll_coef: weight of the token-mean NLL of the chosen side (paper: 0, an ablation).
            Used by the preference learners.
        pairs: which trajectories may be used, and how many per problem.
    """

    eta: Positive = 0.1
    nll_coef: NotNegative = 0.0
    pairs: PairRules = field(default_factory=PairRules)

    def __post_init__(self) -> None:
        check_settings(self)


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
    ignores: ClassVar[tuple[str, ...]] = ()  # settings of `Config` that have no effect

    def __init__(self, config: LearnerConfig) -> None:
        self.config = config

    def baseline(self, logps: LogProbs, controls: Sequence[Sample]) -> Tensor:
        """Return the log-ratio of policy to reference."""
        policy, reference = logps.policy, logps.reference
        ratios = policy if reference is None else policy - reference
        return sums(ratios, controls) if self.per_token else ratios

    def denominator(self, examples: Sequence[Example]) -> float:
        return float(len(examples))


Factory = Callable[..., Learner]
_FactoryT = TypeVar("_FactoryT", bound=Factory)
_REGISTRY: dict[str, Factory] = {}


def register_learner(name: str) -> Callable[[_FactoryT], _FactoryT]:
    """Register a learner class or factory under a name (decorator).

    It is called with its settings, a `LearnerConfig` or, where it has an attribute
    `Config`, that subclass.
    """

    def add(factory: _FactoryT) -> _FactoryT:
        _REGISTRY[name] = factory
        return factory

    return add


def learner_names() -> tuple[str, ...]:
    """Names that `make_learner` knows, third parties' included."""
    return tuple(sorted({*_REGISTRY, *(e.name for e in entry_points(group=ENTRY_POINT_GROUP))}))


def settings_type(name: str) -> type[LearnerConfig]:
    """Return the dataclass of a learner's settings: `LearnerConfig` or its own subclass.

    Raises:
        ConfigError: no learner has this name.
    """
    return _settings_type(_factory(name))


def make_learner(name: str, config: LearnerConfig | None = None) -> Learner:
    """Build a learner by name: ours, or any in the entry-point group `mathenv.learners`.

    A plain `LearnerConfig` will do for any: what it leaves at a default takes the learner's.

    Raises:
        ConfigError: no learner has this name, or it lacks one of the settings.
    """
    factory = _factory(name)
    wanted = _settings_type(factory)
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
    return factory(config)


def check_used(name: str, config: LearnerConfig) -> None:
    """Refuse settings of a recipe or command that the learner would ignore.

    Code that gives one configuration to all learners may go on doing so.

    Raises:
        ConfigError: naming the setting.
    """
    for path in getattr(_factory(name), "ignores", ()):
        read = attrgetter(path)
        if read(config) != read(type(config)()):
            raise ConfigError(
                f"{path} = {read(config)!r} would have no effect: {name} does not use it; leave "
                "it out"
            )


def _settings_type(factory: Factory) -> type[LearnerConfig]:
    found: type[LearnerConfig] = getattr(factory, "Config", LearnerConfig)
    return found


def _factory(name: str) -> Factory:
    if name in _REGISTRY:
        return _REGISTRY[name]
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            found: Factory = entry.load()
            return found
    raise ConfigError(f"no learner is called {name!r}; there are {', '.join(learner_names())}")
