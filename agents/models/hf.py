"""Hugging Face `transformers` as an engine: any causal LM folder or hub id.

Requests are answered in batches with a KV cache. A batch starts when every open session
waits for an answer, so its make-up depends on the episodes alone and never on timing: one
seed gives one result. More than `max_batch` waiting requests are answered in parts. Each
request has a random stream of its own, so a sample does not depend on what it was batched
with, except through the last bits of floating-point sums.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from agents.base import Completion, CompletionRequest, check_request
from agents.models.loading import load_causal_lm, load_tokenizer, position_limit
from mathenv.errors import InfraError
from mathenv.types import FinishReason

__all__ = ["TransformersModel", "load_causal_lm", "load_tokenizer"]

_SPARE_TOKENS = 32  # room in a cache layer for tokens to come
_COMPACT_AT = 0.75  # share of running rows at which finished ones are dropped


class TransformersModel:
    """Engine over an in-process model; implements `agents.base.LanguageModel`.

    Args:
        model: a loaded causal LM.
        tokenizer: its tokenizer (used for stop strings only).
        max_batch: requests decoded together at most; memory grows with it.

    `context` is the most tokens of a request, prompt included; None where the model names none.
    """

    def __init__(self, model: Any, tokenizer: Any, *, name: str, max_batch: int = 128) -> None:
        self._lm = model
        self.context = position_limit(model.config)
        self._tokenizer = tokenizer
        self._name = name
        self._max_batch = max_batch
        self._open = 0
        self._waiting: list[_Waiting] = []
        self._round: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="transformers-engine")

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        name: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        max_batch: int = 128,
    ) -> TransformersModel:
        """Load a folder or hub id."""
        model = load_causal_lm(path, dtype=dtype, device=device)
        return cls(model, load_tokenizer(path), name=name or str(path), max_batch=max_batch)

    @property
    def name(self) -> str:
        return self._name

    @asynccontextmanager
    async def session(self) -> AsyncIterator[_Session]:
        self._open += 1
        try:
            yield _Session(self)
        finally:
            self._open -= 1
            self._check_soon()

    async def complete(self, request: CompletionRequest) -> Completion:
        """Queue a request and wait for its batch. It ends where the model's positions do.

        Raises:
            InfraError: the prompt alone has no position left for a token.
        """
        check_request(request)
        if self.context is not None:
            room = self.context - len(request.ids)
            if room < 1:
                raise InfraError(
                    f"{self._name}: a prompt of {len(request.ids)} tokens does not fit into the "
                    f"model's {self.context}; lower max_tokens"
                )
            request = replace(request, max_new_tokens=min(request.max_new_tokens, room))
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(request, future)
        self._waiting.append(waiting)
        self._check_soon()
        try:
            return await future
        finally:
            if waiting in self._waiting:  # cancelled: nobody wants the answer any more
                self._waiting.remove(waiting)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._lm = None  # agents may still hold this object: the weights go now

    def _check_soon(self) -> None:
        # Not at once: coroutines started together have then all opened their sessions.
        asyncio.get_running_loop().call_soon(self._start_round_if_ready)

    def _start_round_if_ready(self) -> None:
        under_way = self._round is not None and not self._round.done()
        if under_way or not self._waiting or len(self._waiting) < self._open:
            return
        # Sorted, because arrival order depends on how fast each interpreter answered.
        self._waiting.sort(key=lambda w: (len(w.request.ids), w.request.ids, w.request.seed))
        everyone, self._waiting = self._waiting, []
        # The reference keeps the task alive: the event loop itself holds only a weak one.
        self._round = asyncio.get_running_loop().create_task(self._run_round(everyone))

    async def _run_round(self, everyone: list[_Waiting]) -> None:
        try:
            for start in range(0, len(everyone), self._max_batch):
                await self._run_batch(everyone[start : start + self._max_batch])
        finally:
            self._round = None
            self._check_soon()

    async def _run_batch(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        requests = [w.request for w in batch]
        try:
            completions = await loop.run_in_executor(self._thread, self.generate, requests)
        except Exception as error:
            for waiting in batch:
                if not waiting.future.done():
                    reason = f"{self._name}: {type(error).__name__}: {error}"
                    waiting.future.set_exception(InfraError(reason))
        else:
            for waiting, completion in zip(batch, completions, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(completion)

    @torch.inference_mode()
    def generate(self, requests: Sequence[CompletionRequest]) -> list[Completion]:
        """Decode a batch. Blocking; the asynchronous way is `complete`."""
        batch = _Batch(self._lm, requests)
        while batch.rows:
            batch.step(self._stop_string_hit)
        return [row.completion() for row in batch.all_rows]

    def _stop_string_hit(self, row: _Row) -> bool:
        stops = row.request.stop_strings
        if not stops:
            return False
        # A token holds a byte at least, so the longest stop string fits; one more for
        # tokenizers that drop a blank before the first word they decode.
        window = 1 + max(len(stop.encode()) for stop in stops)
        tail = self._tokenizer.decode(row.ids[-window:], clean_up_tokenization_spaces=False)
        return any(stop in tail for stop in stops)


class _Session:
    def __init__(self, engine: TransformersModel) -> None:
        self._engine = engine

    async def complete(self, request: CompletionRequest) -> Completion:
        return await self._engine.complete(request)


@dataclass(eq=False)
class _Waiting:
    request: CompletionRequest
    future: asyncio.Future[Completion]


@dataclass(eq=False)
class _Row:
    request: CompletionRequest
    uniforms: torch.Tensor  # one number in [0, 1) per possible token
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: FinishReason = FinishReason.LENGTH

    done: bool = False

    def add(self, token: int, logprob: float, stop_string_hit: Callable[[_Row], bool]) -> None:
        """Take a sampled token and decide whether it was the last."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        if token in self.request.stop_ids:
            self.finish = FinishReason.STOP
        elif stop_string_hit(self):
            self.finish = FinishReason.STOP_STRING
        elif len(self.ids) < self.request.max_new_tokens:
            return
        self.done = True

    def completion(self) -> Completion:
        return Completion(tuple(self.ids), tuple(self.logprobs), self.finish)


