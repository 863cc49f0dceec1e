"""`mathenv iterate` and `mathenv demo`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.agent_options import InterpreterName
from learners.recipe import Recipe, load_recipe
from mathenv.env import SandboxTier
from mathenv.settings import Seed, check_settings

_DEFAULT_RECIPE = "tiny"


@dataclass(frozen=True, slots=True)
class Iterate:
    """Run the online loop of a recipe: SFT, then sample, grade, pair, train, again.

    Everything goes into one run folder. A run that was stopped goes on when the same
    command is given again. Several learners start from the same SFT policy and are
    compared on the same test problems.

    Args:
        recipe: a recipe that ships (tiny, mistral-7b-v0.3, ...) or a TOML file; flags below
            override it.
        out: the run folder.
        learners: which learners to run (default: the recipe's): mdpo, dpo, raft, sft, ...
        seeds: seeds to run (default: the recipe's).
        interpreter: what runs the code, this machine's sandbox or Docker (default: the
            recipe's).
        min_tier: refuse to run code in a weaker sandbox than this (default: the recipe's).
        wandb: log to Weights and Biases (`WANDB_MODE=offline` keeps it on this machine).
        settings: the recipe's own settings.
    """

    recipe: str = _DEFAULT_RECIPE
    out: Path = Path("runs/iterate")
    learners: tuple[str, ...] = ()
    seeds: tuple[Seed, ...] = ()
    interpreter: InterpreterName | None = None
    min_tier: SandboxTier | None = None
    wandb: bool = False
    settings: Annotated[Recipe, tyro.conf.arg(name="")] = field(
        default_factory=lambda: load_recipe(_DEFAULT_RECIPE)
    )

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def defaults(cls, words: list[str]) -> Iterate:
        """Return what flags override: the settings of the recipe named in `words`."""
        recipe = _DEFAULT_RECIPE
        for index, word in enumerate(words):
            if word == "--recipe" and index + 1 < len(words):
                recipe = words[index + 1]
            elif word.startswith("--recipe="):
                recipe = word.removeprefix("--recipe=")
        return cls(recipe=recipe, settings=load_recipe(recipe))


@dataclass(frozen=True, slots=True)
class Demo:
    """The whole method in minutes on two CPU cores: SFT, then three iterations of M-DPO.

    A tiny model is made on the spot and learns to solve word problems with Python. Nothing
    is downloaded.

    Args:
        out: the run folder.
        seed: fixes every random choice.
        interpreter: what runs the code, this machine's sandbox or Docker.
        min_tier: refuse to run code in a weaker sandbox than this (default: any that works).
        wandb: log to Weights and Biases (`WANDB_MODE=offline` keeps it on this machine).
    """

    out: Path = Path("runs/demo")
    seed: Seed = 0
    interpreter: InterpreterName = "local"
    min_tier: SandboxTier | None = None
    wandb: bool = False

    def __post_init__(self) -> None:
        check_settings(self)
