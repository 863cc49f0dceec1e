"""Learners by name: ours, installed ones and those of the running program.

Names and settings of ours are known without importing what computes with torch.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from learners.settings import (
    DMPOConfig,
    GRPOConfig,
    KTOConfig,
    LearnerConfig,
    SimPOConfig,
    StepDPOConfig,
)
from mathenv.errors import ConfigError, did_you_mean

ENTRY_POINT_GROUP = "mathenv.learners"

Factory = Callable[..., Any]  # of a `learners.learner.Learner`
_FactoryT = TypeVar("_FactoryT", bound=Factory)


class _Ours(NamedTuple):
    """Where a learner of ours is, MODULE:CLASS, its settings, and those without an effect."""

    place: str
    settings: type[LearnerConfig] = LearnerConfig
    ignores: tuple[str, ...] = ()


_NO_PAIRS = ("eta", "nll_coef", "pairs.drop_error_winners")  # nothing is compared with a loser


OURS = {
    "mdpo": _Ours("learners.methods.dpo:MultiTurnDPO"),
    "dpo": _Ours("learners.methods.dpo:SingleTurnDPO"),
    "mkto": _Ours("learners.methods.kto:MultiTurnKTO", KTOConfig),
    "kto": _Ours("learners.methods.kto:SingleTurnKTO", KTOConfig),
    "ipo": _Ours("learners.methods.ipo:IPO"),
    "simpo": _Ours("learners.methods.simpo:SimPO", SimPOConfig),
    "dmpo": _Ours("learners.methods.dmpo:DMPO", DMPOConfig),
    "stepdpo": _Ours("learners.methods.stepdpo:StepDPO", StepDPOConfig),
    "grpo": _Ours("learners.methods.grpo:GRPO", GRPOConfig, (*_NO_PAIRS, "pairs.per_problem")),
    "raft": _Ours("learners.methods.raft:RAFT", ignores=_NO_PAIRS),
    "sft": _Ours("learners.methods.sft:SFT", ignores=(*_NO_PAIRS, "pairs.per_problem")),
}
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
    installed = (entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))
    return tuple(sorted({*OURS, *_REGISTRY, *installed}))


def settings_type(name: str) -> type[LearnerConfig]:
    """Return the dataclass of a learner's settings: `LearnerConfig` or its own subclass.

    Raises:
        ConfigError: no learner has this name.
    """
    if name in OURS and name not in _REGISTRY:  # without importing it
        return OURS[name].settings
    found: type[LearnerConfig] = getattr(find_factory(name), "Config", LearnerConfig)
    return found


def check_used(name: str, config: LearnerConfig) -> None:
    """Refuse settings of a recipe or command that the learner would ignore.

    Code that gives one configuration to all learners may go on doing so.

    Raises:
        ConfigError: naming the setting.
    """
    if name in OURS and name not in _REGISTRY:
        ignored = OURS[name].ignores
    else:
        ignored = getattr(find_factory(name), "ignores", ())
    for path in ignored:
        read = attrgetter(path)
        if read(config) != read(type(config)()):
            raise ConfigError(
                f"{path} = {read(config)!r} would have no effect: {name} does not use it; leave "
                "it out"
            )


def find_factory(name: str) -> Factory:
    """Return what makes a learner of its settings.

    Raises:
        ConfigError: no learner has this name.
    """
    if name in _REGISTRY:
        return _REGISTRY[name]
    if name in OURS:
        module, _, learner = OURS[name].place.partition(":")
        ours: Factory = getattr(import_module(module), learner)
        return ours
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        found: Factory = entry.load()
        return found
    raise ConfigError(
        f"no learner is called {name!r}{did_you_mean(name, learner_names())}; there are "
        f"{', '.join(learner_names())}"
    )
