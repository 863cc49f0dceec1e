"""What to tell a user about an error: one sentence, or None for an error of the program."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from benchmarks.ownership import PACKAGES, trouble
from benchmarks.start import EXIT_INTERRUPTED
from mathenv.errors import MathEnvError, install_hint
from mathenv.files import sentence

__all__ = ["EXIT_BUG", "EXIT_ERROR", "EXIT_INTERRUPTED", "explain", "interrupted"]

EXIT_BUG, EXIT_ERROR = 1, 2
_TRAIN = frozenset({"accelerate", "cattrs", "torch", "transformers", "tokenizers", "safetensors"})
_EXTRAS = {
    **dict.fromkeys((*_TRAIN, "matplotlib"), "train"),
    "datasets": "data",
    "docker": "docker",
    "openai": "openai",
    "peft": "lora",
    "ray": "ray",
    "trl": "trl",
    "vllm": "vllm",
    "wandb": "wandb",
}


def explain(error: BaseException) -> str | None:
    """Return the sentence for what a user can act on, None where the program is at fault."""
    for part in _parts(error):
        said = _sentence(part)
        if said is not None:
            return said
    return None


def interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is the cause: tasks that run side by side raise groups of errors."""
    return any(isinstance(part, KeyboardInterrupt) for part in _parts(error))


def _parts(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _parts(inner)
    else:
        yield error


def _sentence(error: BaseException) -> str | None:
    if isinstance(error, MathEnvError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        return f"this needs the package {error.name}: {install_hint(_EXTRAS[error.name])}"
    if isinstance(error, ImportError) and (error.name or "").split(".")[0] in PACKAGES:
        return trouble((error.name or "").split(".")[0]) or None
    if isinstance(error, OSError):
        return sentence(error)
    if isinstance(error, sqlite3.OperationalError):  # it names no file; we write one such
        return f"reference.sqlite cannot be used ({error}): make room or choose another --out"
    if isinstance(error, MemoryError):
        return "this machine has no memory left: use a smaller model or smaller batches"
    return None
