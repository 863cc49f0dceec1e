"""One stage of training: examples and a learner in, `step-N` checkpoint folders out.

Deterministic for a seed and a number of threads and processes. Killed at any moment and
started again, with as many processes or others, it goes on from the last complete checkpoint
and ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.dialects import dialects
from agents.models.hf import load_tokenizer
from agents.rendering import ChatRenderer
from learners.learner import Learner
from learners.numerics.model_check import check_lengths, note_experts
from learners.preferences import Example, Sample
from learners.settings import TrainConfig
from learners.training.checkpoint import (
    check_finished,
    load_state,
    read_manifest,
    save_checkpoint,
    step_folders,
)
from learners.training.launch import processes_for, run_together
from learners.training.loop import Frozen, Loop, Metrics
from learners.training.lora import adapters_off, load_trained
from learners.training.parallel import Devices, Policy, autocast, shares
from learners.training.records import log_until
from learners.training.reference import frozen_logps
from learners.training.schedule import batches, count_steps, save_steps
from mathenv.errors import DataError, RenderError, TrainingError
from mathenv.files import writing
from mathenv.locking import hold
from mathenv.manifest import environment
from mathenv.store import write_atomic

__all__ = ["Metrics", "Stage", "TrainConfig", "train"]

OnStep = Callable[[int, int, Metrics], None]

# How a step is computed, not which: a run may go on with others of these.
_HOW = ("processes", "recompute_every", "shard")


# Without these a checkpoint's `trainer.pt` is none of ours.
_STATE_PARTS = frozenset({"optimizer", "manifest"})


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of the loop: from `policy`, against `reference`, into `out`.

    `cache` keeps the log-probs of policies that are not trained, for other runs too. Left
    out: `reference.sqlite` in `out`.
    """

    policy: Path
    out: Path
    reference: Path | None = None
    seed: int = 0
    cache: Path | None = None


def train(
    learner: Learner,
    examples: Sequence[Example],
    config: TrainConfig,
    stage: Stage,
    *,
    on_step: OnStep | None = None,
) -> list[Path]:
    """Train and return the checkpoint folders, first to last.

    Under `accelerate launch` or `torchrun` every process calls this with the same arguments.
    The first of them writes, and calls `on_step`. Otherwise `config.processes` are started,
    where it is more than one.

    Raises:
        TrainingError: no examples, a missing reference, tokens of another tokenizer or beyond
            the model's positions, or log-probs or a loss that are not finite.
        ConfigError: another run is in the folder. DataError: a file in it is damaged, or a
            checkpoint unfinished. InfraError: the disk is full.
    """
    if not examples:
        raise TrainingError(
            f"{learner.name} has nothing to train on: it was given no example. "
            "`preferences.why_none` says why a selection has none"
        )
    count = processes_for(config.processes)
    if count == 1:
        with Devices().holding(stage.out), writing(stage.out):
            _train(learner, examples, config, stage, on_step)
    else:
        given = (learner, examples, config, stage)
        with hold(stage.out):
            run_together(count, _train, *given, on_message=on_step or _ignore)
    return [path for _, path in step_folders(stage.out)]


def _train(
    learner: Learner,
    examples: Sequence[Example],
    config: TrainConfig,
    stage: Stage,
    on_step: OnStep | None,
) -> None:
    steps = count_steps(len(examples), config)
    run = _Run(learner, config, stage, steps, data_hash(examples), Devices())
    run.check(examples)
    frozen = run.frozen(examples) if run.done < steps else Frozen()
    saves = save_steps(steps, config.checkpoints)
    plan = list(batches(examples, config, stage.seed))
    # All tokens up to a step, as TRL counts them: from the plan, so that a resumed run knows.
    seen = list(accumulate(sum(e.tokens for e in batch) for batch in plan))
    for step in range(run.done + 1, steps + 1):
        metrics = run.loop.step(step, plan[step - 1], frozen)
        metrics["num_tokens"] = seen[step - 1]
        if run.devices.is_main:
            run.log(step, metrics)
            if on_step is not None:
                on_step(step, steps, metrics)
        if step in saves:
            run.save(step)


def _ignore(*step: object) -> None:
    return None


