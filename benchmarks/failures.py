"""What to tell a user about an error: one sentence, or None for an error of the program."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from benchmarks.start import EXIT_INTERRUPTED
from mathenv.errors import MathEnvError, install_hint

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
_ADVICE = {
    errno.ENOSPC: "make room there, or choose another place; what is finished is kept",
    errno.EDQUOT: "your quota is used up: make room; what is finished is kept",
    errno.EROFS: "nothing can be written there: choose another place",
    errno.EACCES: "change its permissions or choose another place",
    errno.EPERM: "change its permissions or choose another place",
    errno.ENOTDIR: "a part of this path is a file and no folder: choose another place",
    errno.EEXIST: "something else stands there: choose another place",
    errno.EISDIR: "it is a folder where a file is needed",
    errno.ENOENT: "check the spelling",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.EFBIG: "the file is larger than this system allows (see ulimit -f)",
    errno.EIO: "the disk or its connection fails",
    errno.EMFILE: "raise the limit with `ulimit -n`, or play fewer episodes at a time",
    errno.ENFILE: "this machine has too many open files: close other programs",
    errno.ENOMEM: "this machine has no memory left: use a smaller model or smaller batches",
    errno.EAGAIN: "this machine has no room for another process: see `ulimit -u`",
}


def explain(error: BaseException) -> str | None:
    """Return the sentence for what a user can act on, None where the program is at fault."""
    for part in _parts(error):
        sentence = _sentence(part)
        if sentence is not None:
            return sentence
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
    if isinstance(error, OSError) and error.errno in _ADVICE:
        return _about_file(error)
    if isinstance(error, MemoryError):
        return "this machine has no memory left: use a smaller model or smaller batches"
    return None


def _about_file(error: OSError) -> str:
    what = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{what}{os.strerror(error.errno or 0)}: {_ADVICE[error.errno or 0]}"
