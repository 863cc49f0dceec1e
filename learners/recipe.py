"""A recipe: everything a run needs, as typed dataclasses filled from a TOML file.

A table in the file is a dataclass here, a key is a field, and a key that is not one is
an error. The recipes that ship are in `recipes/`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import cattrs
from cattrs.errors import BaseValidationError, IterableValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn, override
from cattrs.v import format_exception

from agents.settings import TinyConfig
from learners.registry import check_used, learner_names, settings_type
from learners.settings import IterateConfig, LearnerConfig, Method, ReferenceMoves, TrainConfig
from mathenv.errors import ConfigError, did_you_mean
from mathenv.settings import Count, CountFrom0, Seed, Share, check_settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ProblemsConfig:
    """Which problems a run uses, and how many for what. Ranges never overlap.

    Args:
        source: a registered name (`words`, `gsm8k`, `math`) or a JSONL path.
        data: local folder or file with the rows; without it the hub is asked.
        demonstrations: training problems whose reference solutions are shown (SFT), or how
            many trajectories of `demonstration_file` are.
        demonstration_file: trajectories to show instead, as `mathenv convert` writes them.
            Wrong ones are skipped; tokens are made with the model's own template.
        direct_share: by level, the share of demonstrations that answer at once, without
            the tool. Data sets hold such solutions; a small model that imitates them guesses.
        prompts: further training problems, answers only, split over the iterations.
        validation: problems that choose checkpoints. Taken from the validation split
            where the source has one, else from the training split.
        test: problems of the reported numbers, never used for a choice.
        seed: which problems are drawn.
    """

    source: str = "words"
    data: str | None = None
    demonstrations: CountFrom0 = 1500
    demonstration_file: str | None = None
    direct_share: dict[str, Share] = field(default_factory=dict)
    prompts: CountFrom0 = 900
    validation: Count = 200
    test: Count = 600
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True)
class Recipe:
    """One experiment, from a base model to a trained policy.

    Args:
        model: a folder or hub id, or "tiny" for the embedded default made on the spot.
        tiny: shape of the embedded model, where it is used.
        sft: supervised fine-tuning on the demonstrations; its last checkpoint starts the loop.
        first_previous: how many checkpoints before the last one of SFT the first mixture's
            second member is (0: the same policy).
        learner: name of the learner, see `learners.learner_names()`.
        methods: settings by learner's name; a learner without an entry has the defaults.
        threads: torch threads; results are repeatable for a fixed number.
        seed: fixes initial weights, order and sampling.
    """

    model: str = "tiny"
    tiny: TinyConfig = field(default_factory=TinyConfig)
    problems: ProblemsConfig = field(default_factory=ProblemsConfig)
    sft: TrainConfig = field(default_factory=TrainConfig)
    first_previous: CountFrom0 = 1
    learner: str = "mdpo"
    iterate: IterateConfig = field(default_factory=IterateConfig)
    methods: dict[str, Method] = field(default_factory=dict)
    threads: Count = 2
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_settings(self)


def load_recipe(name: str | Path) -> Recipe:
    """Load a recipe that ships (by name) or a TOML file (by path).

    Raises:
        ConfigError: there is none, or a key or value in it is wrong; the message says which.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = Path(str(files("learners") / "recipes" / f"{name}.toml"))
    if not path.exists():
        near = did_you_mean(str(name), recipe_names())
        raise ConfigError(
            f"no recipe {name}{near}: give a .toml file or one of {', '.join(recipe_names())}"
        )
    recipe = structured(read_toml(path), Recipe, path)
    for learner in (recipe.learner, *recipe.methods):
        if learner not in learner_names():
            near = did_you_mean(learner, learner_names())
            raise ConfigError(
                f"{path}: no learner is called {learner!r}{near}; there are "
                f"{', '.join(learner_names())}"
            )
    try:
        check_effect(recipe)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return recipe


