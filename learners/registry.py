"""Learners by name: ours, installed ones and those of the running program.

Names and settings of ours are known without importing what computes with torch.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
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
    """Where a learner of ours is, which registers itself when imported, and its settings."""

    module: str
    settings: type[LearnerConfig] = LearnerConfig


OURS = {
    "mdpo": _Ours("learners.dpo"),
    "dpo": _Ours("learners.dpo"),
    "mkto": _Ours("learners.kto", KTOConfig),
    "kto": _Ours("learners.kto", KTOConfig),
    "ipo": _Ours("learners.ipo"),
    "simpo": _Ours("learners.simpo", SimPOConfig),
    "dmpo": _Ours("learners.dmpo", DMPOConfig),
    "stepdpo": _Ours("learners.stepdpo", StepDPOConfig),
    "grpo": _Ours("learners.grpo", GRPOConfig),
    "raft": _Ours("learners.raft"),
    "sft": _Ours("learners.sft"),
}
_REGISTRY: dict[str, Factory] = {}


def register_learner(name: str) -> Callable[[_FactoryT], _FactoryT]:
    """Register a learner class or factory under a name (decorator).

    It is called with its settings, a `LearnerConfig` or, where it has an attribute
    `Config`, that subclass.
    """

    def add(factory: _FactoryT) -> _FactoryT:
        if name in OURS and factory.__module__ != OURS[name].module:
            import_module(OURS[name].module)  # it would replace this one when imported later
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
    if name in OURS and name not in _REGISTRY:
        return OURS[name].settings
    found: type[LearnerConfig] = getattr(find_factory(name), "Config", LearnerConfig)
    return found


def find_factory(name: str) -> Factory:
    """Return what makes a learner of its settings.

    Raises:
        ConfigError: no learner has this name.
    """
    if name in OURS:
        import_module(OURS[name].module)
    if name in _REGISTRY:
        return _REGISTRY[name]
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=name):
        found: Factory = entry.load()
        return found
    raise ConfigError(
        f"no learner is called {name!r}{did_you_mean(name, learner_names())}; there are "
        f"{', '.join(learner_names())}"
    )
