"""The training loop: examples and a learner in, `step-N` checkpoint folders out.

Deterministic for a seed and a number of threads. Killed at any moment and started again
it goes on from the last complete checkpoint and ends with the same weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.dialects import dialects
from agents.models.transformers import load_causal_lm, load_tokenizer
from agents.rendering import ChatRenderer
from learners.attention import can_pack
from learners.batching import micro_batches
from learners.checkpoint import check_finished, load_state, save_checkpoint, step_folders
from learners.learner import Learner, LogProbs
from learners.logprobs import not_finite, reference_logps, summed_logps, token_logps
from learners.preferences import Example, Sample
from mathenv.errors import ConfigError, RenderError, TrainingError
from mathenv.store import write_atomic

Metrics = dict[str, float]
_SCHEDULES = ("constant", "linear", "cosine")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How one stage trains.

    Args:
        lr: peak learning rate of AdamW.
        epochs: passes over the examples (paper: 1 for preference learning).
        batch_size: examples (pairs, or demonstrations) per optimizer step.
        warmup: share of the steps in which the rate rises linearly.
        schedule: what follows the warm-up: "constant", "linear" or "cosine" to zero.
        weight_decay: AdamW's decoupled weight decay, on all weights.
        clip_norm: the gradient is scaled down to this norm where it is larger.
        token_budget: tokens per forward pass, padding included; memory grows with it.
        checkpoints: how many checkpoints to keep, evenly spaced, the last step included.
        betas: AdamW's decay rates of the first and second moment.
    """

    lr: float = 1e-5
    epochs: int = 1
    batch_size: int = 32
    warmup: float = 0.1
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    token_budget: int = 8192
    checkpoints: int = 3
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self) -> None:
        if self.schedule not in _SCHEDULES:
            raise ConfigError(
                f"no schedule is called {self.schedule!r}: there are {', '.join(_SCHEDULES)}"
            )
        for name in ("lr", "epochs", "batch_size", "clip_norm", "token_budget", "checkpoints"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.warmup <= 1:
            raise ConfigError(f"warmup is a share of the steps from 0 to 1, not {self.warmup}")


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of the loop: from `policy`, against `reference`, into `out`."""

    policy: Path
    out: Path
    reference: Path | None = None
    seed: int = 0


def train(
    learner: Learner,
    examples: Sequence[Example],
    config: TrainConfig,
    stage: Stage,
    *,
    on_step: Callable[[int, int, Metrics], None] | None = None,
) -> list[Path]:
    """Train and return the checkpoint folders, first to last.

    Raises:
        TrainingError: no examples, a missing reference, tokens of another tokenizer, or
            log-probs or a loss that are not finite. DataError: an unfinished checkpoint.
    """
    if not examples:
        raise TrainingError(
            f"{learner.name} has nothing to train on: no problem had both a right and a wrong "
            "answer (or, for SFT and RAFT, a right one). Sample more, or change the difficulty."
        )
    steps = math.ceil(len(examples) / config.batch_size) * config.epochs
    run = _Run(learner, config, stage, steps, _hash(examples))
    run.check(examples)
    frozen = run.frozen(examples) if run.done < steps else _Frozen()
    saves = _save_steps(steps, config.checkpoints)
    plan = list(_batches(examples, config, stage.seed))
    for step in range(run.done + 1, steps + 1):
        metrics = run.step(step, plan[step - 1], frozen)
        run.log(step, metrics)
        if on_step is not None:
            on_step(step, steps, metrics)
        if step in saves:
            run.save(step)
    return [path for _, path in step_folders(stage.out)]


@dataclass(frozen=True, slots=True)
class _Frozen:
    """What stays fixed over a stage: log-probs of models that are not trained, by sample."""

    reference: dict[Sample, Tensor] | None = None
    start: dict[Sample, Tensor] | None = None
    controls: Sequence[Sample] = ()


class _Run:
    """The state of one stage: model, optimizer and how far it got."""

    def __init__(
        self, learner: Learner, config: TrainConfig, stage: Stage, steps: int, data_hash: str
    ) -> None:
        self._learner, self._config, self._stage, self._steps = learner, config, stage, steps
        self._manifest = {
            "learner": learner.name,
            "loss": asdict(learner.config),
            "config": json.loads(json.dumps(asdict(config))),
            "policy": _name(stage.policy),
            "reference": _name(stage.reference) if learner.uses_reference else None,
            "seed": stage.seed,
            "steps": steps,
            "data": data_hash,
        }
        for path in (stage.policy, stage.reference):
            if path is not None:
                check_finished(path)
        stage.out.mkdir(parents=True, exist_ok=True)
        finished = step_folders(stage.out)
        self.done = finished[-1][0] if finished else 0
        source = finished[-1][1] if finished else stage.policy
        self._model = load_causal_lm(source)
        self._tokenizer = load_tokenizer(source)
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            lr=config.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        if finished:
            self._resume(source)
        self._trim_log()

    def _resume(self, source: Path) -> None:
        state = load_state(source)
        if state["manifest"] != self._manifest:
            raise TrainingError(
                f"{self._stage.out} was trained with other data or settings; "
                "remove the folder or start a new run folder"
            )
        self._optimizer.load_state_dict(state["optimizer"])

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse tokens that another tokenizer or template made."""
        known = _fingerprints(self._tokenizer)
        seen = {""}
        vocabulary = self._model.get_input_embeddings().num_embeddings
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

    def frozen(self, examples: Sequence[Example]) -> _Frozen:
        """Log-probs of the reference model and the old policy, before the first step."""
        learner, stage = self._learner, self._stage
        if learner.uses_reference and stage.reference is None:
            raise TrainingError(f"{learner.name} needs a reference model")
        controls = [e.control for e in examples if e.control]
        reference = self._evaluate(stage.reference, examples) if learner.uses_reference else None
        start = self._evaluate(stage.policy, examples) if learner.uses_start else None
        return _Frozen(reference, start, controls)

    def _evaluate(self, path: Path | None, examples: Sequence[Example]) -> dict[Sample, Tensor]:
        assert path is not None
        return reference_logps(
            load_causal_lm(path),
            examples,
            budget=self._config.token_budget,
            per_token=self._learner.per_token,
        )

    def step(self, number: int, examples: Sequence[Example], frozen: _Frozen) -> Metrics:
        """One optimizer step over `examples`, in as many forward passes as fit."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.lr * _schedule(self._config, number, self._steps)
        denominator = self._learner.denominator(examples)
        evaluate = token_logps if self._learner.per_token else summed_logps
        baseline = self._baseline(number, frozen)
        gathered: dict[str, list[Tensor]] = {}
        broken: list[str] = []
        total = 0.0
        budget, packed = self._config.token_budget, can_pack(self._model)
        for batch in micro_batches(examples, budget, packed=packed):
            samples = [s for e in batch for s in e.samples]
            logps = evaluate(self._model, samples)
            reference, start = (_of(x, samples) for x in (frozen.reference, frozen.start))
            output = self._learner.loss(LogProbs(logps, reference, start, baseline), batch)
            (output.loss / denominator).backward()
            total += output.loss.item() / denominator
            broken += not_finite(logps.detach(), samples)
            for key, value in output.metrics.items():
                gathered.setdefault(key, []).append(value.detach())
        norm = torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip_norm)
        if broken or not (math.isfinite(total) and bool(norm.isfinite())):
            names = broken or [s.key for e in examples for s in e.samples]
            raise TrainingError(
                f"step {number}: loss {total}, gradient norm {norm.item()}, "
                f"{'log-probs that are not finite' if broken else 'in a batch'} of "
                f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}. "
                "Lower the learning rate, or look for broken weights in the policy"
            )
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        means = {key: torch.cat(values).mean().item() for key, values in gathered.items()}
        return {
            "loss": total,
            **{key: value for key, value in means.items() if not math.isnan(value)},
            "grad_norm": norm.item(),
            "learning_rate": self._optimizer.param_groups[0]["lr"],
            "epoch": number * self._config.epochs / self._steps,
            "num_tokens": float(sum(e.tokens for e in examples)),
        }

    @torch.no_grad()
    def _baseline(self, number: int, frozen: _Frozen) -> Tensor | None:
        """Mean log-ratio over control samples drawn for this step, before it is taken."""
        count = min(self._learner.controls, len(frozen.controls))
        if count == 0:
            return None
        drawn = random.Random(f"{self._stage.seed}/{number}").sample(frozen.controls, count)
        ratios = []
        budget, packed = self._config.token_budget, can_pack(self._model)
        for batch in micro_batches([Example((c,)) for c in drawn], budget, packed=packed):
            samples = [s for e in batch for s in e.samples]
            reference = _of(frozen.reference, samples)
            logps = summed_logps(self._model, samples)
            ratios.append(logps if reference is None else logps - reference)
        return torch.cat(ratios).mean()

    def log(self, step: int, metrics: Metrics) -> None:
        row = {"step": step, **{k: float(f"{v:.6g}") for k, v in metrics.items()}}
        with self._log_file.open("a") as file:
            file.write(json.dumps(row) + "\n")

    @property
    def _log_file(self) -> Path:
        return self._stage.out / "metrics.jsonl"

    def _trim_log(self) -> None:
        """Drop logged steps after the checkpoint we go on from: they will be done again."""
        if self._log_file.exists():
            lines = self._log_file.read_text().splitlines(keepends=True)[: self.done]
            write_atomic(self._log_file, "".join(lines))

    def save(self, step: int) -> None:
        state = {"optimizer": self._optimizer.state_dict(), "manifest": self._manifest}
        manifest = {**self._manifest, "step": step}
        path = self._stage.out / f"step-{step}"
        save_checkpoint(path, self._model, self._tokenizer, manifest, state)


def _batches(
    examples: Sequence[Example], config: TrainConfig, seed: int
) -> Iterator[list[Example]]:
    for epoch in range(config.epochs):
        order = list(range(len(examples)))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        for first in range(0, len(order), config.batch_size):
            yield [examples[i] for i in order[first : first + config.batch_size]]


def _save_steps(steps: int, checkpoints: int) -> set[int]:
    count = max(1, min(checkpoints, steps))
    return {round(steps * (i + 1) / count) for i in range(count)}


def _schedule(config: TrainConfig, step: int, steps: int) -> float:
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return step / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - progress
    return 0.5 * (1 + math.cos(math.pi * progress))


def _fingerprints(tokenizer: Any) -> Iterator[str]:
    """Yield the fingerprints of records that mean what this tokenizer means by their ids."""
    for dialect in (None, *dialects().values()):
        try:
            yield ChatRenderer(tokenizer, dialect=dialect).fingerprint
        except RenderError:  # no template of its own, or a dialect of other models
            continue


def _of(logps: dict[Sample, Tensor] | None, samples: Sequence[Sample]) -> Tensor | None:
    return None if logps is None else torch.cat([logps[s] for s in samples])


def _name(policy: Path | None) -> str | None:
    """Name a policy so that a run folder may be moved: `iteration-1/train/step-3`."""
    return None if policy is None else "/".join(policy.parts[-3:])


def _hash(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        for sample in example.samples:
            digest.update(repr((sample.key, sample.ids, sample.mask)).encode())
        # What few learners use is hashed where it is used, so that older runs can go on.
        extra = (example.score, example.control, [s.weights for s in example.samples])
        if extra != (0.0, None, [()] * len(example.samples)):
            digest.update(repr(extra).encode())
    return digest.hexdigest()[:16]
