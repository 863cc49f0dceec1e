"""LoRA through peft: small trained matrices beside frozen ones (arXiv 2106.09685).

Checkpoints hold the merged weights as an ordinary model folder, which everything loads, and
the adapter alone in `adapter/`, as peft writes it. Without its adapter the model is the policy
that the stage began with, so that needs no second model in memory.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from agents.models.hf import load_causal_lm
from learners.settings import LoRA
from mathenv.errors import ConfigError, DataError, install_hint

ADAPTER = "adapter"  # its folder inside a checkpoint
PEFT = f"the package peft ({install_hint('lora')})"
_NAME = "default"  # peft's for an adapter without one
_FILE = "adapter_model.safetensors"


def load_trained(policy: Path, checkpoint: Path | None, lora: LoRA, *, seed: int = 0) -> Any:
    """Load what a stage trains: all weights, or a frozen policy with its adapters.

    Args:
        policy: what the stage began with.
        checkpoint: its last checkpoint, to go on from.
        seed: of new adapters, which change nothing yet.

    Raises:
        ConfigError: no peft, or targets that the model lacks or that cannot be adapted.
        DataError: the checkpoint holds no adapter.
    """
    if lora.rank == 0:
        return load_causal_lm(checkpoint or policy)
    if lacks_peft(lora):
        raise ConfigError(f"this machine lacks {PEFT}, which LoRA needs")
    model = load_causal_lm(policy, dtype=lora.dtype)
    _add_adapters(model, lora, seed)
    if checkpoint is not None:
        _restore(model, checkpoint / ADAPTER / _FILE)
    return model


def lacks_peft(lora: LoRA) -> bool:
    """Say whether these settings need a package that is not installed."""
    return lora.rank > 0 and find_spec("peft") is None


def has_adapters(model: Any) -> bool:
    """Say whether a model was loaded with adapters."""
    return bool(getattr(model, "_hf_peft_config_loaded", False))


@contextmanager
def adapters_off(model: Any) -> Iterator[Any]:
    """Give the model as it was without adapters, for forward passes."""
    model.disable_adapters()
    try:
        yield model
    finally:
        model.enable_adapters()


@contextmanager
def dropping(model: Any, lora: LoRA, seed: str) -> Iterator[None]:
    """Let adapters drop inputs, the same ones for the same seed. The rest has no dropout."""
    if lora.rank == 0 or lora.dropout == 0:
        yield
        return
    layers = [m for name, m in model.named_modules() if ".lora_dropout." in name]
    with torch.random.fork_rng():
        torch.manual_seed(random.Random(seed).getrandbits(63))
        for layer in layers:
            layer.train()
        try:
            yield
        finally:
            for layer in layers:
                layer.eval()


def save_merged(folder: Path, model: Any, state: Mapping[str, Tensor] | None = None) -> None:
    """Write the adapter, then configuration and merged weights, as `from_pretrained` reads them.

    `state` is the model's whole state where its own is spread over processes.
    """
    state = model.state_dict() if state is None else state
    model.save_pretrained(folder / ADAPTER, state_dict=dict(state))
    merged = merged_state(state, _scaling(model))
    with torch.device("meta"):  # the plain architecture, which knows how to save itself
        plain = AutoModelForCausalLM.from_config(model.config)
    plain.generation_config = model.generation_config
    plain.to(next(iter(merged.values())).dtype)
    plain.save_pretrained(folder, state_dict=merged)


def merged_state(state: Mapping[str, Tensor], scaling: float) -> dict[str, Tensor]:
    """Return the state of the plain model: W + scaling B A, under the names without adapters.

    Shapes: W (out, in), A (rank, in), B (out, rank). Computed and returned in float32 at
    least: in bfloat16 most of the product would be rounded away.
    """
    merged = {}
    for name, value in state.items():
        if ".lora_" in name:
            continue
        path, adapted, leaf = name.partition(".base_layer.")
        if value.is_floating_point():
            value = value.to(torch.promote_types(value.dtype, torch.float32))
        if adapted and leaf == "weight":
            a, b = (state[f"{path}.lora_{x}.{_NAME}.weight"] for x in "AB")
            value = value + scaling * (b @ a).to(value.dtype)
        merged[f"{path}.{leaf}" if adapted else name] = value
    return merged


def _scaling(model: Any) -> float:
    config = model.peft_config[_NAME]
    return float(config.lora_alpha / config.r)


def _add_adapters(model: Any, lora: LoRA, seed: int) -> None:
    config = import_module("peft").LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model.add_adapter(config)
        except ValueError as error:
            raise ConfigError(f"LoRA with targets {', '.join(lora.targets)}: {error}") from error
    import_module("peft.tuners.tuners_utils").cast_adapter_dtype(model, _NAME)
    model.eval()
    adapted = {n: m.base_layer for n, m in model.named_modules() if hasattr(m, "lora_A")}
    other = [name for name, layer in adapted.items() if type(layer) is not torch.nn.Linear]
    if other:
        raise ConfigError(f"LoRA: {other[0]} is no plain linear layer; leave it out of the targets")
    # One matrix with the embedding: merged, it would change what tokens mean as well.
    if hasattr(model.get_output_embeddings(), "lora_A") and _tied(model):
        raise ConfigError(
            "LoRA: this model's head is its input embedding, and cannot have an adapter of its "
            "own; leave it out of the targets"
        )


def _tied(model: Any) -> bool:
    return bool(model.config.get_text_config().tie_word_embeddings)


def _restore(model: Any, file: Path) -> None:
    if not file.exists():
        raise DataError(f"{file} is missing: this checkpoint was not trained with LoRA")
    prefix = "base_model.model."
    try:
        found = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(
            f"{file} is damaged ({error}): remove the folder {file.parents[1]}, and the same "
            "command goes on from the checkpoint before it"
        ) from error
    tensors = {name.removeprefix(prefix): value for name, value in found.items()}
    report = import_module("peft").set_peft_model_state_dict(model, tensors, _NAME)
    wrong = [*report.unexpected_keys, *(k for k in report.missing_keys if ".lora_" in k)]
    if wrong:
        raise DataError(f"{file} is not an adapter of this model: it differs in {wrong[0]}")
