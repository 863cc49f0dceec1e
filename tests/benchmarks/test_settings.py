"""Every number that a recipe or a flag fills has a declared range: a new one without fails here."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from typing import Any, get_args, get_type_hints

import pytest

from agents.distributed import RayConfig
from benchmarks.agent_options import Member
from benchmarks.cli import COMMANDS
from benchmarks.pages.data import PageOptions
from learners.learner import LearnerConfig, learner_names, make_learner, settings_type
from learners.recipe import Recipe
from mathenv.errors import ConfigError
from mathenv.settings import Count, NotNegative, numbers_in


def inside(kind: type) -> Iterator[type]:
    """Yield a dataclass and those in its fields, at any depth."""
    yield kind
    for hint in get_type_hints(kind).values():
        for part in (hint, *get_args(hint)):
            if is_dataclass(part) and isinstance(part, type):
                yield from inside(part)


ROOTS: list[type] = [
    Recipe,
    RayConfig,
    Member,
    PageOptions,
    *(settings_type(name) for name in learner_names()),
    *(getattr(import_module(c.module), c.type_name) for c in COMMANDS.values()),
]
KINDS = sorted({kind for root in ROOTS for kind in inside(root)}, key=lambda k: k.__qualname__)
NUMBERS = [
    (kind, name)
    for kind in KINDS
    for name, hint in get_type_hints(kind, include_extras=True).items()
    if any(numbers_in(hint))
]


def test_the_walk_reaches_everything():
    names = {f"{kind.__name__}.{name}" for kind, name in NUMBERS}
    assert {"TrainConfig.lr", "LoRA.rank", "PairRules.per_problem", "Bench.n"} <= names
    assert {"TinyConfig.heads", "SamplingParams.top_p", "GRPOConfig.clip_low"} <= names
    assert len(names) > 90


@pytest.mark.parametrize(("kind", "name"), NUMBERS, ids=lambda x: getattr(x, "__name__", x))
def test_every_number_has_a_range(kind: type, name: str):
    hint = get_type_hints(kind, include_extras=True)[name]
    assert all(bounds is not None for _, bounds in numbers_in(hint)), f"{kind.__name__}.{name}"


def test_every_kind_checks_itself():
    """A number of each kind is set to NaN, which is in no range."""
    unchecked = []
    for kind in {kind for kind, _ in NUMBERS}:
        name = next(n for k, n in NUMBERS if k is kind)
        values: dict[str, Any] = {f.name: None for f in fields(kind) if f.init and _required(f)}
        hint = get_type_hints(kind)[name]
        bad = (float("nan"),) if "tuple" in str(hint) else float("nan")
        try:
            kind(**{**values, name: bad})
        except ConfigError as error:
            if name not in str(error):
                unchecked.append((kind, name, error))
        else:
            unchecked.append((kind, name, None))
    assert not unchecked


def _required(option: Any) -> bool:
    from dataclasses import MISSING

    return option.default is MISSING and option.default_factory is MISSING


def test_settings_of_a_learner_from_elsewhere_are_checked_too():
    @dataclass(frozen=True, slots=True)
    class Config(LearnerConfig):
        width: NotNegative = 1.0
        steps: Count = 1

        def __post_init__(self) -> None:
            """Replaces the check of the base class."""

    class Mine:
        def __init__(self, config: Any) -> None:
            self.config = config

    Mine.Config = Config  # type: ignore[attr-defined]
    from learners import registry

    registry.register_learner("mine-of-the-test")(Mine)  # type: ignore[arg-type]
    try:
        with pytest.raises(ConfigError, match="eta must be more than 0"):
            make_learner("mine-of-the-test", Config(eta=-1.0))
    finally:
        del registry._REGISTRY["mine-of-the-test"]
