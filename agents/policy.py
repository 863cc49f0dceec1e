"""A checkpoint folder as an agent: the one way a learner's output comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.base import SamplingParams
from agents.dialects import find_dialect
from agents.llm import LLMAgent
from agents.models.transformers import TransformersModel, load_causal_lm, load_tokenizer
from agents.models.vllm import VLLMModel, VLLMOptions
from agents.rendering import ChatRenderer
from agents.templates import ToolRole


@dataclass(frozen=True, slots=True)
class RenderOptions:
    """How a conversation is written; see `ChatRenderer`. `dialect` is a name or None.

    `stop_strings` of None are the dialect's.
    """

    dialect: str | None = None
    tool_role: ToolRole = "user"
    system: str = ""
    stop_strings: tuple[str, ...] | None = None

    def renderer(self, tokenizer: Any) -> ChatRenderer:
        """Return a renderer for this tokenizer.

        Raises:
            ConfigError: no such dialect. RenderError: its template cannot be used.
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
    device: str = "cpu",
    dtype: str = "float32",
    max_batch: int = 128,
    rendering: RenderOptions | None = None,
) -> Iterator[LLMAgent]:
    """Load a folder or hub id as an agent over the transformers engine, and close it after.

    Raises:
        ConfigError: it cannot be loaded. RenderError: its template cannot be used.
    """
    rendering = rendering or RenderOptions()
    tokenizer = load_tokenizer(path)
    renderer = rendering.renderer(tokenizer)
    model = load_causal_lm(path, dtype=dtype, device=device)
    engine = TransformersModel(model, tokenizer, name=name or str(path), max_batch=max_batch)
    try:
        yield LLMAgent(engine, renderer, sampling, stop_strings=rendering.stop_strings)
    finally:
        engine.close()


@contextmanager
def load_vllm_policy(
    path: str | Path,
    sampling: SamplingParams | None = None,
    *,
    name: str | None = None,
    options: VLLMOptions | None = None,
    rendering: RenderOptions | None = None,
) -> Iterator[LLMAgent]:
    """Load a folder or hub id as an agent over vLLM in this process, and close it after.

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
