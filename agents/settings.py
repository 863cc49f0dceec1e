"""Settings of models and engines, without torch: flags and recipes are read at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from agents.dialects import find_dialect
from agents.rendering import ChatRenderer
from agents.templates import ToolRole
from mathenv.errors import ConfigError
from mathenv.settings import Count, PositiveShare, Range, check_settings

EngineKind = Literal["transformers", "vllm"]


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """Shape of the tiny model. `hidden / heads` = 32 is a head size vLLM's CPU kernels know."""

    hidden: Count = 128
    layers: Count = 4
    heads: Count = 4
    intermediate: Count = 384
    vocab: Annotated[int, Range(261)] = 512
    max_positions: Count = 1024

    def __post_init__(self) -> None:
        check_settings(self)
        if self.hidden % (2 * self.heads):
            raise ConfigError(
                f"hidden must be an even multiple of heads, not {self.hidden} for {self.heads} "
                "heads: each head has an even share of it"
            )


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
    max_batch: Count = 128
    gpu_memory: PositiveShare = 0.9
    tensor_parallel: Count = 1

    def __post_init__(self) -> None:
        check_settings(self)
        if self.kind not in get_args(EngineKind):
            raise ConfigError(
                f"no engine is called {self.kind!r}: use {' or '.join(get_args(EngineKind))}"
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