class _GrowingLayer(DynamicLayer):
    """A cache layer that appends in place.

    The stock layer concatenates, which copies all keys and values for every new token.
    """

    keys: torch.Tensor
    values: torch.Tensor
    _room: torch.Tensor  # (2, batch, heads, capacity, head size): keys and values are views

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        old: int = self.get_seq_length()
        new = old + key_states.shape[-2]
        if old == 0 or new > self._room.shape[-2]:
            shape = (2, *key_states.shape[:2], new + _SPARE_TOKENS, key_states.shape[-1])
            room = key_states.new_empty(shape)
            if old:
                room[0, :, :, :old], room[1, :, :, :old] = self.keys, self.values
            self._room = room
            self.dtype, self.device, self.is_initialized = room.dtype, room.device, True
        self._room[0, :, :, old:new] = key_states
        self._room[1, :, :, old:new] = value_states
        self.keys, self.values = self._room[0, :, :, :new], self._room[1, :, :, :new]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        length = self.get_seq_length()
        if length:
            self._room = self._room[:, indices]
            self.keys, self.values = self._room[0, :, :, :length], self._room[1, :, :, :length]


def _growing_cache(config: Any) -> Any:
    """Return the model's cache with its plain layers (not sliding windows) appending in place."""
    cache = DynamicCache(config=config)
    cache.layers = [_GrowingLayer() if type(x) is DynamicLayer else x for x in cache.layers]
    return cache


class _Batch:
    """Left-padded rows that leave as they finish."""

    def __init__(self, model: Any, requests: Sequence[CompletionRequest]) -> None:
        self._model = model
        self.all_rows = [_new_row(request) for request in requests]
        self.rows = list(self.all_rows)
        self._cache = _growing_cache(model.config)
        self._last = (position_limit(model.config) or 2**31) - 1
        longest = max(len(r.ids) for r in requests)
        padded = [[0] * (longest - len(r.ids)) + list(r.ids) for r in requests]
        kept = [[0] * (longest - len(r.ids)) + [1] * len(r.ids) for r in requests]
        self._tokens = torch.tensor(padded, device=model.device)
        self._mask = torch.tensor(kept, device=model.device)

    def step(self, stop_string_hit: Any) -> None:
        """Sample one token for every row that is still running."""
        # Finished rows ride along, beyond the model's positions if need be: nobody reads those.
        positions = (self._mask.cumsum(-1) - 1).clamp(0, self._last)[:, -self._tokens.shape[1] :]
        logits = (
            self._model(
                input_ids=self._tokens,
                attention_mask=self._mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
            .logits[:, -1]
            .float()
        )
        tokens, logprobs = _sample(logits, self.rows)
        for row, token, logprob in zip(self.rows, tokens.tolist(), logprobs.tolist(), strict=True):
            if not row.done:
                row.add(token, logprob, stop_string_hit)
        self._advance(tokens)

    def _advance(self, tokens: torch.Tensor) -> None:
        running = [index for index, row in enumerate(self.rows) if not row.done]
        # Dropping rows copies the cache, so finished rows ride along until a quarter is done.
        if len(running) <= _COMPACT_AT * len(self.rows):
            self.rows = [self.rows[i] for i in running]
            if not running:
                return
            index = torch.tensor(running, device=tokens.device)
            self._cache.batch_select_indices(index)
            tokens, self._mask = tokens[index], self._mask[index]
        self._tokens = tokens[:, None]
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self.rows), 1)], dim=1)


def _new_row(request: CompletionRequest) -> _Row:
    generator = torch.Generator().manual_seed(request.seed)
    return _Row(
        request, torch.rand(request.max_new_tokens, generator=generator, dtype=torch.double)
    )


def _sample(logits: torch.Tensor, rows: Sequence[_Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one token per row and its log-probability at temperature 1. Shapes: (rows,)."""
    logprobs = logits.log_softmax(-1)
    tokens = logits.argmax(-1)
    warm = [i for i, row in enumerate(rows) if row.request.temperature > 0]
    if warm:
        temperature = torch.tensor([rows[i].request.temperature for i in warm])
        uniform = torch.stack([rows[i].uniforms[len(rows[i].ids) - rows[i].done] for i in warm])
        top_p = torch.tensor([rows[i].request.top_p for i in warm], dtype=torch.double)
        device = logits.device
        probs = (logits[warm] / temperature.to(device)[:, None]).double().softmax(-1)
        if bool((top_p < 1).any()):
            probs = _nucleus(probs, top_p.to(device))
        tokens[warm] = _inverse_cdf(probs, uniform.to(device))
    chosen = logprobs.gather(-1, tokens[:, None])[:, 0]
    if not bool(chosen.isfinite().all()):
        raise InfraError(
            "the model's logits are not finite: its weights are broken, e.g. by training"
        )
    return tokens, chosen


def _inverse_cdf(probs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    cumulative = probs.cumsum(-1)
    target = (uniform * cumulative[:, -1]).clamp(max=math.nextafter(1.0, 0.0))
    picked = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    return picked.clamp(max=probs.shape[-1] - 1)


def _nucleus(probs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    ordered, order = probs.sort(-1, descending=True)
    # Keep the tokens before which less than top_p has been collected: at least one.
    ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= top_p[:, None], 0.0)
    return torch.zeros_like(probs).scatter(-1, order, ordered)
