"""What a model must be so that its log-probs here are its own: tried once, when it is loaded.

The trainer applies the head to the hidden states at target positions only. Models may do more in
between (bound the logits, scale them, or what nobody here has heard of), so a few random tokens
go both ways, and where they part the model's own full logits are used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from agents.models.loading import company_limit, position_limit
from learners.numerics.attention import can_pack, packed_forward, prepare
from learners.numerics.batching import TokenBatch
from learners.numerics.head import logits_to_logps, target_logps
from learners.preferences import Sample
from mathenv.errors import TrainingError
from mathenv.notices import notice

# How configurations call the bound of their logits: bound * tanh(logits / bound).
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_LENGTH = 12  # tokens of a trial
# Logits are brought to this spread, as trained models have it: a new model's are so small that
# a bound would not show.
_SPREAD = 20.0
_MOST_SCALE = 1e3
# Two ways to one number differ by rounding: in parts of the largest logit.
_RELATIVE, _ROUNDINGS = 1e-4, 4


@dataclass(frozen=True, slots=True)
class HeadUse:
    """How log-probs of a model are computed.

    Args:
        full: from the model's own logits at all positions; otherwise by the head at targets.
        softcap: the bound of the logits, None where there is none.
    """

    full: bool = False
    softcap: float | None = None


_KNOWN: WeakKeyDictionary[torch.nn.Module, HeadUse] = WeakKeyDictionary()


def head_use(model: Any) -> HeadUse:
    """Return how a model's log-probs are computed; the first call for a model tries it.

    That runs a few forward passes, so it must come before a model is shared out.

    Raises:
        TrainingError: the model is no causal language model.
    """
    found = _KNOWN.get(model)
    if found is None:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            found = _KNOWN[model] = _tried(model)
    return found


def check_lengths(config: Any, samples: Sequence[Sample], policy: object) -> None:
    """Refuse sequences that a model has no positions for, or none that are its own.

    Raises:
        TrainingError: the message names the trajectory.
    """
    longest = max(samples, key=lambda s: len(s.ids), default=None)
    if longest is None:
        return
    length, limit = len(longest.ids), position_limit(config)
    if limit is not None and length > limit:
        raise TrainingError(
            f"{longest.key} has {length} tokens, but {policy} knows {limit} positions "
            f"(max_position_embeddings): leave such trajectories out (pairs.max_tokens = {limit}), "
            "or sample with a lower max_tokens"
        )
    limit = company_limit(config)
    if limit is not None and length > limit:
        raise TrainingError(
            f"{longest.key} has {length} tokens, but the rope scaling of {policy} gives sequences "
            f"beyond {limit} other frequencies to all that share a forward pass, so that their "
            f"log-probs would depend on the batch: leave such trajectories out (pairs.max_tokens "
            f"= {limit}), or sample with a lower max_tokens"
        )


def note_experts(config: Any, policy: object) -> None:
    """Say once that a mixture of experts is trained without its load-balancing loss."""
    text = config.get_text_config()
    counts = [getattr(text, name, None) for name in _EXPERTS]
    if any(isinstance(count, int) and count > 1 for count in counts):
        notice(
            f"{policy} is a mixture of experts: its router is trained without the load-balancing "
            "loss (router_aux_loss_coef). Keep the learning rate low, or leave the router out by "
            "training LoRA adapters"
        )


def hidden_at_targets(model: Any, samples: Sequence[Sample], packed: bool) -> tuple[Tensor, Tensor]:
    """Return the last hidden state that predicts each target, and the targets.

    Shapes: (targets of all samples, hidden), (targets of all samples,).
    """
    if packed:
        batch = TokenBatch.packed(samples, model.device)
        assert batch.positions is not None
        assert batch.segments is not None
        hidden = packed_forward(model, batch.ids, batch.positions, batch.segments)
    else:
        batch = TokenBatch.padded(samples, model.device)
        hidden = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    return hidden.flatten(0, 1)[batch.rows], batch.tokens


def _tried(model: Any) -> HeadUse:
    prepare(model)
    config = model.config.get_text_config()
    ids = _trial_ids(model, config)
    own = _own_logits(model, ids)
    caps = (getattr(config, name, None) for name in _SOFTCAPS)
    softcap = next((float(cap) for cap in caps if cap), None)
    if own.isnan().any():  # broken weights: an error as soon as a trajectory meets them
        return HeadUse(softcap=softcap)
    _check_causal(model, config, own)
    mask = (False, *(True,) * (ids.shape[1] - 1))
    samples = [Sample(str(n), tuple(row), mask) for n, row in enumerate(ids.tolist())]
    head = model.get_output_embeddings()
    reason = "its head cannot be called alone"
    try:
        hidden, tokens = hidden_at_targets(model, samples, can_pack(model))
        if head is not None:
            spread = float(own[own.isfinite()].float().std())
            scale = min(_SPREAD / max(spread, 1e-6), _MOST_SCALE)
            found = target_logps(head, hidden * scale, tokens, softcap)
            reason = _difference(model, head, ids, scale, tokens, found)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        reason = f"its head cannot be called alone: {error}"
    if not reason:
        return HeadUse(softcap=softcap)
    notice(
        f"{type(model).__name__}: log-probs come from the model's own logits of all positions, "
        f"which takes more memory and time ({reason})"
    )
    return HeadUse(full=True)


def _own_logits(model: Any, ids: Tensor) -> Tensor:
    try:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, TypeError, ValueError, RuntimeError, LookupError) as error:
        raise TrainingError(
            f"{type(model).__name__} fails in a forward pass over two sequences of {ids.shape[1]} "
            f"tokens: {error}. It cannot be trained with this version of transformers"
        ) from error
    return logits


def _trial_ids(model: Any, config: Any) -> Tensor:
    """Return two sequences that differ in their last token. Shape (2, length)."""
    vocabulary = model.get_input_embeddings().num_embeddings
    length = min(_LENGTH, position_limit(config) or _LENGTH)
    ids = torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
    ids = ids.repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % vocabulary
    return ids.to(model.device)


def _check_causal(model: Any, config: Any, logits: Tensor) -> None:
    first, second = logits[:, :-1].float()
    if _apart(first, second) <= _tolerance(model, first):
        return
    name = "use_bidirectional_attention"
    told = f" ({name} = {getattr(config, name)})" if getattr(config, name, None) else ""
    raise TrainingError(
        f"{type(model).__name__}{told} is no causal language model: a token changes what the "
        "model predicts before it, so log-probs of a sequence are not defined. Choose a model "
        "that looks back only"
    )


def _difference(
    model: Any, head: Any, ids: Tensor, scale: float, tokens: Tensor, found: Tensor
) -> str:
    """Compare with the model's own logits; return by how much they differ, "" if they do not."""
    hook = head.register_forward_pre_hook(lambda _, given: (given[0] * scale, *given[1:]))
    try:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
    finally:
        hook.remove()
    expected = logits_to_logps(logits, tokens)
    difference = _apart(found, expected)
    if difference <= _tolerance(model, logits):
        return ""
    return f"its head alone gives others, by {difference:.2g} nats in a trial"


def _apart(first: Tensor, second: Tensor) -> float:
    """Return the largest difference; a token that both rule out (-inf) is none."""
    return float((first - second).abs().masked_fill(first == second, 0.0).max())


def _tolerance(model: Any, logits: Tensor) -> float:
    largest = max(float(logits[logits.isfinite()].abs().max()), 1.0)
    return max(_RELATIVE, _ROUNDINGS * torch.finfo(model.dtype).eps) * largest