class _Run:
    """The state of one stage: model, optimizer and how far it got."""

    def __init__(
        self,
        learner: Learner,
        config: TrainConfig,
        stage: Stage,
        steps: int,
        data_hash: str,
        devices: Devices,
    ) -> None:
        self._learner, self._config, self._stage, self.devices = learner, config, stage, devices
        self._manifest = {
            "learner": learner.name,
            "loss": asdict(learner.config),
            "config": _plain(config),
            "policy": _name(stage.policy),
            "reference": _name(stage.reference) if learner.uses_reference else None,
            "seed": stage.seed,
            "steps": steps,
            "data": data_hash,
        }
        finished = step_folders(stage.out)
        self.done = finished[-1][0] if finished else 0
        source = finished[-1][1] if finished else stage.policy
        self._check_agreed()
        devices.together(partial(self._check_folders, *(path for _, path in finished)))
        self._tokenizer = load_tokenizer(source)
        checkpoint = source if finished else None
        model = load_trained(stage.policy, checkpoint, config.lora, seed=stage.seed)
        note_experts(model.config, stage.policy)
        self._policy = Policy(model, devices, config)
        self._optimizer = torch.optim.AdamW(
            self._policy.parameters,
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.loop = Loop(
            learner, self._policy, self._optimizer, devices, config, seed=stage.seed, steps=steps
        )
        if finished:
            self._resume(source)
        devices.together(self._trim_log)

    def _check_folders(self, *checkpoints: Path) -> None:
        """Refuse damaged or unfinished folders before anything is loaded from them."""
        for path in (self._stage.policy, self._stage.reference, *checkpoints):
            if path is not None and self.devices.is_main:
                check_finished(path)

    def _check_agreed(self) -> None:
        """Refuse processes that would not train the same, or not go on from the same step."""
        mine = json.dumps([self._manifest, self.done])
        if len(set(self.devices.gather(mine))) > 1:
            raise TrainingError(
                f"the processes that train {self._stage.out} were given different data or "
                "settings, or do not see the same files: all need one folder and one command"
            )

    def _resume(self, source: Path) -> None:
        state = load_state(source, _STATE_PARTS)
        if _comparable(state["manifest"]) != _comparable(self._manifest):
            raise TrainingError(
                f"{self._stage.out} was trained with other data or settings; "
                "remove the folder or start a new run folder"
            )
        told = read_manifest(source)
        made = json.loads(json.dumps(state["manifest"]))
        if told and (told.get("step"), *(told.get(k) for k in made)) != (self.done, *made.values()):
            raise DataError(
                f"{source}/manifest.json and trainer.pt beside it are of two runs, which wrote "
                "into this folder at the same time: remove that folder, and the same command "
                "goes on from the checkpoint before it"
            )
        try:
            self._optimizer.load_state_dict(self._policy.part(state["optimizer"]))
            if state.get("scaler"):
                self.loop.scaler.load_state_dict(state["scaler"])
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(
                f"{source} holds an optimizer's state that is not this model's ({error}): remove "
                "that folder to go on from the checkpoint before it"
            ) from error

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse tokens that another tokenizer or template made, and too many of them."""
        every = [s for e in examples for s in (*e.samples, e.control) if s]
        check_lengths(self._policy.model.config, every, self._stage.policy)
        known = _fingerprints(self._tokenizer)
        seen = {""}
        vocabulary = self._policy.model.get_input_embeddings().num_embeddings
        for sample in (s for e in examples for s in e.samples):
            while sample.fingerprint not in seen:
                found = next(known, None)
                if found is None:
                    raise TrainingError(
                        f"{sample.key} was sampled with another tokenizer or chat template than "
                        f"{self._stage.policy} has: its tokens would mean something else"
                    )
                seen.add(found)
            if max(sample.ids) >= vocabulary:
                raise TrainingError(
                    f"{sample.key} holds token {max(sample.ids)}, but {self._stage.policy} knows "
                    f"{vocabulary}: it was sampled with another tokenizer"
                )

    def frozen(self, examples: Sequence[Example]) -> Frozen:
        """Log-probs of the reference model and the old policy, before the first step."""
        learner, stage = self._learner, self._stage
        if learner.uses_reference and stage.reference is None:
            raise TrainingError(f"{learner.name} needs a reference model")
        controls = [e.control for e in examples if e.control]
        reference = self._shared(stage.reference, examples) if learner.uses_reference else None
        start = self._shared(stage.policy, examples) if learner.uses_start else None
        return Frozen(reference, start, controls)

    def _shared(self, path: Path | None, examples: Sequence[Example]) -> dict[Sample, Tensor]:
        """Return the log-probs of all examples, of which each process evaluates its share."""
        assert path is not None
        own = shares(examples, self.devices.count)[self.devices.rank]
        if self.devices.count == 1:
            return self._evaluate(path, own)
        # Numbers instead of samples: their tokens need not be sent.
        every = dict.fromkeys(s for e in examples for s in (*e.samples, e.control) if s)
        numbers = {sample: i for i, sample in enumerate(every)}

        def work() -> list[tuple[int, Tensor]]:
            found = self._evaluate(path, own) if own else {}
            return [(numbers[sample], logps.cpu()) for sample, logps in found.items()]

        parts = self.devices.together(work)
        found = {number: logps for part in parts for number, logps in part}
        return {sample: found[number] for sample, number in numbers.items()}

    def _evaluate(self, path: Path, examples: Sequence[Example]) -> dict[Sample, Tensor]:
        """Return the log-probs of a frozen model, in this process alone."""
        device, lora = self.devices.device, self._config.lora
        # Where the stage began is in memory: it is what the adapters are on.
        inside = lora.rank > 0 and path == self._stage.policy and not self._policy.sharded
        # As the policy computes: the same weights give the same log-probs.
        gathered = self._policy.gathered
        dtype = str(gathered).removeprefix("torch.") if gathered else ""
        with autocast(device, None if gathered else self._config.precision):
            return frozen_logps(
                path,
                examples,
                self._stage.cache or self._stage.out / "reference.sqlite",
                budget=self._config.token_budget,
                per_token=self._learner.per_token,
                dtype=dtype or (lora.dtype if lora.rank else "float32"),
                device=str(device),
                load=partial(adapters_off, self._policy.model) if inside else None,
            )

    def log(self, step: int, metrics: Metrics) -> None:
        # Six digits of what is measured, all of what is counted.
        figures = {k: v if isinstance(v, int) else float(f"{v:.6g}") for k, v in metrics.items()}
        row = {"step": step, **figures}
        with writing(self._log_file), self._log_file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @property
    def _log_file(self) -> Path:
        return self._stage.out / "metrics.jsonl"

    def _trim_log(self) -> None:
        """Drop logged steps after the checkpoint we go on from: they will be done again."""
        if self.devices.is_main and self._log_file.exists():
            lines = log_until(self._log_file, self.done)
            with writing(self._log_file):
                write_atomic(self._log_file, "".join(lines))

    def save(self, step: int) -> None:
        """Write a checkpoint from the main process; return in all when it is there."""
        weights = self._policy.weights()
        state = {
            "optimizer": self._policy.whole(self._optimizer.state_dict()),
            "scaler": self.loop.scaler.state_dict(),
            "manifest": self._manifest,
        }
        manifest = {
            **self._manifest,
            "step": step,
            "processes": self.devices.count,
            "environment": environment(),
        }
        if self.devices.is_main:
            path = self._stage.out / f"step-{step}"
            model = self._policy.model
            with writing(self._log_file), self._log_file.open("ab") as file:
                os.fsync(file.fileno())  # before the checkpoint that says these steps are done
            save_checkpoint(path, model, self._tokenizer, manifest, state, weights)
        self.devices.wait()


def _fingerprints(tokenizer: Any) -> Iterator[str]:
    """Yield the fingerprints of records that mean what this tokenizer means by their ids."""
    for dialect in (None, *dialects().values()):
        try:
            yield ChatRenderer(tokenizer, dialect=dialect).fingerprint
        except RenderError:  # no template of its own, or a dialect of other models
            continue


def _plain(config: TrainConfig) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def _comparable(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what must be the same to go on; settings of later versions have their defaults."""
    config = {**_plain(TrainConfig()), **manifest["config"]}
    return {**manifest, "config": {k: v for k, v in config.items() if k not in _HOW}}


def _name(policy: Path | None) -> str | None:
    """Name a policy so that a run folder may be moved: `iteration-1/train/step-3`."""
    return None if policy is None else "/".join(policy.parts[-3:])


def data_hash(examples: Sequence[Example]) -> str:
    """Return what a checkpoint's manifest calls `data`: a hash of all that was trained on."""
    digest = hashlib.sha256()
    for example in examples:
        for sample in example.samples:
            digest.update(repr((sample.key, sample.ids, sample.mask)).encode())
        # What few learners use is hashed where it is used, so that older runs can go on.
        extra = (example.score, example.control, [s.weights for s in example.samples])
        if extra != (0.0, None, [()] * len(example.samples)):
            digest.update(repr(extra).encode())
    return digest.hexdigest()[:16]
