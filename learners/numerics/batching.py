"""Examples to forward passes: which ones go together, and how they lie in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learners.numerics.attention import Segments
from learners.preferences import Example, Sample

# A shared prefix is computed once if that saves this share of a sequence's tokens: below it,
# gathering keys and values costs more.
_WORTH_SHARING = 0.1


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What a forward pass reads, and where targets are predicted.

    Args:
        ids: token ids, shape (samples, longest) if padded and (1, tokens) if packed.
        rows: of each target, sample after sample, the position that predicts it, in `ids`
            flattened. Shape (targets,).
        tokens: the targets themselves. Shape (targets,).
        positions: of a packed batch, how many tokens stand before each. Shape as `ids`.
        segments: of a packed batch, which positions see each other.
    """

    ids: Tensor
    rows: Tensor
    tokens: Tensor
    positions: Tensor | None = None
    segments: Segments | None = None

    @staticmethod
    def padded(samples: Sequence[Sample], device: torch.device | str = "cpu") -> TokenBatch:
        """Lay samples below each other, padded on the right to the longest.

        There is no padding mask: padding stands where causal attention never looks.
        """
        longest = max(len(s.ids) for s in samples)
        ids = torch.zeros(len(samples), longest, dtype=torch.long)
        rows: list[int] = []
        for row, sample in enumerate(samples):
            ids[row, : len(sample.ids)] = torch.tensor(sample.ids)
            rows += [row * longest + t - 1 for t in _targets(sample)]
        return TokenBatch(ids.to(device), _long(rows, device), _tokens(samples, device))

    @staticmethod
    def packed(samples: Sequence[Sample], device: torch.device | str = "cpu") -> TokenBatch:
        """Lay samples behind each other.

        A prefix that a sample shares with the one before it is there once, if that pays.
        """
        ids: list[int] = []
        positions: list[int] = []
        where: list[list[int]] = []  # of each sample, the positions of its tokens
        for sample in samples:
            shared = _shared(samples[len(where) - 1], sample) if where else 0
            begin = len(ids)
            ids += sample.ids[shared:]
            positions += range(shared, len(sample.ids))
            before = where[-1][:shared] if where else []
            where.append([*before, *range(begin, len(ids))])
        segments = _segments(where, len(ids), device)
        pairs = zip(samples, where, strict=True)
        rows = [at[t - 1] for sample, at in pairs for t in _targets(sample)]
        return TokenBatch(
            _long(ids, device)[None],
            _long(rows, device),
            _tokens(samples, device),
            _long(positions, device)[None],
            segments,
        )


def _targets(sample: Sample) -> list[int]:
    return [t for t, on in enumerate(sample.mask) if on]


def _tokens(samples: Sequence[Sample], device: torch.device | str) -> Tensor:
    return _long([s.ids[t] for s in samples for t in _targets(s)], device)


def _long(values: Sequence[int], device: torch.device | str) -> Tensor:
    return torch.tensor(values, dtype=torch.long).to(device)


def _shared(first: Sample, second: Sample) -> int:
    """Return how many tokens of a common prefix are worth sharing."""
    pairs = enumerate(zip(first.ids, second.ids, strict=False))
    shortest = min(len(first.ids), len(second.ids))
    common = next((t for t, (a, b) in pairs if a != b), shortest)
    return common if common > _WORTH_SHARING * len(second.ids) else 0


def _segments(where: list[list[int]], count: int, device: torch.device | str) -> Segments:
    rows = [position for at in where for position in at]
    lengths = tuple(map(len, where))
    if len(rows) == count:
        return Segments(lengths)
    first = dict(zip(reversed(rows), reversed(range(len(rows))), strict=True))
    return Segments(lengths, _long(rows, device), _long([first[i] for i in range(count)], device))


def micro_batches(
    examples: Sequence[Example], budget: int, *, packed: bool = False
) -> Iterator[list[Example]]:
    """Yield groups of whole examples whose size stays within `budget` tokens.

    The size counts padding unless the groups are going to be `packed`. Longest first, so
    that padding is small; an example over the budget stands alone.
    """
    group: list[Example] = []
    size = longest = rows = 0
    for example in sorted(examples, key=_length, reverse=True):
        longest_then = max(longest, _length(example))
        rows_then = rows + len(example.samples)
        size_then = size + example.tokens if packed else longest_then * rows_then
        if group and size_then > budget:
            yield group
            group, size_then = [], example.tokens
            longest_then, rows_then = _length(example), len(example.samples)
        group.append(example)
        size, longest, rows = size_then, longest_then, rows_then
    if group:
        yield group


def _length(example: Example) -> int:
    return max(len(s.ids) for s in example.samples)
