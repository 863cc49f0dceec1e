"""Weights and Biases as a reporter: off unless asked for, offline with WANDB_MODE=offline.

One output folder is one run there: a resumed command goes on with it. Offline each start writes a
file of its own, and `wandb sync` puts those of one run together.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from learners.reporter import Advance, Reporter
from mathenv.errors import ConfigError, install_hint
from mathenv.files import writing
from mathenv.store import write_atomic

_ID = "wandb-id"
_OFFLINE = "With WANDB_MODE=offline it keeps the run on this machine, for `wandb sync` later"
_NEEDS_NO_KEY = ("offline", "dryrun", "disabled", "shared")


def check_login() -> None:
    """Refuse to begin work that is to be logged where wandb knows no key; asks nobody anything.

    Raises:
        ConfigError: wandb is not installed, or has no key.
    """
    wandb = _wandb()
    mode = os.environ.get("WANDB_MODE") or wandb.setup().settings.mode
    if mode in _NEEDS_NO_KEY:
        return
    try:
        known = wandb.login(prompt=False)
    except (wandb.errors.Error, ValueError) as error:
        raise ConfigError(f"Weights and Biases refuses the key: {error}. {_OFFLINE}") from error
    if not known:
        raise ConfigError(
            f"Weights and Biases has no key here: `wandb login`, or set WANDB_API_KEY. {_OFFLINE}"
        )


def _wandb() -> Any:
    try:
        return import_module("wandb")
    except ImportError as error:
        raise ConfigError(f"wandb is not installed: {install_hint('wandb')}") from error


class WandbReporter(Reporter):
    """Passes everything on to `inner` and logs it.

    A stage's figures are `<stage>/<metric>` over `<stage>/step`, whose name says which seed and
    learner it is of; what is said (selections, diagnoses) are texts under `remark`.

    Args:
        inner: also told.
        folder: the output folder; its `wandb-id` names the run.
        settings: a dataclass, the run's configuration.

    Raises:
        ConfigError: wandb is not installed, or does not let us in.
    """

    def __init__(self, inner: Reporter, folder: Path, settings: Any) -> None:
        wandb = _wandb()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        file = folder / _ID
        if not file.exists():
            write_atomic(file, secrets.token_hex(4) + "\n")
        self._inner = inner
        try:
            self._run = wandb.init(
                project="mathenv",
                dir=str(folder),
                config=json.loads(json.dumps(asdict(settings), default=str)),
                id=file.read_text().strip(),
                resume="allow",
            )
        except wandb.errors.Error as error:  # no connection, no permission
            raise ConfigError(f"Weights and Biases cannot be used: {error}. {_OFFLINE}") from error

    @contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator[Advance]:
        # Its own steps: a curve of wandb's count would begin where the stage before it ended, and
        # a resumed stage would not lie on its first steps.
        self._run.define_metric(f"{name}/*", step_metric=f"{name}/step")
        with self._inner.stage(name, total, unit) as inner:

            def advance(
                done: int, total: int | None = None, figures: Mapping[str, float] | None = None
            ) -> None:
                inner(done, total, figures)
                if figures:
                    row = {f"{name}/{key}": value for key, value in figures.items()}
                    self._run.log({f"{name}/step": done, **row})

            yield advance

    def say(self, text: str) -> None:
        self._inner.say(text)
        self._run.log({"remark": text})

    def close(self) -> None:
        """Finish the run; what was logged is on disk or sent."""
        self._run.finish()
