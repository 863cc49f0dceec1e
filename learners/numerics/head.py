"""The language-model head at target positions, a tile of logits at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# A tile holds this many logits at most. Weights are read once for each run of tokens, so
# runs must not be short.
_TOKENS, _VOCABULARY = 512, 8192
# Up to this many logits are kept for the backward pass instead of computed again.
_KEPT = 2**24


def target_logps(head: Any, hidden: Tensor, tokens: Tensor, softcap: float | None) -> Tensor:
    """Return `log softmax(logits)[token]` at each position, in float32 at least.

    Shapes: hidden (n, size), tokens (n,), result (n,). `softcap` bounds the logits, as in
    Gemma 2. The logits of all positions are never in memory, unless they are few: the
    backward pass computes them again.
    """
    hooked = head._forward_hooks or head._forward_pre_hooks  # they may change the logits
    if type(head) is torch.nn.Linear and head.bias is None and not hooked:
        if torch.is_autocast_enabled(hidden.device.type):
            hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
        found: Tensor = _TargetLogps.apply(hidden, head.weight, tokens, softcap)
        return found
    parts = zip(hidden.split(_TOKENS), tokens.split(_TOKENS), strict=True)
    every = [checkpoint(_full, head, h, t, softcap, use_reentrant=False) for h, t in parts]
    return torch.cat(every)


def logits_to_logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return `log softmax(logits)[token]`. Shapes: (n, vocabulary), (n,), result (n,)."""
    logits = logits.to(_wide(logits))
    return logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


def _full(head: Any, hidden: Tensor, tokens: Tensor, softcap: float | None) -> Tensor:
    logits = head(hidden)
    return logits_to_logps(
        logits if softcap is None else torch.tanh(logits / softcap) * softcap, tokens
    )


class _TargetLogps(torch.autograd.Function):
    """Online log-sum-exp over tiles of the vocabulary; the gradient from the same tiles."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, tokens: Tensor, softcap: float | None
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            wide = _wide(hidden)
            total = hidden.new_full((len(hidden),), float("-inf"), dtype=wide)
            picked = hidden.new_zeros(len(hidden), dtype=wide)
            keep = any(ctx.needs_input_grad) and len(hidden) * len(weight) <= _KEPT
            kept: dict[tuple[int, int], Tensor] = {}
            for part in _slices(len(hidden), _TOKENS):
                for tile in _slices(len(weight), _VOCABULARY):
                    logits = _logits(hidden[part], weight[tile], softcap)
                    total[part] = torch.logaddexp(total[part], logits.logsumexp(-1))
                    row, column = _inside(tokens[part], tile)
                    picked[part][row] = logits[row, column]
                    if keep:
                        kept[part.start, tile.start] = logits
        ctx.save_for_backward(hidden, weight, tokens, total)
        ctx.softcap, ctx.kept = softcap, kept
        return picked - total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, tokens, total = ctx.saved_tensors
        (grad,) = gradients
        of_hidden = hidden.new_zeros(hidden.shape, dtype=_wide(hidden))
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        for tile in _slices(len(weight), _VOCABULARY):
            tile_weight = weight[tile].to(hidden.dtype)
            tile_grad = weight.new_zeros(tile_weight.shape, dtype=_wide(hidden))
            for part in _slices(len(hidden), _TOKENS):
                logits = ctx.kept.pop((part.start, tile.start), None)
                if logits is None:
                    logits = _logits(hidden[part], tile_weight, ctx.softcap)
                moved = logits if ctx.softcap is None else logits.clone()
                moved.sub_(total[part, None]).exp_().mul_(-grad[part, None])
                row, column = _inside(tokens[part], tile)
                moved[row, column] += grad[part][row]
                if ctx.softcap is not None:  # tanh' = 1 - tanh^2
                    moved.mul_(1 - (logits / ctx.softcap).square_())
                moved = moved.to(hidden.dtype)
                _add_product(of_hidden[part], moved, tile_weight)
                if of_weight is not None:
                    _add_product(tile_grad, moved.T, hidden[part])
            if of_weight is not None:
                of_weight[tile] = tile_grad
        return of_hidden.to(hidden.dtype), of_weight, None, None


def _logits(hidden: Tensor, weight: Tensor, softcap: float | None) -> Tensor:
    logits = (hidden @ weight.to(hidden.dtype).T).to(_wide(hidden))
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _inside(tokens: Tensor, tile: slice) -> tuple[Tensor, Tensor]:
    """Return the rows whose token is in the tile, and its column there."""
    (row,) = ((tokens >= tile.start) & (tokens < tile.stop)).nonzero(as_tuple=True)
    return row, tokens[row] - tile.start


def _slices(length: int, step: int) -> Iterator[slice]:
    return (slice(first, min(first + step, length)) for first in range(0, length, step))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
