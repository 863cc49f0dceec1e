"""What is run: one row per variant, each a few changes to the recipe `tiny`.

The paper's numbers stand beside the rows they belong to: Gemma-1.1-it-7B, greedy, one run
each (arXiv 2409.02392 v2, tables 1 to 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from learners.learner import settings_type
from learners.recipe import Recipe, load_recipe
from learners.settings import Method
from mathenv.errors import ConfigError, did_you_mean

BASE = "mdpo"  # the variant that ablations change


@dataclass(frozen=True, slots=True)
class Variant:
    """One row of a table.

    Args:
        group: the table it belongs to.
        name: its folder, and its name in tables.
        about: what it is, in a few words.
        learner: which learner trains.
        changes: settings of the recipe by dotted name, e.g. `iterate.reference`.
        start: share of SFT's checkpoints after which the loop starts; 1 is the end.
        noise: share of interpreter outputs that are corrupted while training data are sampled.
        every: every iteration is tested, not only the last.
        samples: pass@k is measured with as many samples as for SFT, not with few.
        paper: accuracy of the paper's counterpart on (GSM8K, MATH), in percent.
    """

    group: str
    name: str
    about: str
    learner: str = "mdpo"
    changes: Mapping[str, Any] = field(default_factory=dict)
    start: float = 1.0
    noise: float = 0.0
    every: bool = False
    samples: bool = False
    paper: tuple[float, float] | None = None


_ONCE: Mapping[str, Any] = {"iterate.iterations": 1}  # compared with one iteration of M-DPO

GROUPS: Mapping[str, str] = {
    "main": "Methods (table 1)",
    "reference": "Fixed against dynamic reference (tables 1 and 2)",
    "eta": "Strength of the KL penalty (table 2)",
    "noise": "Noisy observations (not in the paper)",
    "nll": "NLL term (table 5)",
    "sampling": "Samples per prompt and mixture (table 3)",
    "sft": "Supervised start (tables 4 and 5)",
    "less-noise": "Less noise (not in the paper)",
}

VARIANTS: tuple[Variant, ...] = (
    Variant("main", BASE, "M-DPO", every=True, samples=True, paper=(83.9, 51.2)),
    Variant(
        "main", "dpo", "single-turn DPO: no observation mask", "dpo", every=True, paper=(81.7, 48.9)
    ),
    Variant("main", "raft", "RAFT", "raft", every=True, paper=(79.2, 47.3)),
    Variant("main", "mkto", "M-KTO", "mkto", every=True, paper=(82.1, 49.5)),
    Variant(
        "main", "kto", "single-turn KTO: no observation mask", "kto", every=True, paper=(80.6, 49.0)
    ),
    Variant(
        "main",
        "mdpo-as-raft",
        "M-DPO with RAFT's rate and epochs",
        changes={"methods.mdpo.train.lr": 1e-4, "methods.mdpo.train.epochs": 2},
        every=True,
    ),
    Variant(
        "reference",
        "mdpo-fixed",
        "the reference stays the SFT policy",
        changes={"iterate.reference": "first"},
        samples=True,
        paper=(79.9, 48.0),
    ),
    Variant(
        "eta",
        "mdpo-eta-0.01",
        "eta 0.01",
        changes={"methods.mdpo.loss.eta": 0.01},
        every=True,
        paper=(81.7, 50.1),
    ),
    Variant(
        "eta",
        "mdpo-eta-0.5",
        "eta 0.5",
        changes={"methods.mdpo.loss.eta": 0.5},
        every=True,
        paper=(82.8, 49.7),
    ),
    Variant("noise", "mdpo-noise-0.3", "M-DPO, 30% of outputs corrupted", changes=_ONCE, noise=0.3),
    Variant(
        "noise",
        "dpo-noise-0.3",
        "single-turn DPO, 30% of outputs corrupted",
        "dpo",
        _ONCE,
        noise=0.3,
    ),
    Variant(
        "nll",
        "mdpo-no-nll",
        "M-DPO without NLL term",
        changes={**_ONCE, "methods.mdpo.loss.nll_coef": 0.0},
    ),
    Variant(
        "nll",
        "dpo-no-nll",
        "single-turn DPO without NLL term",
        "dpo",
        changes={**_ONCE, "methods.dpo.loss.nll_coef": 0.0},
    ),
    Variant(
        "sampling",
        "mdpo-on-policy",
        "6 samples, all of the current policy",
        changes={"iterate.current_samples": 6, "iterate.previous_samples": 0},
        paper=(83.1, 49.5),
    ),
    Variant(
        "sampling",
        "mdpo-n3",
        "3 samples: 2 + 1",
        changes={"iterate.current_samples": 2, "iterate.previous_samples": 1},
        paper=(82.0, 49.2),
    ),
    Variant(
        "sampling",
        "mdpo-n12",
        "12 samples: 8 + 4",
        changes={"iterate.current_samples": 8, "iterate.previous_samples": 4},
        paper=(83.9, 51.2),
    ),
    Variant(
        "sft",
        "mdpo-sft-3",
        "starts after 3 of 8 epochs",
        changes=_ONCE,
        start=0.375,
        paper=(80.6, 46.7),
    ),
    Variant(
        "sft",
        "mdpo-sft-3-no-nll",
        "the same without NLL term",
        changes={**_ONCE, "methods.mdpo.loss.nll_coef": 0.0},
        start=0.375,
    ),
    Variant(
        "sft",
        "mdpo-sft-5",
        "starts after 5 of 8 epochs",
        changes=_ONCE,
        start=0.625,
        paper=(82.4, 49.8),
    ),
    Variant(
        "less-noise",
        "mdpo-noise-0.1",
        "M-DPO, 10% of outputs corrupted",
        changes=_ONCE,
        noise=0.1,
    ),
    Variant(
        "less-noise",
        "dpo-noise-0.1",
        "single-turn DPO, 10% of outputs corrupted",
        "dpo",
        _ONCE,
        noise=0.1,
    ),
)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is sampled and measured.

    Args:
        iterations: rounds of the online loop (paper: 3).
        prompts: training prompts of one iteration.
        validation: problems that decide whether a new policy is kept.
        test: problems of the reported accuracies, greedy.
        ood: problems of `words_ood`, greedy.
        sampled: test problems, the first of `test`, of which samples are drawn.
        samples: samples of each, at the temperature of the collection.
        many: samples of each for SFT and the variants with `samples`.
    """

    iterations: int = 2
    prompts: int = 100
    validation: int = 60
    test: int = 200
    ood: int = 40
    sampled: int = 24
    samples: int = 8
    many: int = 32


