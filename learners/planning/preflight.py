"""What a machine lacks to run a recipe, found before hours are spent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch

from agents.policy import EngineOptions
from learners.planning.costs import GB, state_bytes
from learners.planning.plan import setup_of
from learners.planning.shapes import shape_of
from learners.recipe import ProblemsConfig, Recipe
from learners.settings import Method, TrainConfig
from learners.training.lora import PEFT, lacks_peft
from mathenv.errors import ConfigError, install_hint


def require(recipe: Recipe, learners: Sequence[str] = ()) -> None:
    """Check data, engine and memory for `learners`, or for the recipe's own.

    Raises:
        ConfigError: something is missing; the message names all of it.
    """
    lacking = [
        *_missing_data(recipe.problems),
        *_missing_engine(recipe.iterate.engine),
        *_missing_peft(recipe, learners),
        *_missing_memory(recipe, _memory(), learners),
    ]
    if lacking:
        raise ConfigError(
            f"this machine lacks what the recipe for {recipe.model} needs: {'; '.join(lacking)}. "
            "Its file says which data it expects, `mathenv plan` which GPUs would do"
        )


def _missing_data(problems: ProblemsConfig) -> list[str]:
    found = []
    source = Path(problems.source)
    if "/" in problems.source and not source.exists():
        found.append(f"no problems at {source} (a folder with train.jsonl and test.jsonl)")
    file = problems.demonstration_file
    if file and not Path(file).exists():
        found.append(f"no demonstrations at {file} (mathenv convert makes them)")
    return found


def _missing_engine(engine: EngineOptions) -> list[str]:
    found = []
    if engine.kind == "vllm" and find_spec("vllm") is None:
        found.append(f"the package vllm ({install_hint('vllm')})")
    on_gpu = engine.kind == "transformers" and engine.device.startswith("cuda")
    if on_gpu and not torch.cuda.is_available():
        found.append(f"a GPU for its engine on {engine.device}")
    return found


def _missing_peft(recipe: Recipe, learners: Sequence[str] = ()) -> list[str]:
    return [PEFT] if any(lacks_peft(config.lora) for config in _configs(recipe, learners)) else []


def _configs(recipe: Recipe, learners: Sequence[str]) -> list[TrainConfig]:
    """Return how each stage trains: SFT, and those of the learners that will run."""
    methods = [recipe.methods.get(name, Method()) for name in learners or (recipe.learner,)]
    return [recipe.sft, *(method.train for method in methods)]


def _missing_memory(recipe: Recipe, available: float, learners: Sequence[str] = ()) -> list[str]:
    """Compare bytes: weights, gradients and AdamW alone, less than any training needs."""
    try:
        shape = shape_of(recipe)
    except ConfigError:  # a model whose shape is not known is not judged
        return []
    needed = max(state_bytes(shape, setup_of(config)) for config in _configs(recipe, learners))
    if needed <= available:
        return []
    return [
        f"{needed / GB:.0f} GB of memory for the weights, gradients and optimizer of "
        f"{shape.parameters / 1e9:.2f} billion parameters (there are {available / GB:.0f} GB)"
    ]


def _memory() -> float:
    """Return bytes of main memory or of all GPUs together, whichever is more."""
    main = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpus = range(torch.cuda.device_count())
    return max(main, sum(torch.cuda.get_device_properties(i).total_memory for i in gpus))
