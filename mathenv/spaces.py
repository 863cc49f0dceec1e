"""The space of questions, turns and interpreter outputs: any Unicode string."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from gymnasium.spaces import Space
from gymnasium.vector.utils import create_empty_array
from gymnasium.wrappers.utils import create_zero_array

from mathenv.errors import ConfigError, whole

# What `sample` draws from. Short on purpose: samples only have to be valid members.
_SAMPLE_CHARS = np.array(list(string.printable))
_SAMPLE_LENGTH = 64


class UnicodeText(Space[str]):
    """All `str` values of at most `max_length` characters, the empty one included.

    `gymnasium.spaces.Text` needs its character set listed: the default refuses spaces
    and backslashes, and a full-Unicode one takes 3 s to build and pickles to 46 MB. This
    space holds one integer. Vector environments batch it as a tuple of strings; it has no
    shared-memory form, so `AsyncVectorEnv` needs `shared_memory=False` and says so
    (`Text` returns garbage there instead).
    """

    def __init__(
        self, max_length: int = 1_000_000, *, seed: int | np.random.Generator | None = None
    ) -> None:
        if seed is not None and not isinstance(seed, np.random.Generator):
            seed = whole("seed", seed, 0)
        super().__init__(seed=seed)
        self.max_length = whole("max_length", max_length, 0)

    @property
    def is_np_flattenable(self) -> bool:
        """False: text has no fixed-size array form."""
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """Return up to 64 printable ASCII characters, drawn uniformly."""
        if mask is not None or probability is not None:
            raise ConfigError("UnicodeText.sample() takes neither a mask nor probabilities")
        length = int(self.np_random.integers(min(self.max_length, _SAMPLE_LENGTH) + 1))
        return "".join(self.np_random.choice(_SAMPLE_CHARS, size=length))

    def contains(self, x: Any) -> bool:
        """Return whether `x` is a `str` that is short enough."""
        return isinstance(x, str) and len(x) <= self.max_length

    def to_jsonable(self, sample_n: Iterable[str]) -> list[str]:
        """Return the samples as a list: strings are JSON already."""
        return list(sample_n)

    def from_jsonable(self, sample_n: list[Any]) -> list[str]:
        """Return the samples that `to_jsonable` wrote."""
        return list(sample_n)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and self.max_length == other.max_length

    def __hash__(self) -> int:
        return hash((UnicodeText, self.max_length))

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"


def _empty_text(space: UnicodeText) -> str:
    """What wrappers fill up with that need an observation before there is one."""
    return ""


def _empty_batch(
    space: UnicodeText, n: int | None = 1, fn: Callable[..., np.ndarray] = np.zeros
) -> Any:
    """A member of the batched space, or of the space itself without `n`."""
    return "" if n is None else ("",) * n


create_zero_array.register(UnicodeText, _empty_text)
create_empty_array.register(UnicodeText, _empty_batch)
