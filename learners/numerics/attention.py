"""Attention over sequences that stand one after another, without padding between them.

Importing this registers the implementation "packed" with transformers. A model that uses it
behaves as with "sdpa" until a forward pass is given `segments`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

PACKED = "packed"


def _varlen() -> Callable[..., Tensor] | None:
    """Return torch's attention over sequences of different lengths, if it has what is used here.

    It came with torch 2.10, windows and groups of queries later. Without it each sequence has a
    kernel call of its own, with the same result.
    """
    try:
        found = import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    known = inspect.signature(found).parameters
    return found if known.keys() >= {"scale", "window_size", "enable_gqa"} else None


_VARLEN = _varlen()

# Decoders in which nothing but attention mixes positions, and whose attention differs by
# sliding windows and soft-capping at most. Others are padded.
_MODEL_TYPES = frozenset({"gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3"})


@dataclass(frozen=True, slots=True)
class Segments:
    """Which positions see each other: causal attention within each of `lengths`.

    `lengths` tile the positions, or, where sequences share a prefix, those of `rows`:
    positions of which a shared one occurs once for each sequence. `kept` says where in
    `rows` each position is first, shape (positions,).
    """

    lengths: tuple[int, ...]
    rows: Tensor | None = None
    kept: Tensor | None = None


def can_pack(model: Any) -> bool:
    """Say whether packing is exact for a model's architecture."""
    return packs(model.config)


def packs(config: Any) -> bool:
    """Say whether packing is exact for models of a Hugging Face configuration."""
    return config.get_text_config().model_type in _MODEL_TYPES


def prepare(model: Any) -> None:
    """Let a model whose architecture packs use this attention from now on."""
    if can_pack(model) and model.config._attn_implementation != PACKED:
        model.set_attn_implementation(PACKED)


def packed_forward(model: Any, ids: Tensor, positions: Tensor, segments: Segments) -> Tensor:
    """Return the last hidden states. Shapes: ids and positions (1, n), result (1, n, hidden)."""
    # A mask of four dimensions is handed on as it is; otherwise n * n values would be built.
    unused = torch.empty(1, 1, 0, 0, device=ids.device)
    output = model.base_model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=unused,
        use_cache=False,
        segments=segments,
    )
    hidden: Tensor = output.last_hidden_state
    return hidden


def _packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend. `query`: (batch, heads, positions, size), `key`, `value`: fewer heads, perhaps."""
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if segments is None:
        if softcap is None:  # what sdpa does not do, and says nothing of
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, scaling=scaling, **others
            )
        mask = _causal(query, None) if attention_mask is None else attention_mask
        return _softcapped(query, key, value, mask, scaling, softcap).transpose(1, 2), None
    if segments.rows is not None:
        query, key, value = (x.index_select(2, segments.rows) for x in (query, key, value))
    half = query.dtype in (torch.bfloat16, torch.float16)
    if _VARLEN is not None and query.is_cuda and half and softcap is None:
        out = _flash(query, key, value, segments.lengths, scaling, sliding_window)
    else:
        parts = (x.split(segments.lengths, dim=2) for x in (query, key, value))
        every = [
            _attend(q, k, v, scaling, softcap, sliding_window)
            for q, k, v in zip(*parts, strict=True)
        ]
        out = torch.cat(every, dim=2)
    if segments.kept is not None:
        out = out.index_select(2, segments.kept)
    return out.transpose(1, 2), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """Causal attention of one sequence."""
    if window is not None and window >= query.shape[2]:
        window = None
    if softcap is not None:
        return _softcapped(query, key, value, _causal(query, window), scaling, softcap)
    mask = None if window is None else _causal(query, window)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _softcapped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, softcap: float
) -> Tensor:
    """Attention with soft-capped scores (Gemma 2, arXiv 2408.00118, section 2)."""
    key, value = (repeat_kv(x, query.shape[1] // x.shape[1]) for x in (key, value))
    scores = torch.tanh(query @ key.transpose(2, 3) * (scaling / softcap)) * softcap
    # Not -inf: a padding position may see nothing at all.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return (
        scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
        @ value
    )


def _causal(query: Tensor, window: int | None) -> Tensor:
    """Return which key each query sees, shape (n, n): at most `window`, itself included."""
    n = query.shape[2]
    seen = torch.ones(n, n, dtype=torch.bool, device=query.device).tril()
    return seen if window is None else seen.triu(1 - window)


def _flash(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Sequence[int],
    scaling: float,
    window: int | None,
) -> Tensor:
    """Causal attention of all sequences in one kernel."""
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=query.device)
    longest = max(lengths)
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    assert _VARLEN is not None
    out = _VARLEN(
        query,
        key,
        value,
        ends,
        ends,
        longest,
        longest,
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(0, 1)[None]


AttentionInterface.register(PACKED, _packed_attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