QUICK = Sizes(2, prompts=24, validation=10, test=24, ood=8, sampled=8, samples=4, many=8)


def base_recipe(sizes: Sizes, *, quick: bool, threads: int) -> Recipe:
    """Return what variants change: the recipe `tiny`, sized, with settings for M-KTO.

    The recipe has none for M-KTO and its baseline: they get M-DPO's. Batches are half as large,
    so that an iteration of fewer prompts has about as many steps as the rates were tuned for;
    those of M-KTO hold the samples of as many pairs. One checkpoint a stage: validation costs
    more than training. `quick` is SFT of a quarter of the steps.
    """
    recipe = load_recipe("tiny")
    for name in ("mkto", "kto"):
        recipe = override(recipe, {f"methods.{name}": _kto(name, recipe.methods["mdpo"])})
    for name, method in recipe.methods.items():
        size = method.train.batch_size // 2
        changed = replace(method.train, batch_size=size, checkpoints=1)
        recipe = override(recipe, {f"methods.{name}.train": changed})
    return override(
        recipe,
        {
            "problems.prompts": sizes.iterations * sizes.prompts,
            "problems.validation": sizes.validation,
            "problems.test": sizes.test,
            "iterate.iterations": sizes.iterations,
            "threads": threads,
            **({"sft.epochs": 2} if quick else {}),
        },
    )


def recipe_of(variant: Variant, base: Recipe, seed: int) -> Recipe:
    """Return a variant's recipe.

    Raises:
        ConfigError: it changes a setting that there is not.
    """
    return override(base, {**variant.changes, "learner": variant.learner, "seed": seed})


def override(value: Any, changes: Mapping[str, Any]) -> Any:
    """Return a dataclass (or mapping) with settings replaced, by dotted name.

    Raises:
        ConfigError: there is no such setting.
    """
    for name, wanted in changes.items():
        value = _set(value, name.split("."), wanted, name)
    return value


def chosen(only: Sequence[str]) -> tuple[Variant, ...]:
    """Return the variants of these groups (of all without any), in the order they are run.

    Raises:
        ConfigError: there is no such group.
    """
    unknown = sorted(set(only) - set(GROUPS))
    if unknown:
        near = did_you_mean(unknown[0], GROUPS)
        raise ConfigError(f"no group is called {unknown[0]!r}{near}: there are {', '.join(GROUPS)}")
    return tuple(v for v in VARIANTS if not only or v.group in only)


def _set(value: Any, path: Sequence[str], wanted: Any, name: str) -> Any:
    if not path:
        return wanted
    key, *rest = path
    if isinstance(value, Mapping):
        if rest and key not in value:
            raise ConfigError(f"no setting {name}: the recipe has no {key}")
        return {**value, key: _set(value.get(key), rest, wanted, name)}
    if not is_dataclass(value) or key not in {f.name for f in fields(value)}:
        raise ConfigError(f"no setting {name}: there is no {key} in {type(value).__name__}")
    record: Any = value  # `is_dataclass` is also true of types, which `replace` does not take
    return replace(record, **{key: _set(getattr(value, key), rest, wanted, name)})


def _kto(name: str, mdpo: Method) -> Method:
    loss = settings_type(name)(
        eta=mdpo.loss.eta, nll_coef=mdpo.loss.nll_coef, pairs=mdpo.loss.pairs
    )
    return Method(loss, replace(mdpo.train, batch_size=2 * mdpo.train.batch_size))
