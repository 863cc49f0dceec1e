"""Shapes of models and GPUs: the numbers that `plan` computes with."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from learners.recipe import Recipe
from mathenv.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Shape:
    """A dense decoder: everything that parameters, FLOPs and caches follow from.

    `tied`: input embedding and head are one matrix. Biases and norms beyond two per layer
    are left out (below 0.01% of the parameters).
    """

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool

    @property
    def layer_parameters(self) -> int:
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return attention + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def head_parameters(self) -> int:
        return self.vocab * self.hidden

    @property
    def body_parameters(self) -> int:
        """All but the embeddings: what every token is multiplied with."""
        return self.layers * self.layer_parameters + self.hidden

    @property
    def parameters(self) -> int:
        return self.body_parameters + self.head_parameters * (1 if self.tied else 2)

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values per token, in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * 2

    def lora_parameters(self, rank: int) -> int:
        """Return the parameters of LoRA adapters on all matrices of all layers."""
        attention = 2 * (self.hidden + self.heads * self.head_dim)
        attention += 2 * (self.hidden + self.kv_heads * self.head_dim)
        return rank * self.layers * (attention + 3 * (self.hidden + self.intermediate))


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, as its maker publishes it.

    Args:
        gigabytes: memory, in 10^9 bytes.
        teraflops: dense bfloat16 peak of the tensor cores, float32 accumulation.
        bandwidth: of its memory, in 10^9 bytes per second.
    """

    name: str
    gigabytes: float
    teraflops: float
    bandwidth: float


_GEMMA_7B = (3072, 28, 16, 16, 256, 24576, 256000, True)

# The config.json of each model on the Hugging Face hub.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("google/gemma-1.1-7b-it", *_GEMMA_7B),
        Shape("google/codegemma-1.1-7b-it", *_GEMMA_7B),
        Shape("mistralai/Mistral-7B-v0.3", 4096, 32, 32, 8, 128, 14336, 32768, False),
        Shape("google/gemma-2-9b-it", 3584, 42, 16, 8, 256, 14336, 256000, True),
    )
}

# NVIDIA's data sheets: A100 (SXM), H100 (SXM) and H200, where the sheets with sparsity are
# halved; L40S; for the RTX 4090 the whitepaper of the Ada architecture, appendix A.
DEVICES = {
    device.name: device
    for device in (
        Device("A100-40G", 40, 312, 1555),
        Device("A100-80G", 80, 312, 2039),
        Device("H100-80G", 80, 989, 3350),
        Device("H200-141G", 141, 989, 4800),
        Device("L40S-48G", 48, 362, 864),
        Device("RTX4090-24G", 24, 165, 1008),
    )
}


def shape_of(recipe: Recipe) -> Shape:
    """Return the shape of a recipe's model: the embedded one, one we know, or a local folder's.

    Raises:
        ConfigError: it is none of these, or not a dense decoder.
    """
    if recipe.model == "tiny":
        tiny = recipe.tiny
        head_dim = tiny.hidden // tiny.heads
        heads = (tiny.heads, tiny.heads, head_dim)
        return Shape("tiny", tiny.hidden, tiny.layers, *heads, tiny.intermediate, tiny.vocab, True)
    if (Path(recipe.model) / "config.json").exists():
        return _read(recipe.model)
    if recipe.model not in SHAPES:
        raise ConfigError(
            f"the shape of {recipe.model} is not known: give the folder with its config.json, "
            f"or one of {', '.join(SHAPES)}"
        )
    return SHAPES[recipe.model]


def _read(folder: str) -> Shape:
    config: Any = AutoConfig.from_pretrained(folder).get_text_config()
    experts = [
        k for k in ("num_experts", "num_local_experts", "n_routed_experts") if hasattr(config, k)
    ]
    missing = [k for k in ("hidden_size", "intermediate_size") if not hasattr(config, k)]
    if experts or missing:
        raise ConfigError(
            f"{folder} cannot be planned: only dense decoders with gated layers are modelled, "
            f"and its config.json {'has ' if experts else 'lacks '}{', '.join(experts or missing)}"
        )
    heads = config.num_attention_heads
    return Shape(
        name=folder,
        hidden=config.hidden_size,
        layers=config.num_hidden_layers,
        heads=heads,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        intermediate=config.intermediate_size,
        vocab=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )


def parse_gpus(text: str) -> tuple[int, Device]:
    """Read `8xA100-80G`, or `H200-141G` for one.

    Raises:
        ConfigError: no such GPU; CPUs are refused, nothing here says how fast they are.
    """
    match = re.fullmatch(r"(?:(\d+)x)?(.+)", text.strip(), re.IGNORECASE)
    assert match is not None or not text.strip()
    count = int(match[1] or 1) if match else 0
    wanted = match[2].upper() if match else ""
    if wanted == "CPU":
        raise ConfigError(
            "there is no plan for CPUs: the model of time is of GPUs with a batching engine. "
            "The tiny recipe is made for two CPU cores, and README.md says how long it takes"
        )
    if count < 1 or wanted not in DEVICES:
        near = did_you_mean(wanted, DEVICES)
        raise ConfigError(
            f"cannot read the GPUs {text!r}{near}: write COUNTxNAME, as 8xA100-80G. "
            f"Names: {', '.join(DEVICES)}"
        )
    return count, DEVICES[wanted]
