"""A checkpoint folder as an agent: the one way a learner's output comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from agents.base import SamplingParams
from agents.dialects import find_dialect
from agents.llm import LLMAgent
from agents.models.transformers import TransformersModel, load_causal_lm, load_tokenizer
from agents.models.vllm import VLLMModel, VLLMOptions
from agents.rendering import ChatRenderer
from agents.templates import ToolRole
from mathenv.errors import ConfigError
from mathenv.settings import Count, PositiveShare, check_settings

EngineKind = Literal["transformers", "vllm"]


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


@contextmanager
def load_policy(
    path: str | Path,
    sampling: SamplingParams | None = None,
    *,
    name: str | None = None,
    engine: EngineOptions | None = None,
    rendering: RenderOptions | None = None,
) -> Iterator[LLMAgent]:
    """Load a folder or hub id as an agent, and close its engine after.

    Raises:
        ConfigError: it cannot be loaded. RenderError: its template cannot be used.
    """
    engine, rendering = engine or EngineOptions(), rendering or RenderOptions()
    if engine.kind == "vllm":
        options = VLLMOptions(
            dtype=engine.dtype,
            max_sequences=engine.max_batch,
            gpu_memory=engine.gpu_memory,
            tensor_parallel=engine.tensor_parallel,
        )
        with load_vllm_policy(
            path, sampling, name=name, options=options, rendering=rendering
        ) as agent:
            yield agent
        return
    tokenizer = load_tokenizer(path)
    renderer = rendering.renderer(tokenizer)
    weights = load_causal_lm(path, dtype=engine.dtype, device=engine.device)
    model = TransformersModel(
        weights, tokenizer, name=name or str(path), max_batch=engine.max_batch
    )
    try:
        yield LLMAgent(model, renderer, sampling, stop_strings=rendering.stop_strings)
    finally:
        model.close()


@contextmanager
def load_vllm_policy(
    path: str | Path,
    sampling: SamplingParams | None = None,
    *,
    name: str | None = None,
    options: VLLMOptions | None = None,
    rendering: RenderOptions | None = None,
) -> Iterator[LLMAgent]:
    """Do what `load_policy` does with vLLM, whose every option can be set here.

    Trajectories are also bounded by the model's context.

    Raises:
        ConfigError: it cannot be loaded. RenderError: its template cannot be used.
    """
    rendering = rendering or RenderOptions()
    renderer = rendering.renderer(load_tokenizer(path))
    engine = VLLMModel.load(path, name=name, options=options)
    try:
        bounded = within(sampling or SamplingParams(), engine.context)
        yield LLMAgent(engine, renderer, bounded, stop_strings=rendering.stop_strings)
    finally:
        engine.close()


def within(sampling: SamplingParams, context: int | None) -> SamplingParams:
    """Return `sampling` with its token limit lowered to the model's context, if known."""
    return replace(sampling, max_tokens=min(sampling.max_tokens, context or sampling.max_tokens))
