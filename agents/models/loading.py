"""Models and tokenizers from folders and hub ids, with errors that say what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME, cached_file
from transformers.utils import logging as transformers_logging

from agents.models.location import check_model
from mathenv.errors import ConfigError
from mathenv.notices import notice

# Settings of how to generate that others depend on: they are kept before those.
_MODES = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "do_sample",
    "num_beams",
    "use_cache",
    "return_dict_in_generate",
)
# With these a model of `max_position_embeddings` positions is meant for `factor` times as many.
_STRETCHED = frozenset({"linear", "dynamic", "yarn"})
# With these the frequencies of all sequences of a pass follow the longest one.
_SHARED_FREQUENCIES = frozenset({"dynamic", "longrope"})


def load_tokenizer(path: str | Path) -> Any:
    """Load a tokenizer from a folder or hub id.

    Raises:
        ConfigError: there is none, or one of its files is damaged; the message names it.
    """
    given = check_model(path)
    try:
        return AutoTokenizer.from_pretrained(path, **given)
    except Exception as error:  # any: damaged files raise all kinds, `tokenizers` a bare Exception
        raise ConfigError(f"cannot load a tokenizer from {path}: {_reason(path, error)}") from error


def load_causal_lm(path: str | Path, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """Load a causal LM from a folder or hub id in evaluation mode.

    What its `generation_config.json` holds that transformers would refuse to save is left out,
    and a notice says so.

    Raises:
        ConfigError: it cannot be loaded, one of its files is damaged (the message names it), or
            the device is not there.
    """
    given = check_model(path)
    number = getattr(torch, dtype, None)
    if not isinstance(number, torch.dtype) or not number.is_floating_point:
        raise ConfigError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    place = _device(device)
    repaired = _repaired_file(path)
    if repaired is not None:
        given["generation_config"] = repaired
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            path, dtype=number, output_loading_info=True, **given
        )
    except Exception as error:  # any: damaged files raise all kinds
        raise ConfigError(
            f"cannot load a causal language model from {path}: {_reason(path, error)}"
        ) from error
    if report["missing_keys"]:  # Hugging Face would draw them at random and only warn
        names = ", ".join(sorted(report["missing_keys"])[:3])
        raise ConfigError(f"{path} lacks {len(report['missing_keys'])} weights, e.g. {names}")
    _repair_loaded(model, path)
    return model.to(place).eval()


def position_limit(config: Any) -> int | None:
    """Return how many tokens a sequence of a model may have at most, None where none is known."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    for rope in _ropes(text):
        if _rope_type(rope) in _STRETCHED:
            original = rope.get("original_max_position_embeddings") or limit
            limit = max(limit, int(original * (rope.get("factor") or 1.0)))
    return limit


def company_limit(config: Any) -> int | None:
    """Return up to which length a sequence does not depend on others of its forward pass.

    None where it never does. With dynamic and longrope scaling a longer sequence changes the
    positions' frequencies for the whole pass (transformers computes one set of them per pass).
    """
    text = config.get_text_config()
    limits = [
        rope.get("original_max_position_embeddings")
        or getattr(text, "original_max_position_embeddings", None)
        or getattr(text, "max_position_embeddings", None)
        for rope in _ropes(text)
        if _rope_type(rope) in _SHARED_FREQUENCIES
    ]
    return min((int(limit) for limit in limits if limit), default=None)


def _ropes(text: Any) -> list[Mapping[str, Any]]:
    """Return the settings of rotary positions: one set, or one for each type of layer."""
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(found, Mapping):
        return []
    nested = [value for value in found.values() if isinstance(value, Mapping)]
    return nested or [found]


def _rope_type(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device must be cpu, cuda or cuda:NUMBER, not {name!r}") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"there is no device {name!r}: torch {torch.__version__} finds no GPU here. Use the "
            "device cpu, or install the driver and a build of torch for CUDA"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"there is no device {name!r}: this machine has {torch.cuda.device_count()} GPUs, "
            "counted from cuda:0"
        )
    try:
        torch.empty(0, device=device)
    # Each kind of device that a build of torch lacks is another of these.
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0]  # torch adds all that it knows
        raise ConfigError(f"there is no device {name!r} here: {why}") from error
    return device


def _reason(path: str | Path, error: Exception) -> str:
    """Say why a folder cannot be loaded: by its damaged file, where there is one."""
    folder = Path(path)
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            _read(file)
        except Exception as damage:  # any: that is what is being looked for
            return f"{file} is damaged ({damage}). Restore it from a copy, or download it again"
    return str(error) or type(error).__name__


def _read(file: Path) -> None:
    match file.suffix:
        case ".json":
            json.loads(file.read_bytes())
        case ".jinja":
            file.read_text("utf-8")
        case ".safetensors":
            with safe_open(file, "pt") as tensors:
                tensors.keys()


def _repaired_file(path: str | Path) -> GenerationConfig | None:
    """Return what is valid of a model's `generation_config.json`; None: nothing is to repair."""
    try:
        file = Path(str(cached_file(str(path), GENERATION_CONFIG_NAME)))
    except Exception:  # any: there is none, or no hub answers; the model itself will tell
        return None
    try:
        values = json.loads(file.read_bytes())
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError) as error:
        notice(f"{file} is damaged ({error}) and left out: checkpoints get a new one")
        return GenerationConfig()
    return _repaired(values, str(file))


def _repair_loaded(model: Any, path: str | Path) -> None:
    """Repair settings that came from `config.json`, where older models keep them."""
    config = getattr(model, "generation_config", None)
    if config is not None and model.can_generate():
        repaired = _repaired(config.to_diff_dict(), f"{path}/config.json")
        if repaired is not None:
            model.generation_config = repaired


def _repaired(values: Mapping[str, Any], source: str) -> GenerationConfig | None:
    """Return a configuration without what cannot be saved, and say what that was."""
    values = {k: v for k, v in values.items() if k not in ("transformers_version", "_from_auto")}
    with _silence():
        if _valid(values):
            return None
        kept: dict[str, Any] = {}
        for name in sorted(values, key=lambda n: (n not in _MODES, n)):
            if _valid({**kept, name: values[name]}):
                kept[name] = values[name]
        config = GenerationConfig.from_dict(kept)
    dropped = ", ".join(f"{name} = {values[name]!r}" for name in values if name not in kept)
    notice(
        f"{source} holds settings that contradict the others there, so that transformers refuses "
        f"to save it; left out of what is loaded and of checkpoints: {dropped}. How episodes are "
        "sampled does not depend on them"
    )
    return config


def _valid(values: Mapping[str, Any]) -> bool:
    try:
        GenerationConfig.from_dict(dict(values)).validate(strict=True)
    except Exception:  # any: wrong types raise other errors than wrong values
        return False
    return True


@contextmanager
def _silence() -> Iterator[None]:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
