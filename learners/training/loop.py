"""One optimizer step over a list of examples, on all devices."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learners.learner import Learner, LogProbs
from learners.numerics.batching import micro_batches
from learners.numerics.logprobs import not_finite
from learners.preferences import Example, Sample
from learners.settings import TrainConfig
from learners.training.lora import dropping
from learners.training.parallel import Devices, Policy, shares
from learners.training.schedule import learning_rate
from mathenv.errors import TrainingError

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class Frozen:
    """What stays fixed over a stage: log-probs of models that are not trained, by sample."""

    reference: dict[Sample, Tensor] | None = None
    start: dict[Sample, Tensor] | None = None
    controls: Sequence[Sample] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one process found in its share of a step, on the CPU."""

    loss: float
    norm: float
    broken: list[str]
    metrics: dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Found:
    """What the passes of a step leave on the device, to be read when all of them are queued."""

    losses: list[Tensor] = field(default_factory=list)
    logps: list[tuple[Tensor, Sequence[Sample]]] = field(default_factory=list)
    metrics: dict[str, list[Tensor]] = field(default_factory=dict)


class Loop:
    """Takes the steps of one stage.

    Every process calls `step` with the same examples and works on its share of them.
    """

    def __init__(
        self,
        learner: Learner,
        policy: Policy,
        optimizer: torch.optim.Optimizer,
        devices: Devices,
        config: TrainConfig,
        *,
        seed: int,
        steps: int,
    ) -> None:
        self._learner, self._policy, self._optimizer = learner, policy, optimizer
        self._devices, self._config, self._seed, self._steps = devices, config, seed, steps
        self.scaler = torch.amp.GradScaler(devices.device.type, enabled=config.precision == "fp16")

    def step(self, number: int, examples: Sequence[Example], frozen: Frozen) -> Metrics:
        """Take one optimizer step over `examples`, in as many forward passes as fit.

        Raises:
            TrainingError: log-probs, loss or gradient are not finite, on any process; the
                message names the trajectories. Nothing has been changed then.
        """
        rate = learning_rate(self._config, number, self._steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        own = self.backward(number, examples, frozen, clip=True)
        parts, norm = self._devices.gather(own), own.norm
        total = sum(part.loss for part in parts)
        self._check(number, total, norm, [n for part in parts for n in part.broken], examples)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        figures = {"loss": total, **_means(parts), "grad_norm": norm}
        if self.scaler.is_enabled():
            figures["loss_scale"] = self.scaler.get_scale()
        return {
            **{key: value for key, value in figures.items() if math.isfinite(value)},
            "learning_rate": rate,
            "epoch": number * self._config.epochs / self._steps,
        }

    def backward(
        self, number: int, examples: Sequence[Example], frozen: Frozen, *, clip: bool = False
    ) -> Outcome:
        """Add the gradient of a step's loss over all of `examples` to the weights' own.

        Processes' gradients are averaged, and each has the sum over its share: times the
        number of processes that is the sum over all, however unequal the shares are. `clip`
        scales the gradient down where it is too large, and its norm is in what is returned.
        """
        baseline = self._baseline(number, frozen)
        found, batches = _Found(), self._passes(examples)
        denominator = self._learner.denominator(examples)
        seed = f"{self._seed}/{number}/{self._devices.rank}"
        with dropping(self._policy.model, self._config.lora, seed):
            for left, batch in zip(reversed(range(len(batches))), batches, strict=True):
                with self._policy.backward(last=left == 0):
                    if batch:
                        self._pass(batch, frozen, baseline, denominator, found)
                    else:
                        self._empty_pass(examples)
        norm = torch.zeros((), device=self._devices.device)
        if clip:
            self.scaler.unscale_(self._optimizer)
            norm = self._policy.clip(self._config.clip_norm)
        return _read(found, norm, denominator)

    def _pass(
        self,
        batch: Sequence[Example],
        frozen: Frozen,
        baseline: Tensor | None,
        denominator: float,
        found: _Found,
    ) -> None:
        samples = [s for e in batch for s in e.samples]
        logps = self._policy.logps(samples, per_token=self._learner.per_token)
        reference, start = (_of(x, samples, logps) for x in (frozen.reference, frozen.start))
        output = self._learner.loss(LogProbs(logps, reference, start, baseline), batch)
        loss = output.loss * self._devices.count / denominator
        self.scaler.scale(loss).backward()
        found.losses.append(output.loss.detach())
        found.logps.append((logps.detach(), samples))
        for key, value in output.metrics.items():
            found.metrics.setdefault(key, []).append(value.detach())

    def _empty_pass(self, examples: Sequence[Example]) -> None:
        """Take part in a pass of the others, with the cheapest example and no gradient."""
        (self._filler(examples).sum() * 0).backward()

    def _filler(self, examples: Sequence[Example]) -> Tensor:
        return self._policy.logps(min(examples, key=lambda e: e.tokens).samples)

    def _passes(self, examples: Sequence[Example]) -> list[list[Example]]:
        """Return the examples of each of this process's passes; empty: a pass for company.

        Every process needs one, and as many as the others where the model is shared out.
        """
        budget, packed = self._config.token_budget, self._policy.packed
        every = [
            list(micro_batches(share, budget, packed=packed))
            for share in shares(examples, self._devices.count)
        ]
        own = every[self._devices.rank]
        most = max(map(len, every)) if self._policy.sharded else max(len(own), 1)
        return own + [[] for _ in range(most - len(own))]

    @torch.no_grad()
    def _baseline(self, number: int, frozen: Frozen) -> Tensor | None:
        """The learner's baseline over control samples drawn for this step, before it is taken.

        All processes draw the same ones; each evaluates its share.
        """
        count = min(self._learner.controls, len(frozen.controls))
        if count == 0:
            return None
        drawn = random.Random(f"{self._seed}/{number}").sample(frozen.controls, count)
        examples = [Example((c,)) for c in drawn]
        values = []
        for batch in self._passes(examples):
            if not batch:
                self._filler(examples)
                continue
            samples = [s for e in batch for s in e.samples]
            logps = self._policy.logps(samples, per_token=self._learner.per_token)
            reference, start = (_of(x, samples, logps) for x in (frozen.reference, frozen.start))
            given = LogProbs(logps, reference, start)
            values.append(self._learner.baseline(given, samples))
        if self._devices.count == 1:  # nothing to send, so nothing to read
            return torch.cat(values).mean()
        own = [torch.cat(values).cpu()] if values else []
        everyone = [value for part in self._devices.gather(own) for value in part]
        return torch.cat(everyone).mean().to(self._devices.device)

    def _check(
        self,
        number: int,
        total: float,
        norm: float,
        broken: Sequence[str],
        examples: Sequence[Example],
    ) -> None:
        # In fp16 gradients overflow until the scale is low enough; the scaler skips those steps.
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        if not broken and math.isfinite(total) and (math.isfinite(norm) or overflow):
            return
        names = list(broken) or [s.key for e in examples for s in e.samples]
        raise TrainingError(
            f"step {number}: loss {total}, gradient norm {norm}, "
            f"{'log-probs that are not finite' if broken else 'in a batch'} of "
            f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}. "
            "Lower the learning rate, or look for broken weights in the policy"
        )


