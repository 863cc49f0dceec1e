"""A checkpoint folder as an agent: the one way a learner's output comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from agents.base import SamplingParams
from agents.llm import LLMAgent
from agents.models.hf import TransformersModel, load_causal_lm, load_tokenizer
from agents.models.vllm_engine import VLLMModel, VLLMOptions
from agents.settings import EngineKind, EngineOptions, RenderOptions

__all__ = [
    "EngineKind",
    "EngineOptions",
    "RenderOptions",
    "load_policy",
    "load_vllm_policy",
    "within",
]


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
