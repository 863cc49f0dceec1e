"""Engines without a model: a script that says what is sampled, and the replay of records.

They answer token ids with token ids like any engine, so renderers, masks, collectors and
learners can be tried on known completions, and at a known speed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from agents.base import Completion, CompletionRequest, check_request
from mathenv.errors import InfraError, MathEnvError
from mathenv.types import FinishReason, SpanKind, TokenRecord


class Said(NamedTuple):
    """Sampled ids and their log-probabilities, which may be left out."""

    ids: Sequence[int]
    logprobs: Sequence[float] = ()


Script = Callable[[CompletionRequest], Said]


class ScriptedModel:
    """An engine whose samples a function gives; implements `LanguageModel`.

    Args:
        script: returns what to sample for a request. What stands behind a stop token, a
            stop string or the limit is cut off; an end without any is a turn cut by length.
            Log-probabilities left out are 0: nothing else could have been said.
        tokenizer: needed for requests with stop strings only.
        seconds_per_token: how long to take, for measurements.
    """

    def __init__(
        self,
        script: Script,
        *,
        name: str = "scripted",
        tokenizer: Any = None,
        seconds_per_token: float = 0.0,
    ) -> None:
        self.name = name
        self._script = script
        self._tokenizer = tokenizer
        self._seconds = seconds_per_token
        self._closed = False

    @asynccontextmanager
    async def session(self) -> AsyncIterator[ScriptedModel]:
        yield self

    async def complete(self, request: CompletionRequest) -> Completion:
        """Answer a request.

        Raises:
            ConfigError: an impossible request.
            InfraError: the script failed, or the engine is closed.
        """
        check_request(request)
        if self._closed:
            raise InfraError(f"{self.name} is closed")
        try:
            said = self._script(request)
        except MathEnvError:
            raise
        except Exception as error:
            raise InfraError(f"{self.name}: {type(error).__name__}: {error}") from error
        completion = self._cut(request, said)
        await asyncio.sleep(self._seconds * len(completion.ids))
        return completion

    def close(self) -> None:
        self._closed = True

    def _cut(self, request: CompletionRequest, said: Said) -> Completion:
        ids = list(said.ids[: request.max_new_tokens])
        if not ids:
            raise InfraError(f"{self.name}: the script says nothing")
        logprobs = said.logprobs or [0.0] * len(said.ids)
        finish = FinishReason.LENGTH
        length = 0
        while length < len(ids) and finish is FinishReason.LENGTH:
            length += 1
            if ids[length - 1] in request.stop_ids:
                finish = FinishReason.STOP
            elif self._stops(request, ids[:length]):
                finish = FinishReason.STOP_STRING
        return Completion(tuple(ids[:length]), tuple(logprobs[:length]), finish)

    def _stops(self, request: CompletionRequest, ids: Sequence[int]) -> bool:
        if not request.stop_strings:
            return False
        text = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return any(stop in text for stop in request.stop_strings)


def replay_model(
    records: Iterable[TokenRecord],
    *,
    name: str = "replay",
    tokenizer: Any = None,
    seconds_per_token: float = 0.0,
) -> ScriptedModel:
    """Return an engine that answers a recorded prefix with what was sampled there.

    Where several records share a prefix, as the samples of one problem do, the request's
    seed chooses among them.
    """
    known: dict[tuple[int, ...], list[Said]] = {}
    for record in records:
        done = 0
        for span in record.spans:
            if span.kind is SpanKind.SAMPLED:
                ids, end = record.ids[span.start : span.end], done + span.end - span.start
                said = Said(ids, record.logprobs[done:end])
                known.setdefault(record.ids[: span.start], []).append(said)
                done = end

    def script(request: CompletionRequest) -> Said:
        said = known.get(tuple(request.ids))
        if said is None:
            raise InfraError(f"{name}: no record begins with these {len(request.ids)} tokens")
        return said[request.seed % len(said)]

    return ScriptedModel(
        script, name=name, tokenizer=tokenizer, seconds_per_token=seconds_per_token
    )
