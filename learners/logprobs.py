"""Summed log-probabilities at the masked positions, and nowhere else.

Attention sees every token; the language-model head is applied only at positions whose
next token is a target, so observation tokens have exactly zero gradient through their
own targets and the vocabulary-sized logits stay small.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from learners.preferences import Example, Sample

# Configurations whose head does more than a matrix product. Soft-capping is applied
# here; the others are rare and take the slow road over the model's own logits.
_SCALED_HEADS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Right-padded sequences. `ids`, `targets`: (n, length).

    `targets[i, t]` says that token `t + 1` is a target predicted at position `t`. There
    is no padding mask: padding stands to the right, where causal attention never looks.
    """

    ids: Tensor
    targets: Tensor

    @staticmethod
    def of(samples: Sequence[Sample], device: torch.device | str = "cpu") -> TokenBatch:
        longest = max(len(s.ids) for s in samples)
        ids = torch.zeros(len(samples), longest, dtype=torch.long)
        targets = torch.zeros(len(samples), longest, dtype=torch.bool)
        for row, sample in enumerate(samples):
            n = len(sample.ids)
            ids[row, :n] = torch.tensor(sample.ids)
            targets[row, : n - 1] = torch.tensor(sample.mask[1:])
        return TokenBatch(ids.to(device), targets.to(device))


def summed_logps(model: Any, samples: Sequence[Sample]) -> Tensor:
    """Return `sum_t log pi(ids[t] | ids[:t])` over each sample's mask. Shape: (n,), float32."""
    batch = TokenBatch.of(samples, model.device)
    logits = _logits_at(model, batch)
    row, position = batch.targets.nonzero(as_tuple=True)
    tokens = batch.ids[row, position + 1]
    logps = logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    return logps.new_zeros(len(samples)).index_add(0, row, logps)


def _logits_at(model: Any, batch: TokenBatch) -> Tensor:
    """Return logits at the target positions only. Shape: (targets, vocabulary)."""
    config = model.config.get_text_config()
    if any(getattr(config, name, None) for name in _SCALED_HEADS):
        return model(input_ids=batch.ids, use_cache=False).logits[batch.targets]
    hidden = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state[batch.targets]
    logits = model.get_output_embeddings()(hidden)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def micro_batches(examples: Sequence[Example], budget: int) -> Iterator[list[Example]]:
    """Yield groups of whole examples whose padded size stays within `budget` tokens.

    Longest first, so that padding is small; an example over the budget stands alone.
    """
    group: list[Example] = []
    longest = rows = 0
    for example in sorted(examples, key=_length, reverse=True):
        longest_then = max(longest, _length(example))
        rows_then = rows + len(example.samples)
        if group and longest_then * rows_then > budget:
            yield group
            group, longest_then, rows_then = [], _length(example), len(example.samples)
        group.append(example)
        longest, rows = longest_then, rows_then
    if group:
        yield group


def _length(example: Example) -> int:
    return max(len(s.ids) for s in example.samples)


@torch.no_grad()
def reference_logps(model: Any, examples: Sequence[Example], *, budget: int) -> dict[Sample, float]:
    """Return the summed log-probability of every sample under a frozen model, once."""
    found: dict[Sample, float] = {}
    for group in micro_batches(examples, budget):
        samples = [s for e in group for s in e.samples]
        found |= zip(samples, summed_logps(model, samples).tolist(), strict=True)
    return found
