"""How long-running code tells its user what happens. Silent by default.

`benchmarks.progress` shows it in a terminal; a test can record it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Report `done` units of `total` (None: as announced), with figures worth showing."""

    def __call__(
        self, done: int, total: int | None = None, figures: Mapping[str, float] | None = None
    ) -> None: ...


class Reporter:
    """Base class that says nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        """Announce a stage; the value takes the number of units done so far."""
        yield _ignore

    def say(self, text: str) -> None:
        """Show one line."""


def _ignore(
    done: int, total: int | None = None, figures: Mapping[str, float] | None = None
) -> None:
    return None
