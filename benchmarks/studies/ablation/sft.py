"""Take the start of an earlier run instead of training it again."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from learners.recipe import Recipe
from mathenv.errors import ConfigError, DataError
from mathenv.store import read_object, write_atomic

TAKEN = "sft.json"  # says that SFT was taken, and with how many threads it was made


def adopt(source: Path, target: Path, recipe: Recipe) -> None:
    """Take base model, demonstrations and SFT of a finished run, unless SFT is done.

    Raises:
        ConfigError: see `check_sft`.
    """
    if (target / "sft" / "done").exists():
        return
    threads = check_sft(source, recipe)
    for name in ("base", "sft"):
        partial = target / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        # The learner `sft` puts its iterations beside the SFT that all start from.
        shutil.copytree(source / name, partial, ignore=shutil.ignore_patterns("iteration-*"))
        shutil.rmtree(target / name, ignore_errors=True)
        partial.rename(target / name)
    write_atomic(target / TAKEN, json.dumps({"threads": threads}))


def check_sft(source: Path, recipe: Recipe) -> int:
    """Return with how many threads the SFT of a run's seed was made.

    Raises:
        ConfigError: there is no finished SFT, or it is not what the recipe says.
    """
    if not (source / "sft" / "done").exists():
        raise ConfigError(f"{source} holds no finished SFT: give the --out folder of a run")
    manifest = source / "manifest.json"
    found = read_object(manifest, "restore it from a copy, or leave out --sft").get("recipe", {})
    if not found.keys() >= {"problems", "threads"}:
        raise DataError(f"{manifest} is damaged (parts are missing): leave out --sft")
    wanted = json.loads(json.dumps(asdict(recipe)))
    names = ["model", "tiny", "sft", "first_previous", "seed"]
    # A setting that an older run does not know had its default.
    changed = [name for name in names if found.get(name, wanted[name]) != wanted[name]]
    shown = {"source", "data", "demonstrations", "demonstration_file", "direct_share", "seed"}
    old, new = found["problems"], wanted["problems"]
    changed += [f"problems.{k}" for k in sorted(shown & set(old)) if old[k] != new[k]]
    if changed:
        raise ConfigError(f"{source} has another SFT (differs in {', '.join(changed)})")
    return int(found["threads"])
