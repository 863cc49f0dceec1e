"""Log-probabilities at the masked positions, and nowhere else.

Attention sees every token; the language-model head is applied only at positions whose
next token is a target, so observation tokens have exactly zero gradient through their
own targets and the vocabulary-sized logits stay small. How sequences lie in memory is in
`batching`, attention without padding in `attention`, the head in `head`, and which models may
go this way in `model_check`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from learners.numerics.attention import can_pack, prepare
from learners.numerics.batching import TokenBatch, micro_batches
from learners.numerics.head import logits_to_logps, target_logps
from learners.numerics.model_check import head_use, hidden_at_targets
from learners.preferences import Example, Sample
from mathenv.errors import TrainingError


def token_logps(model: Any, samples: Sequence[Sample], *, packed: bool | None = None) -> Tensor:
    """Return `log pi(ids[t] | ids[:t])` at each sample's targets, sample after sample.

    Shape: (targets of all samples,). float32, or float64 for such a model. `packed` overrides
    what `can_pack` says of the model.
    """
    prepare(model)
    use = head_use(model)
    if use.full:
        batch = TokenBatch.padded(samples, model.device)
        logits = model(input_ids=batch.ids, use_cache=False).logits
        return logits_to_logps(logits.flatten(0, 1)[batch.rows], batch.tokens)
    packed = can_pack(model) if packed is None else packed
    hidden, tokens = hidden_at_targets(model, samples, packed)
    return target_logps(model.get_output_embeddings(), hidden, tokens, use.softcap)


def summed_logps(model: Any, samples: Sequence[Sample]) -> Tensor:
    """Return `sum_t log pi(ids[t] | ids[:t])` over each sample's targets. Shape: (n,).

    Where a sample has weights they multiply the terms.
    """
    logps = token_logps(model, samples)
    if any(s.weights for s in samples):
        logps = logps * logps.new_tensor([w for s in samples for w in s.weights or [1] * s.targets])
    return sums(logps, samples)


def sums(values: Tensor, samples: Sequence[Sample]) -> Tensor:
    """Sum each sample's values, one per target. Shapes: (targets of all samples,) to (n,)."""
    counts = torch.tensor([s.targets for s in samples], device=values.device)
    row = torch.arange(len(samples), device=values.device).repeat_interleave(counts)
    # In float32 one rounding of a sum of -3000 is 2e-4; a running sum makes hundreds of them.
    total = values.new_zeros(len(samples), dtype=torch.float64).index_add(0, row, values.double())
    return total.to(values.dtype)


@torch.no_grad()
def reference_logps(
    model: Any, examples: Sequence[Example], *, budget: int, per_token: bool = False
) -> dict[Sample, Tensor]:
    """Return the log-probability of every sample and control under a frozen model, once.

    A value is the sum over targets, shape (1,), or one per target, shape (targets,).

    Raises:
        TrainingError: see `evaluate_once`.
    """
    evaluate = partial(token_logps if per_token else summed_logps, model)
    return evaluate_once(evaluate, examples, budget=budget, packed=can_pack(model))


def evaluate_once(
    evaluate: Callable[[Sequence[Sample]], Tensor],
    examples: Sequence[Example],
    *,
    budget: int,
    packed: bool,
) -> dict[Sample, Tensor]:
    """Return what `evaluate` says of every sample and control, asked in micro-batches.

    Raises:
        TrainingError: log-probs are not finite; the message names the trajectories. In a loss
            it would not show: DPO's is 0 where the reference rules out the chosen side.
    """
    samples = {s for e in examples for s in e.samples}
    controls = dict.fromkeys(e.control for e in examples if e.control)
    extra = [Example((c,)) for c in controls if c not in samples]
    found: dict[Sample, Tensor] = {}
    broken: list[str] = []
    for group in micro_batches([*examples, *extra], budget, packed=packed):
        batch = [s for e in group for s in e.samples]
        logps = evaluate(batch)
        broken += not_finite(logps, batch)
        found |= zip(batch, _by_sample(logps, batch), strict=True)
    if broken:
        raise TrainingError(
            f"a frozen model gives log-probs that are not finite to {', '.join(broken[:3])}"
            f"{' and others' if len(broken) > 3 else ''}: its weights are broken, or it rules "
            "out a token that was sampled"
        )
    return found


def not_finite(logps: Tensor, samples: Sequence[Sample]) -> list[str]:
    """Name the samples with a log-prob that is not finite, of one per sample or per target."""
    if logps.isfinite().all():
        return []
    parts = zip(samples, _by_sample(logps, samples), strict=True)
    return [sample.key for sample, part in parts if not part.isfinite().all()]


def _by_sample(logps: Tensor, samples: Sequence[Sample]) -> tuple[Tensor, ...]:
    summed = len(logps) == len(samples)
    return logps.split([1 if summed else s.targets for s in samples])
