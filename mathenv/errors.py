"""The one error tree. A broken program raises; a bad episode is data (see `types.StopReason`)."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


class MathEnvError(Exception):
    """Base class: something the user can act on. The message says what to do."""


class ConfigError(MathEnvError):
    """A recipe, flag or argument is wrong."""


class DataError(MathEnvError):
    """A file or row cannot be used. The message names the file and the row."""


class StorageError(MathEnvError, OSError):
    """A file or folder cannot be made or written: no room, no permission. Names the path.

    What was written before is whole. Also an `OSError`, as whoever writes files expects.
    """


class InfraError(MathEnvError):
    """The machinery failed (sandbox, engine, grader), not the model.

    Never turned into a wrong answer: the episode ends with `StopReason.INFRA`.
    """


class RenderError(MathEnvError):
    """A chat template cannot be rendered so that tokens stay exact."""


class TrainingError(MathEnvError):
    """Training data or state that would train on the wrong thing."""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """Return ` (did you mean 'sft'?)` for a word that is nearly one of the names, else nothing."""
    lower = {name.lower(): name for name in names}
    near = get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f" (did you mean {lower[near[0]]!r}?)" if near else ""


def install_hint(extra: str) -> str:
    """Return how to install what an extra of `pyproject.toml` names.

    From the source alone: the project called mathenv on a package index need not be this one.
    """
    return f'pip install -e ".[{extra}]" in the folder of this project\'s source'


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return `value` as an `int`: any kind of integer is one, NumPy's too, but not True and False.

    Raises:
        ConfigError: it is none, or not within the bounds.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    low, high = least is not None, most is not None
    bounds = f" from {least} to {most}" if high else f" of at least {least}" if low else ""
    if (
        number is None
        or isinstance(value, bool)
        or (least is not None and number < least)
        or (most is not None and number > most)
    ):
        raise ConfigError(f"{name} must be an integer{bounds}, got {value!r}")
    return number
