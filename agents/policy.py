"""A checkpoint folder as an agent: the one way a learner's output comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agents.base import SamplingParams
from agents.llm import LLMAgent
from agents.models.transformers import TransformersModel, load_causal_lm, load_tokenizer
from agents.rendering import ChatRenderer


@contextmanager
def load_policy(
    path: str | Path,
    sampling: SamplingParams | None = None,
    *,
    name: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    max_batch: int = 128,
) -> Iterator[LLMAgent]:
    """Load a folder or hub id as an agent over the transformers engine, and close it after.

    Raises:
        ConfigError: it cannot be loaded. RenderError: its template cannot be used.
    """
    tokenizer = load_tokenizer(path)
    renderer = ChatRenderer(tokenizer)
    model = load_causal_lm(path, dtype=dtype, device=device)
    engine = TransformersModel(model, tokenizer, name=name or str(path), max_batch=max_batch)
    try:
        yield LLMAgent(engine, renderer, sampling)
    finally:
        engine.close()
