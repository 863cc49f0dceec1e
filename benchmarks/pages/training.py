"""What training did with trajectories: which tokens it trained, and how far they moved.

Needs torch (extra `train`); the rest of the page does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from agents.models.hf import load_causal_lm, load_tokenizer
from agents.rendering import ChatRenderer
from benchmarks.pages.sources import SeedFolder
from learners.learner import make_learner, settings_type
from learners.numerics.logprobs import reference_logps
from learners.preferences import Example, PairRules, Sample
from learners.training.checkpoint import read_manifest, step_folders
from learners.training.records import RESULT
from mathenv.errors import MathEnvError
from mathenv.store import read_object
from mathenv.types import Trajectory

_TOKEN_BUDGET = 1024  # padded tokens of a forward pass: small batches stay in the cache
_LARGEST = 2 * 2**30  # bytes of weights: more would take minutes per policy on a CPU


@dataclass(frozen=True, slots=True)
class Training:
    """One iteration's training.

    `masks` has the trained positions by trajectory key, for all that were trained on.
    `ratios` has `log pi(token) - log pi_ref(token)` at those positions, natural logarithm, for
    some of them. `policy` and `reference` name the two models; `note` says what is missing.
    """

    masks: Mapping[str, Sequence[bool]] = field(default_factory=dict)
    ratios: Mapping[str, Sequence[float]] = field(default_factory=dict)
    policy: str = ""
    reference: str = ""
    eta: float | None = None
    note: str = ""


def training_of(
    seed: SeedFolder, learner: str, number: int, episodes: Sequence[Trajectory], examples: int
) -> Training:
    """Repeat an iteration's selection and measure the first `examples` of its examples.

    The selection is a pure function of the trajectories and of what the checkpoint's manifest
    holds, so the masks are those of the training.
    """
    checkpoints = step_folders(seed.path / learner / f"iteration-{number}" / "train")
    if not checkpoints:
        return Training(note="no checkpoint yet")
    manifest = read_manifest(checkpoints[-1][1])
    try:
        found = _examples(manifest, episodes)
    except (MathEnvError, KeyError, TypeError) as error:
        return Training(note=f"what was trained on cannot be found again ({error})")
    samples = {s.key: s for example in found for s in example.samples}
    training = Training(
        masks={key: sample.mask for key, sample in samples.items()},
        eta=manifest["loss"].get("eta") if manifest.get("reference") else None,
    )
    policy, note = _chosen(seed.path / learner / f"iteration-{number}", checkpoints)
    reference = _resolve(seed, learner, manifest.get("reference") or manifest.get("policy"))
    if reference is None:
        return replace(training, note="the reference model's checkpoint is not in the run")
    if max(_weights(policy), _weights(reference)) > _LARGEST:
        return replace(training, note="the models are too large to be run for a page")
    shown = list({s.key: s for e in found[:examples] for s in e.samples}.values())
    return replace(
        training,
        ratios=_log_ratios(policy, reference, shown),
        policy=_short(policy),
        reference=_short(reference),
        note=note,
    )


def with_tokens(seed: SeedFolder, demonstrations: Sequence[Trajectory]) -> list[Trajectory]:
    """Return demonstrations with their tokens as SFT rendered them."""
    checkpoints = step_folders(seed.path / "sft" / "train")
    if not checkpoints:
        return list(demonstrations)
    renderer = ChatRenderer(load_tokenizer(checkpoints[-1][1]))
    return [
        replace(t, tokens=renderer.record_turns(t.problem.question, t.turns))
        for t in demonstrations
    ]


def _examples(manifest: Mapping[str, Any], episodes: Sequence[Trajectory]) -> list[Example]:
    loss = dict(manifest["loss"])
    loss["pairs"] = PairRules(**loss["pairs"])
    learner = make_learner(manifest["learner"], settings_type(manifest["learner"])(**loss))
    return learner.examples(episodes, seed=manifest["seed"])[0]


def _chosen(iteration: Path, checkpoints: Sequence[tuple[int, Path]]) -> tuple[Path, str]:
    """Return the checkpoint that the iteration chose, or the last where it chose none."""
    last = checkpoints[-1][1]
    file = iteration / RESULT
    remedy = "remove it, and the same `mathenv iterate` chooses a checkpoint again"
    name = read_object(file, remedy).get("policy") if file.is_file() else None
    named = {path.name: path for _, path in checkpoints}
    if name in named:
        return named[name], ""
    why = "the policy before it was kept" if name else "none is chosen yet"
    return last, f"ratios are of the last checkpoint: {why}"


def _resolve(seed: SeedFolder, learner: str, name: str | None) -> Path | None:
    """Find a checkpoint by its name in a manifest: the last three parts of its path."""
    places = [seed.path / name, seed.path / learner / name] if name else []
    return next((place for place in places if place.is_dir()), None)


def _weights(checkpoint: Path) -> int:
    return sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))


def _short(path: Path) -> str:
    return "/".join(path.parts[-3:])


def _log_ratios(policy: Path, reference: Path, samples: Sequence[Sample]) -> dict[str, list[float]]:
    if not samples:
        return {}
    disable_progress_bar()  # transformers' own, two for every iteration
    plain = [Example((replace(s, weights=()),)) for s in samples]
    new, old = (
        reference_logps(load_causal_lm(p), plain, budget=_TOKEN_BUDGET, per_token=True)
        for p in (policy, reference)
    )
    keyed = [example.samples[0] for example in plain]
    return {s.key: (new[s] - old[s]).tolist() for s in keyed}
