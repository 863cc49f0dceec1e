"""Any OpenAI-compatible server as an engine.

`OpenAIModel` sends and receives token ids through `/v1/completions`, as vLLM's server does
(`return_token_ids`), so its trajectories can be trained on. `OpenAIChat` is for servers that
have text only: `agents.chat.ChatAgent` plays with it, and its trajectories hold no tokens.

Connection errors, time-outs, rate limits and server errors are retried with growing pauses
(the `openai` package does that). The key comes from OPENAI_API_KEY; a local server needs none.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents.base import ChatReply, ChatRequest, Completion, CompletionRequest
from agents.models.threaded import LoopThread, ThreadedModel, as_infra_error, finish_reason
from mathenv.errors import ConfigError, InfraError, install_hint
from mathenv.settings import Count, CountFrom0, Positive, check_settings
from mathenv.types import FinishReason

try:
    import openai
except ModuleNotFoundError as missing:
    raise ConfigError(f"servers need the package openai: {install_hint('openai')}") from missing

_CHAT_SEEDS = 2**31  # what every server takes


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Which server, and how patient to be with it.

    Args:
        base_url: e.g. http://localhost:8000/v1.
        model: the model's name there. Left out: the only one that the server lists.
        timeout: seconds for one answer.
        retries: how often a request is sent again when it failed.
        slots: requests that it is sent at once. Left out: one for each episode in flight.

    Raises:
        ConfigError: no slot.
    """

    base_url: str
    model: str | None = None
    timeout: Positive = 600.0
    retries: CountFrom0 = 4
    slots: Count | None = None

    def __post_init__(self) -> None:
        check_settings(self)


class OpenAIModel(ThreadedModel):
    """Engine over a server that takes and returns token ids; implements `LanguageModel`.

    `context` is the most tokens of a request, prompt included, None where the server does
    not say; `slots` is how many requests it is sent at once, None where that was not said.

    Raises:
        ConfigError: the server cannot be reached, refuses the key or has no such model.
    """

    def __init__(self, options: ServerOptions, *, name: str | None = None) -> None:
        super().__init__(name or options.model or options.base_url)
        self.slots = options.slots
        try:
            self._client = self._thread.wait(_client(options))
            self._model, self.context = self._thread.wait(_find_model(self._client, options))
        except BaseException:
            self._thread.close()
            raise
        self._url = options.base_url

    async def _answer(self, request: CompletionRequest) -> Completion:
        answer = await self._client.completions.create(
            model=self._model,
            prompt=list(request.ids),
            max_tokens=self._room(request),
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=list(request.stop_strings) or None,
            logprobs=0,  # of the sampled token alone
            extra_body={
                "return_token_ids": True,
                "stop_token_ids": sorted(request.stop_ids),
                # Nothing but the request ends a turn or shapes the distribution: a server
                # would else take the model's own lists and sampling defaults.
                "ignore_eos": True,
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "add_special_tokens": False,
                "skip_special_tokens": False,
                "spaces_between_special_tokens": False,
                "include_stop_str_in_output": True,
            },
        )
        return self._completion(request, answer.choices[0])

    def _room(self, request: CompletionRequest) -> int:
        if self.context is None:
            return request.max_new_tokens
        room = self.context - len(request.ids)
        if room < 1:
            raise InfraError(
                f"{self.name}: a prompt of {len(request.ids)} tokens does not fit into the "
                f"{self.context} that the server allows; lower max_tokens"
            )
        return min(request.max_new_tokens, room)

    def _completion(self, request: CompletionRequest, choice: Any) -> Completion:
        ids = getattr(choice, "token_ids", None)
        seen = getattr(choice, "prompt_token_ids", None)
        if ids is None or seen is None:
            raise ConfigError(
                f"the server at {self._url} does not return token ids (return_token_ids), so "
                "what it samples cannot be trained on: use vLLM's server, or its chat interface "
                "(--api chat), whose trajectories are kept without tokens"
            )
        if tuple(seen) != tuple(request.ids):
            raise InfraError(f"{self.name}: the server changed the tokens of the prompt")
        logprobs = choice.logprobs.token_logprobs if choice.logprobs else None
        if logprobs is None or len(logprobs) != len(ids):
            raise InfraError(f"{self.name}: the server returned no log-probability per token")
        finish = _finish(self.name, choice)
        return Completion(tuple(ids), tuple(float(value) for value in logprobs), finish)

    async def _shut_down(self) -> None:
        await self._client.close()


class OpenAIChat:
    """Text in, text out through `/v1/chat/completions`; implements `agents.base.ChatModel`.

    Raises:
        ConfigError: the server cannot be reached, refuses the key or has no such model.
    """

    def __init__(self, options: ServerOptions, *, name: str | None = None) -> None:
        self.name = name or options.model or options.base_url
        self.slots = options.slots
        self._thread = LoopThread(self.name)
        try:
            self._client = self._thread.wait(_client(options))
            self._model, _ = self._thread.wait(_find_model(self._client, options))
        except BaseException:
            self._thread.close()
            raise

    async def reply(self, request: ChatRequest) -> ChatReply:
        """Answer a conversation.

        Raises:
            InfraError: the server failed, or the client is closed.
        """
        with as_infra_error(self.name):
            return await self._thread.run(self._answer(request))

    async def _answer(self, request: ChatRequest) -> ChatReply:
        messages: Sequence[Any] = [
            {"role": message.role, "content": message.content} for message in request.messages
        ]
        answer = await self._client.chat.completions.create(
            model=self._model,
            messages=messages,
            max_tokens=request.max_new_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed % _CHAT_SEEDS,
            stop=list(request.stop_strings) or None,
        )
        choice = answer.choices[0]
        used = answer.usage.total_tokens if answer.usage else None
        return ChatReply(choice.message.content or "", _finish(self.name, choice), used)

    def close(self) -> None:
        """Close the connections. Safe to call twice."""
        if not self._thread.closed:
            self._thread.wait(self._client.close())
            self._thread.close()


async def _client(options: ServerOptions) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=options.base_url,
        api_key=os.environ.get("OPENAI_API_KEY") or "none",
        timeout=options.timeout,
        max_retries=options.retries,
    )


async def _find_model(client: openai.AsyncOpenAI, options: ServerOptions) -> tuple[str, int | None]:
    """Return the model's name at the server and its context length, where it says."""
    try:
        listed = (await client.models.list()).data
    except openai.NotFoundError:
        listed = []  # some servers have no list
    except openai.OpenAIError as error:
        raise ConfigError(f"the server at {options.base_url} does not answer: {error}") from error
    named = {model.id: getattr(model, "max_model_len", None) for model in listed}
    name = options.model or (next(iter(named)) if len(named) == 1 else None)
    if name is None or (named and name not in named):
        raise ConfigError(
            f"the server at {options.base_url} has "
            + (f"no model {options.model!r}, but " if options.model else "")
            + f"{', '.join(sorted(named)) or 'no list of models'}: choose with --served-model"
        )
    return name, named.get(name)


def _finish(name: str, choice: Any) -> FinishReason:
    return finish_reason(name, choice.finish_reason, getattr(choice, "stop_reason", None))
