"""Whether two checkpoint folders hold the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor


def same_weights(first: Path, second: Path) -> bool:
    """Say whether every weight that both folders name is the same number in both.

    Reads one tensor after the other and stops at the first that differs, which mostly is the
    first of all. A policy that is no folder with safetensors, such as a hub id, or that names
    nothing alike, counts as different.
    """
    mine, theirs = _files(first), _files(second)
    shared = [name for name in mine if name in theirs]
    return bool(shared) and all(
        _equal(_read(mine[name], name), _read(theirs[name], name)) for name in shared
    )


def _files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor."""
    return {name: file for file in sorted(folder.glob("*.safetensors")) for name in _names(file)}


def _names(file: Path) -> Iterator[str]:
    with safe_open(file, framework="pt") as tensors:
        yield from tensors.keys()


def _read(file: Path, name: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        found: Tensor = tensors.get_tensor(name)
    return found


def _equal(first: Tensor, second: Tensor) -> bool:
    """Compare values, whatever the types: merged adapters are saved in float32."""
    if first.shape != second.shape:
        return False
    kind = torch.promote_types(first.dtype, second.dtype)
    return torch.equal(first.to(kind), second.to(kind))
