"""Which values a numeric setting may have: declared at its field, checked in one place.

    @dataclass(frozen=True, slots=True)
    class Config:
        lr: Positive = 1e-5
        seeds: tuple[Seed, ...] = ()

        def __post_init__(self) -> None:
            check_settings(self)

A value outside of its range is a `ConfigError` that names setting, value and range, whether it came
from a recipe, a flag or Python. NaN is in no range, infinity only where it is said to be.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from numbers import Integral, Real
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from mathenv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Range:
    """The values from `low` to `high`, without an end where it is said to be open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False
    infinite: bool = False  # whether infinity itself is a value: no limit, no deadline

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        return above and below and (value not in (math.inf, -math.inf) or self.infinite)

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f"{'more than' if self.low_open else 'at least'} {self.low:g}")
        if self.high < math.inf:
            parts.append(f"{'less than' if self.high_open else 'at most'} {self.high:.12g}")
        return " and ".join(parts) or "a finite number"


FINITE = Range()
MOST_SEED = 2**32 - 1  # what numpy's, torch's and vLLM's generators all take

Count = Annotated[int, Range(1)]
CountFrom0 = Annotated[int, Range(0)]  # 0: none, or off
Seed = Annotated[int, Range(0, MOST_SEED)]
DerivedSeed = Annotated[int, Range(0, 2**63 - 1)]  # of `agents.llm.derive_seed`
Positive = Annotated[float, Range(0, low_open=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(0, 1, low_open=True)]
ShareBelow1 = Annotated[float, Range(0, 1, high_open=True)]
PositiveOrInf = Annotated[float, Range(0, low_open=True, infinite=True)]  # `inf`: no limit
Finite = Annotated[float, FINITE]


def check_settings(config: Any) -> None:
    """Check the numbers of a dataclass against the ranges of its fields.

    Raises:
        ConfigError: naming setting, value and range.
    """
    kind: Any = type(config)
    for name, hint in _hints(kind):
        _check(name, getattr(config, name), hint)


def numbers_in(hint: Any) -> Iterator[tuple[type, Range | None]]:
    """Yield every kind of number in a type with its range, None where none is declared."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = next((note for note in arguments[1:] if isinstance(note, Range)), None)
        for kind, declared in numbers_in(arguments[0]):
            yield kind, declared or bounds
    elif hint in (int, float):
        yield hint, None
    elif origin is not None:
        for argument in arguments:
            yield from numbers_in(argument)


@lru_cache(maxsize=256)
def _hints(kind: Any) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(kind, include_extras=True)
    named = [(field.name, hints[field.name]) for field in fields(kind)]
    return tuple((name, hint) for name, hint in named if any(numbers_in(hint)))


def _check(name: str, value: Any, hint: Any) -> None:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if isinstance(value, Real) and not isinstance(value, bool):
            hint = next(argument for argument in arguments if any(numbers_in(argument)))
            _check(name, value, hint)
        return
    if isinstance(value, Mapping) and origin is not Annotated:
        for key, item in value.items():
            _check(f"{name}[{key}]", item, arguments[1])
    elif origin is tuple and isinstance(value, tuple):
        for item in value:
            _check(name, item, arguments[0])
    else:
        for kind, bounds in numbers_in(hint):
            _check_number(name, value, kind, bounds or FINITE)


def _check_number(name: str, value: Any, kind: type, bounds: Range) -> None:
    # What stands for "not given yet" while flags are read is no number, and is left alone.
    wanted: Any = Integral if kind is int else Real
    if type(value).__module__.startswith("tyro"):
        return
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise ConfigError(f"{name} must be a {'whole ' * (kind is int)}number, not {value!r}")
    if value not in bounds:
        finite = "" if bounds.infinite or math.isfinite(value) else "finite, and "
        raise ConfigError(f"{name} must be {finite}{bounds}, not {value}")
