"""Settings of models and engines, without torch: flags and recipes are read at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from agents.dialects import find_dialect
from agents.rendering import ChatRenderer
from agents.templates import ToolRole
from mathenv.errors import ConfigError

EngineKind = Literal["transformers", "vllm"]


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """Shape of the tiny model. `hidden / heads` = 32 is a head size vLLM's CPU kernels know."""

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 384
    vocab: int = 512
    max_positions: int = 1024


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Which engine runs a folder's weights in this process, and how.

    Args:
        kind: `transformers` for any causal LM and the same bytes for the same seed, `vllm` for
            speed.
        device: where `transformers` computes, e.g. cpu or cuda. vLLM takes what its build is for.
        dtype: type of weights and activations, e.g. float32 or bfloat16.
        max_batch: requests decoded together at most; memory grows with it.
        gpu_memory: share of each GPU's memory that vLLM takes.
        tensor_parallel: GPUs that share one model, with vLLM.

    Raises:
        ConfigError: no such engine, or a number that cannot be.
    """

    kind: EngineKind = "transformers"
    device: str = "cpu"
    dtype: str = "float32"
    max_batch: int = 128
    gpu_memory: float = 0.9
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(EngineKind):
            raise ConfigError(
                f"no engine is called {self.kind!r}: use {' or '.join(get_args(EngineKind))}"
            )
        if min(self.max_batch, self.tensor_parallel) < 1 or not 0 < self.gpu_memory <= 1:
            raise ConfigError(
                f"max_batch and tensor_parallel must be at least 1, gpu_memory a share: {self}"
            )


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """How a conversation is written; see `ChatRenderer`. `dialect` is a name or None.

    `stop_strings` of None are the dialect's.

    Raises:
        ConfigError: no such dialect or role.
    """

    dialect: str | None = None
    tool_role: ToolRole = "user"
    system: str = ""
    stop_strings: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.dialect is not None:
            find_dialect(self.dialect)
        if self.tool_role not in get_args(ToolRole):
            raise ConfigError(f"tool_role must be 'user' or 'tool', not {self.tool_role!r}")

    def renderer(self, tokenizer: Any) -> ChatRenderer:
        """Return a renderer for this tokenizer.

        Raises:
            RenderError: the template cannot be used.
        """
        return ChatRenderer(
            tokenizer,
            dialect=find_dialect(self.dialect) if self.dialect else None,
            tool_role=self.tool_role,
            system=self.system,
        )
