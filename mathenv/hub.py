"""The Hugging Face hub, asked once and briefly: its own libraries try again for a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any, Literal

from mathenv.errors import ConfigError

ANSWER_SECONDS = 10.0
_SETTINGS = ("huggingface_hub.constants", "datasets.config")  # each has one of its own


@cache
def reachable(repository: str, kind: Literal["model", "dataset"]) -> bool:
    """Whether the hub can be asked for `repository`; False without a connection, or offline.

    Needs the package huggingface_hub, which transformers and datasets bring.

    Raises:
        ConfigError: the hub says that there is no such repository, or that it is not for us.
    """
    hub, errors = import_module("huggingface_hub"), import_module("huggingface_hub.errors")
    try:
        hub.HfApi().repo_info(repository, repo_type=kind, timeout=ANSWER_SECONDS)
    except (errors.GatedRepoError, errors.DisabledRepoError) as error:
        raise ConfigError(
            f"the hub does not give {repository} away: accept its terms on its page, then "
            f"`hf auth login` ({_first_line(error)})"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise ConfigError(
            f"the hub has no {kind} called {repository!r}, or it is private: check the "
            "spelling, or `hf auth login`"
        ) from None
    except Exception:  # each version of its HTTP library has other errors for this
        return False
    return True


@contextmanager
def offline() -> Iterator[None]:
    """Let `datasets` use what is on this machine, without asking the hub for what is not."""
    modules: list[Any] = [import_module(name) for name in _SETTINGS]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