def check_effect(recipe: Recipe) -> None:
    """Refuse settings that would be read and then do nothing.

    Not part of `Recipe` itself: manifests of runs that had such settings stay readable.

    Raises:
        ConfigError: naming the setting and what to set instead.
    """
    defaults = IterateConfig()
    seeds = (
        ("iterate.seed", recipe.iterate.seed != defaults.seed),
        ("iterate.collect.seed", recipe.iterate.collect.seed != defaults.collect.seed),
    )
    for name, is_set in seeds:
        if is_set:
            raise ConfigError(
                f"{name} would have no effect: `seed` of the recipe (or --seeds) fixes every "
                "random choice of a run"
            )
    for name, method in recipe.methods.items():
        try:
            check_used(name, method.loss)
        except ConfigError as error:
            raise ConfigError(f"methods.{name}.loss: {error}") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Return a file's tables.

    Raises:
        ConfigError: it is no TOML file.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def structured(values: Mapping[str, Any], kind: type[T], where: str | Path) -> T:
    """Return tables as the dataclass `kind`, strictly: what is left out has its default.

    Raises:
        ConfigError: a key or value is wrong; the message says which, and `where`.
    """
    try:
        return _converter().structure(values, kind)
    except BaseValidationError as error:
        problems = cattrs.transform_error(error, format_exception=_explain)
        raise ConfigError(f"{where}: " + "; ".join(problems)) from error


def stored_recipe(values: Mapping[str, Any], where: Path) -> Recipe:
    """Return the recipe that a run's file holds, as that run was played.

    What an earlier version did not know of was as its default is now, but for the protocol:
    such runs were read as the paper's.

    Raises:
        ConfigError: as `structured`.
    """
    iterate = values.get("iterate", {})
    collect = {"protocol": "paper", **iterate.get("collect", {})}
    return structured({**values, "iterate": {**iterate, "collect": collect}}, Recipe, where)


def recipe_names() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in (files("learners") / "recipes").iterdir()
        if entry.name.endswith(".toml")
    )


def _converter() -> cattrs.Converter:
    converter = cattrs.Converter(forbid_extra_keys=True, prefer_attrib_converters=True)
    # cattrs alone would turn 2.7 epochs into 2, any value into text and a text into letters.
    for kind, accepted in ((bool, bool), (int, int), (float, (int, float)), (str, str)):
        converter.register_structure_hook(kind, _strict(accepted))
    converter.register_structure_hook_func(
        lambda kind: kind == tuple[str, ...], partial(_texts, converter)
    )
    converter.register_structure_hook_func(_is_literal, _one_of)
    converter.register_structure_hook_func(
        # With its range or, once cattrs has looked at it, without.
        lambda kind: kind in (ReferenceMoves, int | Literal["last", "first"]),
        lambda value, _: value,
    )  # `IterateConfig` refuses what is wrong
    methods = dict[str, Method]
    converter.register_structure_hook_func(lambda kind: kind == methods, _methods(converter))
    return converter


def _is_literal(kind: Any) -> bool:
    origin: Any = get_origin(kind)
    return origin is Literal


def _methods(converter: cattrs.Converter) -> Callable[[Any, type], dict[str, Method]]:
    """Structure each learner's settings as that learner's own type."""

    def structure(rows: Any, _: type) -> dict[str, Method]:
        found, errors = {}, []
        for name, row in rows.items():
            kind = settings_type(name) if name in learner_names() else LearnerConfig
            hook = partial(_as, converter, kind)
            method = make_dict_structure_fn(
                Method, converter, _cattrs_forbid_extra_keys=True, loss=override(struct_hook=hook)
            )
            try:
                found[name] = method({"loss": {}, **row}, Method)
            except Exception as error:
                error.add_note(IterableValidationNote(f"in {name!r}", name, Method))
                errors.append(error)
        if errors:
            raise IterableValidationError("methods", errors, dict[str, Method])
        return found

    return structure


def _as(converter: cattrs.Converter, kind: type[LearnerConfig], value: Any, _: type) -> Any:
    return converter.structure(value, kind)


def _strict(accepted: type | tuple[type, ...]) -> Callable[[Any, type], Any]:
    def structure(value: Any, kind: type) -> Any:
        if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"{value!r} is not {kind.__name__}")
        return kind(value)

    return structure


def _texts(converter: cattrs.Converter, value: Any, kind: type) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{value!r} is no list of texts")
    return tuple(converter.structure(item, str) for item in value)


def _one_of(value: Any, kind: Any) -> Any:
    if value not in get_args(kind):
        raise ConfigError(f"{value!r} is none of {', '.join(map(repr, get_args(kind)))}")
    return value


def _explain(error: BaseException, kind: type | None) -> str:
    return str(error) if isinstance(error, ConfigError) else format_exception(error, kind)
