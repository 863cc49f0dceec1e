"""An agent over a model that is asked in text: no template, no tokens, nothing to train on.

Its trajectories hold no `TokenRecord`, by which they are known, and learners refuse them.
Whoever wants to train on them all the same re-tokenises: `agents.convert`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agents.base import Action, ChatMessage, ChatModel, ChatRequest, SamplingParams
from agents.llm import derive_seed
from mathenv.protocol import output_block


class ChatAgent:
    """A policy that asks `model` for its turns; implements `agents.base.Agent`.

    Args:
        system: text of a system message (none by default).
        stop_strings: texts that end a turn.
    """

    def __init__(
        self,
        model: ChatModel,
        sampling: SamplingParams | None = None,
        *,
        name: str | None = None,
        system: str = "",
        stop_strings: tuple[str, ...] = (),
    ) -> None:
        self.model = model
        self.sampling = sampling or SamplingParams()
        self.system = system
        self.stop_strings = stop_strings
        self._name = name or model.name

    @property
    def name(self) -> str:
        return self._name

    @asynccontextmanager
    async def episode(self, question: str, *, sample: int, seed: int) -> AsyncIterator[ChatEpisode]:
        yield ChatEpisode(self, derive_seed(seed, sample, question))


class ChatEpisode:
    """One conversation. The token budget counts what the server reported so far."""

    def __init__(self, agent: ChatAgent, seed: int) -> None:
        self._agent = agent
        self._seed = seed
        self._turn = 0
        self._used = 0
        self._messages = [ChatMessage("system", agent.system)] if agent.system else []

    async def act(self, observation: str) -> Action | None:
        """Answer the question or the interpreter's output; None when no token is left."""
        sampling = self._agent.sampling
        room = sampling.max_tokens - self._used
        if room <= 0:
            return None
        content = output_block(observation) if self._turn else observation
        self._messages.append(ChatMessage("user", content))
        reply = await self._agent.model.reply(
            ChatRequest(
                messages=tuple(self._messages),
                max_new_tokens=min(room, sampling.max_turn_tokens),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=derive_seed(self._seed, self._turn),
                stop_strings=self._agent.stop_strings,
            )
        )
        self._messages.append(ChatMessage("assistant", reply.text))
        self._used = reply.total_tokens or self._used
        self._turn += 1
        return Action(reply.text, reply.finish)

    def tokens(self) -> None:
        return None
