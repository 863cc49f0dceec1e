"""`mathenv plan`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from mathenv.settings import Count, check_settings


@dataclass(frozen=True, slots=True)
class PlanCommand:
    """Say what a recipe needs on given GPUs: memory per GPU and time of each stage.

    An estimate from model shapes and published speeds; nothing is loaded. It ends with exit
    code 2 where something does not fit, and says what would.

    Args:
        recipe: a recipe that ships, or a TOML file.
        gpus: how many of which: 8xA100-80G, H200-141G, 2xRTX4090-24G, ...
        learner: plan for this learner instead of the recipe's.
        interpreter_cores: CPU cores that run the model's code (default: as many as needed).
        json: print JSON instead of tables.
    """

    recipe: Annotated[str, tyro.conf.Positional]
    gpus: str
    learner: str | None = None
    interpreter_cores: Count | None = None
    json: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
