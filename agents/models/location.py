"""Where a model is: a folder of this machine, or a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from mathenv.errors import ConfigError, did_you_mean
from mathenv.hub import reachable

# As the hub takes them: NAME, or OWNER/NAME, of letters, digits and -_. inside.
_HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)


def check_model(path: str | Path) -> dict[str, Any]:
    """Return what `from_pretrained` of a folder or hub id needs besides it; nothing is loaded.

    A name that cannot be of the hub, or whose folder stands beside one of nearly that name, is
    answered at once, without a connection.

    Raises:
        ConfigError: no such folder, or none of a model; the hub does not have it, or does not
            answer and it was not downloaded before.
    """
    folder = Path(path)
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"{path} is not a model folder: it has no config.json{_inside(folder)}"
            )
        return {}
    near = _near(folder)
    name = str(path)
    beside = len(folder.parts) > 1 and folder.parent.exists()
    if folder.is_absolute() or name.startswith((".", "~")) or beside or not _HUB_ID.fullmatch(name):
        raise ConfigError(f"there is no folder {path}{near}")
    try:
        if reachable(name, "model"):
            return {}
    except ConfigError as error:
        raise ConfigError(f"there is no folder {path}{near}, and {error}") from None
    cached = import_module("huggingface_hub").try_to_load_from_cache(name, "config.json")
    if not isinstance(cached, str):
        raise ConfigError(
            f"there is no folder {path}{near}, and the Hugging Face hub cannot be asked for it: "
            "give the folder of a model, or mend the connection"
        )
    return {"local_files_only": True}


def _near(folder: Path) -> str:
    """Return a hint at a folder of nearly this name."""
    if str(folder).startswith("~"):
        return f": `~` was not replaced, write {os.path.expanduser(folder)}"
    try:
        names = [entry.name for entry in folder.parent.iterdir() if entry.is_dir()]
    except OSError:
        missing = folder.parent
        while not missing.parent.exists():
            missing = missing.parent
        return f" (there is no {missing} either)"
    return did_you_mean(folder.name, names)


def _inside(folder: Path) -> str:
    """Return a hint at model folders one level below, such as a training run's checkpoints."""
    if not folder.is_dir():
        return " (it is a file)"
    found = sorted(entry.parent.name for entry in folder.glob("*/config.json"))
    return f"; these in it are: {', '.join(found[:5])}" if found else ""
