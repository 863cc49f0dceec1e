"""The LLM agent: a language model, a renderer and how to sample."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agents.base import (
    Action,
    CompletionRequest,
    LanguageModel,
    ModelSession,
    SamplingParams,
)
from agents.rendering import ChatRenderer, Ledger
from mathenv.types import SpanKind, TokenRecord


class LLMAgent:
    """A policy that samples its turns from `model`; implements `agents.base.Agent`.

    `stop_strings` end a turn; left out, the renderer's dialect says which.
    """

    def __init__(
        self,
        model: LanguageModel,
        renderer: ChatRenderer,
        sampling: SamplingParams | None = None,
        *,
        name: str | None = None,
        stop_strings: tuple[str, ...] | None = None,
    ) -> None:
        self.model = model
        self.renderer = renderer
        self.sampling = sampling or SamplingParams()
        self.stop_strings = renderer.stop_strings if stop_strings is None else stop_strings
        self._name = name or model.name

    @property
    def name(self) -> str:
        return self._name

    @property
    def max_tokens(self) -> int:
        """Return the most tokens of a trajectory: as asked for, or what the model has room for."""
        context: int | None = getattr(self.model, "context", None)
        return min(self.sampling.max_tokens, context or self.sampling.max_tokens)

    @asynccontextmanager
    async def episode(self, question: str, *, sample: int, seed: int) -> AsyncIterator[LLMEpisode]:
        async with self.model.session() as session:
            yield LLMEpisode(self, session, derive_seed(seed, sample, question))


class LLMEpisode:
    """One conversation. Tokens are appended as sampled and never re-tokenised."""

    def __init__(self, agent: LLMAgent, session: ModelSession, seed: int) -> None:
        self._agent = agent
        self._session = session
        self._seed = seed
        self._turn = 0
        self._ledger = Ledger(agent.renderer.fingerprint)

    async def act(self, observation: str) -> Action | None:
        """Answer the question or the interpreter's output; None when no token fits."""
        renderer, sampling, ledger = self._agent.renderer, self._agent.sampling, self._ledger
        seen = len(ledger.ids)
        if self._turn == 0:
            renderer.append_prompt(ledger, observation)
        else:
            renderer.append_observation(ledger, self._turn - 1, observation)
        room = self._agent.max_tokens - len(ledger.ids)
        if room <= 0:
            if self._turn > 0:
                ledger.cut(seen)  # the model never saw this observation
            return None
        completion = await self._session.complete(
            CompletionRequest(
                ids=tuple(ledger.ids),
                max_new_tokens=min(room, sampling.max_turn_tokens),
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=derive_seed(self._seed, self._turn),
                stop_ids=renderer.stop_ids,
                stop_strings=self._agent.stop_strings,
            )
        )
        ledger.append(SpanKind.SAMPLED, self._turn, completion.ids, completion.logprobs)
        self._turn += 1
        return Action(renderer.action_text(completion.ids), completion.finish)

    def tokens(self) -> TokenRecord:
        return self._ledger.record()


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on all parts and on nothing else."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
