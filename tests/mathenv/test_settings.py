import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pytest

from mathenv.errors import ConfigError
from mathenv.settings import (
    Count,
    NotNegative,
    PositiveOrInf,
    Seed,
    Share,
    ShareBelow1,
    check_settings,
    numbers_in,
)


@dataclass(frozen=True)
class Config:
    count: Count = 1
    rate: NotNegative = 0.0
    deadline: PositiveOrInf = math.inf
    seeds: tuple[Seed, ...] = ()
    betas: tuple[ShareBelow1, ShareBelow1] = (0.9, 0.99)
    shares: dict[str, Share] = field(default_factory=dict)
    limit: Count | None = None
    moves: Count | Literal["last"] = "last"
    free: float = 0.0
    flag: bool = True
    text: str = ""

    def __post_init__(self) -> None:
        check_settings(self)


GOOD = [
    {"count": np.int64(3), "rate": 2},
    {"seeds": (0, 2**32 - 1), "shares": {"1": 0.0, "2": 1}, "limit": 5, "moves": 3},
    {"free": -7.5, "deadline": 0.1},
]
BAD = [
    ({"count": 0}, "count must be at least 1, not 0"),
    ({"count": 2.0}, "count must be a whole number, not 2.0"),
    ({"count": True}, "count must be a whole number, not True"),
    ({"count": "3"}, "count must be a whole number, not '3'"),
    ({"count": None}, "count must be a whole number, not None"),
    ({"rate": -1e-9}, "rate must be at least 0, not -1e-09"),
    ({"rate": math.nan}, "rate must be finite, and at least 0, not nan"),
    ({"rate": math.inf}, "rate must be finite, and at least 0, not inf"),
    ({"deadline": 0}, "deadline must be more than 0, not 0"),
    ({"deadline": math.nan}, "deadline must be more than 0, not nan"),
    ({"seeds": (1, -1)}, "seeds must be at least 0 and at most 4294967295, not -1"),
    ({"betas": (0.9, 1.0)}, "betas must be at least 0 and less than 1, not 1.0"),
    ({"shares": {"a": 1.5}}, r"shares\[a\] must be at least 0 and at most 1, not 1.5"),
    ({"limit": 0}, "limit must be at least 1, not 0"),
    ({"moves": -2}, "moves must be at least 1, not -2"),
    ({"free": -math.inf}, "free must be finite, and a finite number, not -inf"),
]


@pytest.mark.parametrize("values", GOOD)
def test_what_is_in_range(values):
    assert Config(**values)


@pytest.mark.parametrize(("values", "message"), BAD)
def test_what_is_not(values, message):
    with pytest.raises(ConfigError, match=message):
        Config(**values)


def test_numbers_of_a_type():
    assert [bounds for _, bounds in numbers_in(tuple[int, Count] | None)] == [
        None,
        Count.__metadata__[0],
    ]
    assert not list(numbers_in(bool | str | None))
