"""What an agent is, and what a language model is. Read this file first.

An `Agent` opens one `Episode` per problem and is then told observations and asked for
actions, like any Gymnasium policy. A `LanguageModel` completes token ids; everything
about text (templates, stop strings, masks) is in `rendering`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mathenv.errors import ConfigError
from mathenv.settings import Count, NotNegative, PositiveShare, check_settings
from mathenv.types import FinishReason, TokenRecord


@dataclass(frozen=True, slots=True)
class Action:
    """One turn's text and why it ended."""

    text: str
    finish: FinishReason = FinishReason.STOP


class Episode(Protocol):
    """An agent's side of one episode. Not thread safe; used by one coroutine."""

    async def act(self, observation: str) -> Action | None:
        """Answer the observation (the question first).

        None when the trajectory's token budget leaves no room for another turn.
        """
        ...

    def tokens(self) -> TokenRecord | None:
        """Return the exact tokens so far, None for agents without tokens."""
        ...


@runtime_checkable
class Agent(Protocol):
    """A policy. `name` goes into every trajectory and result.

    The episode is opened with the question alone: agents never see a `Problem`, which
    holds the reference answer. `sample` numbers the episodes of one question; with
    `seed` it makes every sample distinct and repeatable.
    """

    @property
    def name(self) -> str: ...

    def episode(
        self, question: str, *, sample: int, seed: int
    ) -> AbstractAsyncContextManager[Episode]: ...


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. Defaults are the paper's (section 3.1).

    `temperature` 0 is greedy. `max_turn_tokens` bounds one turn, `max_tokens` the whole
    trajectory (prompt, actions and observations).

    Raises:
        ConfigError: a value with which nothing can be sampled.
    """

    temperature: NotNegative = 1.0
    top_p: PositiveShare = 1.0
    max_turn_tokens: Count = 512
    max_tokens: Count = 2048

    def __post_init__(self) -> None:
        check_settings(self)


GREEDY = SamplingParams(temperature=0.0)


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Token ids in. The engine appends nothing of its own, no BOS either."""

    ids: Sequence[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()


def check_request(request: CompletionRequest) -> None:
    """Raise `ConfigError` for a request that no engine can answer."""
    if not request.ids or request.max_new_tokens < 1:
        raise ConfigError("a completion needs a non-empty prompt and max_new_tokens >= 1")


@dataclass(frozen=True, slots=True)
class Completion:
    """Token ids out, exactly as sampled: the end-of-turn token too, where it was sampled.

    `logprobs[i]` is the log-probability of `ids[i]` at temperature 1.
    """

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: FinishReason


class ModelSession(Protocol):
    """One conversation with an engine, so that it can keep a KV cache or a route."""

    async def complete(self, request: CompletionRequest) -> Completion: ...


@runtime_checkable
class LanguageModel(Protocol):
    """An engine. `close` frees its memory and is safe to call twice."""

    @property
    def name(self) -> str: ...

    def session(self) -> AbstractAsyncContextManager[ModelSession]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message. `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A conversation as text, for models whose tokens nobody can see."""

    messages: tuple[ChatMessage, ...]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop_strings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChatReply:
    """The next message. `total_tokens` counts the conversation with it, None if unknown."""

    text: str
    finish: FinishReason
    total_tokens: int | None = None


@runtime_checkable
class ChatModel(Protocol):
    """A model that is asked in text. `close` is safe to call twice."""

    @property
    def name(self) -> str: ...

    async def reply(self, request: ChatRequest) -> ChatReply: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class WeightedAgent:
    """A member of a sampling mixture: `samples` episodes per problem (paper: 20 + 10)."""

    agent: Agent
    samples: int = 1