def _read(found: _Found, norm: Tensor, denominator: float) -> Outcome:
    """Read what a step left on the device, and name the samples of log-probs not finite."""
    metrics = {key: torch.cat(values) for key, values in found.metrics.items()}
    finite = [logps.isfinite().all() for logps, _ in found.logps]
    [norm], losses, fine, values = _fetch([norm], found.losses, finite, [*metrics.values()])
    broken = [
        name
        for ok, (logps, samples) in zip(fine, found.logps, strict=True)
        if not ok
        for name in not_finite(logps, samples)
    ]
    loss = sum(loss.item() / denominator for loss in losses)
    return Outcome(loss, norm.item(), broken, dict(zip(metrics, values, strict=True)))


def _fetch(*groups: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return flattened copies on the CPU, made in one go.

    A copy waits until the device has done all that is queued, and then the device waits for
    the host to queue more: once a step that costs little, once a pass much.
    """
    every = [t for group in groups for t in group]
    flat = torch.cat([t.flatten().double() for t in every]).cpu()
    parts = iter(flat.split([t.numel() for t in every]))
    return [[next(parts).to(t.dtype) for t in group] for group in groups]


def _means(parts: Sequence[Outcome]) -> Metrics:
    gathered: dict[str, list[Tensor]] = {}
    for part in parts:
        for key, value in part.metrics.items():
            gathered.setdefault(key, []).append(value)
    means = {key: torch.cat(values).mean().item() for key, values in gathered.items()}
    if means.keys() >= {"rewards/chosen", "rewards/rejected"}:  # TRL's margin without pairs
        means.setdefault("rewards/margins", means["rewards/chosen"] - means["rewards/rejected"])
    return means


def _of(
    logps: dict[Sample, Tensor] | None, samples: Sequence[Sample], like: Tensor
) -> Tensor | None:
    # What is in ordinary memory has been copied when this returns; only the device is not done.
    found = None if logps is None else torch.cat([logps[s] for s in samples])
    return None if found is None else found.to(like.device, non_blocking=True)
