"""A model behind an OpenAI-compatible server as an agent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agents.base import SamplingParams
from agents.chat import ChatAgent
from agents.llm import LLMAgent
from agents.models.hf import load_tokenizer
from agents.models.server import OpenAIChat, OpenAIModel, ServerOptions
from agents.policy import RenderOptions, within


@contextmanager
def connect_policy(
    tokenizer: str | Path,
    server: ServerOptions,
    sampling: SamplingParams | None = None,
    *,
    name: str | None = None,
    rendering: RenderOptions | None = None,
) -> Iterator[LLMAgent]:
    """Open an agent that sends and receives token ids, and close the connection after.

    `tokenizer` is the folder or hub id of the model that is served.

    Raises:
        ConfigError: the server does not answer, or the tokenizer cannot be loaded.
        RenderError: its template cannot be used.
    """
    rendering = rendering or RenderOptions()
    renderer = rendering.renderer(load_tokenizer(tokenizer))
    engine = OpenAIModel(server, name=name)
    try:
        bounded = within(sampling or SamplingParams(), engine.context)
        yield LLMAgent(engine, renderer, bounded, stop_strings=rendering.stop_strings)
    finally:
        engine.close()


@contextmanager
def connect_chat(
    server: ServerOptions,
    sampling: SamplingParams | None = None,
    *,
    name: str | None = None,
    system: str = "",
    stop_strings: tuple[str, ...] = (),
) -> Iterator[ChatAgent]:
    """Open an agent that exchanges text: its trajectories hold no tokens.

    Raises:
        ConfigError: the server does not answer.
    """
    engine = OpenAIChat(server, name=name)
    try:
        yield ChatAgent(engine, sampling, system=system, stop_strings=stop_strings)
    finally:
        engine.close()
