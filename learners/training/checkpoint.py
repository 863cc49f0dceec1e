"""Checkpoints: Hugging Face folders that appear whole or not at all.

A folder is written beside its place, brought to the disk and renamed into it, so a checkpoint
that exists is complete, after a power cut too. `trainer.pt` beside the weights holds what a
resumed run needs, `checksums.json` what every file was when it was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from learners.training.lora import has_adapters, save_merged
from mathenv.errors import DataError, StorageError
from mathenv.files import writing
from mathenv.store import read_object, sync_folder, write_atomic

_STATE = "trainer.pt"
_MANIFEST = "manifest.json"
_SUMS = "checksums.json"
_HASHED_AT_ONCE = 4


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
    They are the model's own, or `weights` where it holds shards only. Everything is on the disk
    when this returns.

    Raises:
        StorageError: the disk is full, or nothing can be written there. What was there stays.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path):
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
    try:
        with writing(path):
            tokenizer.save_pretrained(partial)
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
            if state is not None:
                torch.save(state, partial / _STATE)
            if has_adapters(model):
                save_merged(partial, model, weights)
            else:
                model.save_pretrained(partial, state_dict=weights)
            seal(partial)
    except StorageError:
        shutil.rmtree(partial, ignore_errors=True)  # the space is needed
        raise
    # A folder cannot be replaced by renaming, so an old one steps aside whole.
    replaced = path.with_name(f".{path.name}.replaced")
    with writing(path):
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            path.rename(replaced)
        partial.rename(path)
        sync_folder(path.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def seal(folder: Path) -> None:
    """Bring a folder to the disk, and write down what its files are (`checksums.json`)."""
    folders = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
    write_atomic(folder / _SUMS, json.dumps(_sums(folder), indent=1, sort_keys=True) + "\n")
    for one in folders:
        sync_folder(one)


def replace_file(path: Path, name: str, text: str) -> None:
    """Replace one text file of a checkpoint on purpose."""
    write_atomic(path / name, text)
    if (path / _SUMS).exists():
        sums = read_object(path / _SUMS, _remedy(path))
        sums[name] = hashlib.sha256(text.encode()).hexdigest()
        write_atomic(path / _SUMS, json.dumps(sums, indent=1, sort_keys=True) + "\n")


def check_finished(path: Path) -> None:
    """Refuse a checkpoint that was not written to its end, or is not as it was written.

    Folders without checksums, of other tools and earlier versions, pass. What was read once and
    has not changed since is not read again.

    Raises:
        DataError: the message names the damaged file, and what to do.
    """
    if path.name.startswith(".") and path.suffix in (".partial", ".replaced"):
        finished = ", ".join(p.name for _, p in step_folders(path.parent)) or "none"
        raise DataError(f"{path} is an unfinished checkpoint; finished beside it: {finished}")
    if not (path / _SUMS).exists():
        return
    known = read_object(path / _SUMS, _remedy(path))
    lacking = sorted(name for name in known if name != _STATE and not (path / name).exists())
    if lacking:
        raise DataError(
            f"{path / lacking[0]} is missing: {_remedy(path)}. If it was removed on purpose, "
            f"remove {path / _SUMS} too"
        )
    files = [path / name for name in sorted(known) if (path / name).exists()]
    stats = [file.stat() for file in files]
    found = _sums_of(tuple(files), tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in stats))
    for file, value in zip(files, found, strict=True):
        if value != known[str(file.relative_to(path))]:
            raise DataError(
                f"{file} is not what was written there, but cut off, garbled or edited: "
                f"{_remedy(path)}. If it was edited on purpose, remove {path / _SUMS}"
            )


def load_state(path: Path, parts: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Return the trainer's state of a checkpoint, which must have these parts.

    Raises:
        DataError: the checkpoint cannot be resumed from.
    """
    file = path / _STATE
    if not file.exists():
        raise DataError(
            f"{path} holds no {_STATE}: it is a finished policy, not a resume point, or two runs "
            f"wrote into this folder at the same time. To train on, {_remedy(path)}"
        )
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # any: pickles and archives that are cut off raise all kinds
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{file} is damaged ({reason}): {_remedy(path)}") from error
    if not isinstance(state, dict) or not state.keys() >= parts:
        raise DataError(f"{file} is damaged (parts are missing): {_remedy(path)}")
    return state


def read_manifest(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest, empty where another tool wrote the folder.

    Raises:
        DataError: it is damaged.
    """
    file = path / _MANIFEST
    return read_object(file, _remedy(path)) if file.exists() else {}


def drop_state(path: Path) -> None:
    """Forget the optimizer state of a checkpoint that will not be resumed from."""
    (path / _STATE).unlink(missing_ok=True)


def step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of the complete `step-N` checkpoints in a folder, in order."""
    names = [(p.name.removeprefix("step-"), p) for p in folder.glob("step-*") if p.is_dir()]
    return sorted((int(number), p) for number, p in names if number.isdecimal())


def _remedy(path: Path) -> str:
    """Say what to do about a damaged checkpoint."""
    steps = step_folders(path.parent)
    number = next((n for n, p in steps if p.name == path.name), None)
    if number is None:
        return f"restore it from a copy, or remove {path} and make it again"
    before = [p.name for n, p in steps if n < number]
    later = " and the later ones beside it" if number < steps[-1][0] else ""
    return (
        f"restore it from a copy, or remove the folder {path}{later}, and the same command goes on "
        f"from {before[-1] if before else 'the beginning'}"
    )


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != _SUMS)
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:  # hashing lets other threads run
        found = pool.map(_synced_sum, files)
        return {str(p.relative_to(folder)): value for p, value in zip(files, found, strict=True)}


def _synced_sum(file: Path) -> str:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
        return hashlib.file_digest(stream, "sha256").hexdigest()


@lru_cache(maxsize=64)
def _sums_of(files: tuple[Path, ...], stamps: tuple[tuple[int, int, int], ...]) -> tuple[str, ...]:
    """Return the files' checksums; `stamps` make the cache forget files that have changed."""
    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        return tuple(pool.map(_sum, files))


def _sum(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from error
