"""Checkpoints: Hugging Face folders that appear whole or not at all.

A folder is written beside its place and renamed into it, so a checkpoint that exists is
complete. `trainer.pt` beside the weights holds what a resumed run needs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from learners.lora import has_adapters, save_merged
from mathenv.errors import DataError, StorageError
from mathenv.files import writing

_STATE = "trainer.pt"
_MANIFEST = "manifest.json"


def save_checkpoint(
    path: Path,
    model: Any,
    tokenizer: Any,
    manifest: dict[str, Any],
    state: dict[str, Any] | None = None,
    weights: dict[str, Any] | None = None,
) -> None:
    """Write weights, tokenizer, manifest and optionally the trainer's state, atomically.

    The weights come last: what a killed process leaves behind lacks them, and nothing loads it.
    They are the model's own, or `weights` where it holds shards only.

    Raises:
        StorageError: the disk is full, or the folder cannot be made.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(path):
            _write(partial, model, tokenizer, manifest, state, weights)
    except StorageError:
        shutil.rmtree(partial, ignore_errors=True)  # the room that it took is needed
        raise
    # A folder cannot be replaced by renaming, so an old one steps aside whole.
    replaced = path.with_name(f".{path.name}.replaced")
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
    partial.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def _write(
    partial: Path,
    model: Any,
    tokenizer: Any,
    manifest: dict[str, Any],
    state: dict[str, Any] | None,
    weights: dict[str, Any] | None,
) -> None:
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    tokenizer.save_pretrained(partial)
    (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    if state is not None:
        torch.save(state, partial / _STATE)
    if has_adapters(model):
        save_merged(partial, model, weights)
    else:
        model.save_pretrained(partial, state_dict=weights)


def check_finished(path: Path) -> None:
    """Refuse the folder of a checkpoint that was being written when its process ended.

    Raises:
        DataError: it is one; the message names the finished ones beside it.
    """
    if path.name.startswith(".") and path.suffix in (".partial", ".replaced"):
        finished = ", ".join(p.name for _, p in step_folders(path.parent)) or "none"
        raise DataError(f"{path} is an unfinished checkpoint; finished beside it: {finished}")


def load_state(path: Path) -> dict[str, Any]:
    """Return the trainer's state of a checkpoint.

    Raises:
        DataError: the checkpoint cannot be resumed from.
    """
    file = path / _STATE
    if not file.exists():
        raise DataError(f"{path} holds no {_STATE}: it is a finished policy, not a resume point")
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest, empty where another tool wrote the folder."""
    file = path / _MANIFEST
    manifest: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return manifest


def drop_state(path: Path) -> None:
    """Forget the optimizer state of a checkpoint that will not be resumed from."""
    (path / _STATE).unlink(missing_ok=True)


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of the complete `step-N` checkpoints in a folder, in order."""
    names = [(p.name.removeprefix("step-"), p) for p in folder.glob("step-*") if p.is_dir()]
    return sorted((int(number), p) for number, p in names if number.isdecimal())
