"""Weights and Biases as a reporter: off unless asked for, offline with WANDB_MODE=offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from learners.recipe import Recipe
from learners.reporter import Advance, Reporter
from mathenv.errors import ConfigError


class WandbReporter(Reporter):
    """Passes everything on to `inner` and logs figures as `<stage>/<metric>`.

    Raises:
        ConfigError: wandb is not installed.
    """

    def __init__(self, inner: Reporter, folder: Path, recipe: Recipe) -> None:
        try:
            wandb = import_module("wandb")
        except ImportError as error:
            raise ConfigError("wandb is not installed: pip install 'mathenv[wandb]'") from error
        folder.mkdir(parents=True, exist_ok=True)
        self._inner = inner
        self._run = wandb.init(project="mathenv", dir=str(folder), config=asdict(recipe))

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        with self._inner.stage(name, total, unit) as inner:

            def advance(
                done: int, total: int | None = None, figures: Mapping[str, float] | None = None
            ) -> None:
                inner(done, total, figures)
                if figures:
                    self._run.log({f"{name}/{key}": value for key, value in figures.items()})

            yield advance

    def say(self, text: str) -> None:
        self._inner.say(text)

    def close(self) -> None:
        """Finish the run; what was logged is on disk or sent."""
        self._run.finish()
