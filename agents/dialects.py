"""How families of chat models write a conversation: data, in `dialects.toml`.

A model whose own template cannot be used is given a dialect by name. A model whose own
template writes what a dialect writes has that dialect, and thereby its stop tokens and stop
strings: it is recognised by what it renders, not by the model's name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from mathenv.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Dialect:
    """One row of the table: its template (Jinja), the tokens it needs, and what ends a turn."""

    name: str
    models: str
    template: str
    control_tokens: tuple[str, ...]
    stop_tokens: tuple[str, ...]
    stop_strings: tuple[str, ...]


@cache
def dialects() -> Mapping[str, Dialect]:
    """Return the table by name."""
    data = tomllib.loads(files("agents").joinpath("dialects.toml").read_text(encoding="utf-8"))
    return {
        name: Dialect(
            name=name,
            models=row["models"],
            template=data["templates"][row["template"]].strip(),
            control_tokens=tuple(row["control_tokens"]),
            stop_tokens=tuple(row["stop_tokens"]),
            stop_strings=tuple(row["stop_strings"]),
        )
        for name, row in data["dialects"].items()
    }


def find_dialect(name: str) -> Dialect:
    """Return a dialect by name, with an error that lists what there is."""
    try:
        return dialects()[name]
    except KeyError:
        near = did_you_mean(name, dialects())
        raise ConfigError(
            f"no dialect is called {name!r}{near}: use {', '.join(dialects())}"
        ) from None
