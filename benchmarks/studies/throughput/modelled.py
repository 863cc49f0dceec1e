"""A rollout's latencies without its costs: engine, model and sandbox on a virtual clock.

Latencies are those of a 7B model on one H200 and of a warm sandbox. Everything else is real:
the collector, its event loop, its threads, the environment, the store.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
import selectors
import threading
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from copy import copy
from dataclasses import dataclass
from typing import Any

from agents.base import Action
from mathenv.protocol import code_block
from mathenv.types import (
    ExecutionResult,
    ExecutionStatus,
    Span,
    SpanKind,
    TokenRecord,
)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long a decoding step takes: 7B parameters in bfloat16 on one H200.

    Rates are 80% and 75% of what copies and matrix products were measured to reach there.
    """

    parameters: float = 7.6e9
    bytes_per_second: float = 3.4e12
    flop_per_second: float = 590e12
    cache_bytes: float = 57e3  # keys and values of one token
    overhead: float = 1e-3

    def step(self, batch: int, context: float) -> float:
        """Seconds for one token of each of `batch` sequences of `context` tokens on average."""
        weights = 2 * self.parameters / self.bytes_per_second
        products = 2 * self.parameters * batch / self.flop_per_second
        cache = batch * context * self.cache_bytes / self.bytes_per_second
        return self.overhead + max(weights, products) + cache

    def prefill(self, tokens: float) -> float:
        """Seconds to read that many tokens."""
        return 2 * self.parameters * tokens / self.flop_per_second


@dataclass(frozen=True, slots=True)
class Load:
    """What is played. Token counts are log-normal, as measured for tool-integrated models.

    Args:
        problems, samples: episodes are the product; samples of a problem share its prompt.
        slots: sequences that the engine decodes at once.
        concurrency: episodes that the collector keeps in flight.
        threads: cells that run at once.
        turns: weights of 1, 2, ... turns (mean 2.67).
        turn_tokens, sigma, most_tokens: of one turn (mean, log-normal's sigma, limit).
        cell_seconds, late_share, late_seconds: mean time of a cell in a warm sandbox, share of
            cells that run into their limit, and that limit.
    """

    problems: int = 100
    samples: int = 30
    slots: int = 256
    concurrency: int = 512
    threads: int = 12
    turns: tuple[float, ...] = (0.10, 0.44, 0.26, 0.12, 0.05, 0.03)
    turn_tokens: float = 178.0
    sigma: float = 0.65
    most_tokens: int = 512
    prompt_tokens: int = 150
    output_tokens: int = 40
    cell_seconds: float = 0.048
    late_share: float = 0.005
    late_seconds: float = 5.0

    def cell(self, rng: random.Random) -> float:
        """Draw the seconds of a cell: log-normal with sigma 1, or up to the limit."""
        if rng.random() < self.late_share:
            return self.late_seconds
        return rng.lognormvariate(math.log(self.cell_seconds) - 0.5, 1.0)

    @property
    def episodes(self) -> int:
        return self.problems * self.samples

    @property
    def name(self) -> str:
        return f"{self.episodes} episodes, cells of at most {self.late_seconds:g} s"


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in which waiting takes no time: the clock jumps to what comes next.

    It stands still while a thread of a `VirtualThreads` works. So latencies are exact on any
    machine, however loaded; the time that Python itself takes is not part of them.
    """

    def __init__(self) -> None:
        self.clock, self.calls, self.sleeping, self.threads = 0.0, 0, 0, 0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.clock

    @property
    def working(self) -> bool:
        """Whether a thread computes, and so will say something without the clock moving."""
        return min(self.calls, self.threads) > self.sleeping

    def sleep(self, seconds: float) -> None:
        """Sleep in one of the threads, on the virtual clock."""
        over = threading.Event()

        def begin() -> None:
            self.sleeping += 1
            self.call_later(seconds, end)

        def end() -> None:
            self.sleeping -= 1
            over.set()

        self.call_soon_threadsafe(begin)
        over.wait()


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._loop.working:
            return super().select(None if timeout != 0 else 0)
        events = super().select(0 if timeout is not None else None)
        if timeout and not events:
            self._loop.clock += timeout
        return events


class VirtualThreads(ThreadPoolExecutor):
    """A thread pool whose calls the virtual clock waits for."""

    def __init__(self, loop: VirtualLoop, threads: int) -> None:
        super().__init__(threads)
        self._loop, loop.threads = loop, threads

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        told: Future[Any] = Future()
        self._loop.calls += 1

        def tell(call: Future[Any]) -> None:
            error = call.exception()
            if error is None:
                told.set_result(call.result())
            else:
                told.set_exception(error)
            self._loop.call_soon_threadsafe(self._end)  # behind what `told` has set going

        super().submit(function, *args, **kwargs).add_done_callback(tell)
        return told

    def _end(self) -> None:
        self._loop.calls -= 1


@dataclass(slots=True, order=True)
class _Sequence:
    end: float  # the progress at which it is done
    number: int
    base: float  # its context, less the progress at which it began
    new: int
    tokens: int
    done: asyncio.Future[None]


class ModelledEngine:
    """Continuous batching: all running sequences advance together.

    `busy` is the integral of running sequences over the loop's seconds; `full` is (time,
    busy) when all slots were first taken.
    """

    def __init__(self, slots: int, timing: Timing | None = None) -> None:
        self.slots, self._timing = slots, timing or Timing()
        self._waiting: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []  # a heap
        self._progress = 0.0  # tokens decoded since the start by a sequence always running
        self._base = 0.0  # sum over the running
        self._stall = 0.0  # seconds of reading prompts that are still to be spent
        self._changed = asyncio.Event()
        self._numbers = itertools.count()
        self.busy = 0.0
        self.full: tuple[float, float] | None = None

    def now(self) -> float:
        """Return the loop's time."""
        return asyncio.get_running_loop().time()

    async def generate(self, context: int, new: int, tokens: int) -> None:
        """Decode `tokens` after a `context` of which `new` are not in the prefix cache."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append(_Sequence(0.0, next(self._numbers), context, new, tokens, done))
        self._changed.set()
        await done

    async def run(self) -> None:
        """Serve until cancelled."""
        then = self.now()
        while True:
            seconds = self._admit()
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
            now = self.now()
            self._advance(now - then)
            then = now

    def _admit(self) -> float | None:
        """Fill the slots; return the seconds until the first running sequence ends."""
        while self._waiting and len(self._running) < self.slots:
            sequence = self._waiting.popleft()
            sequence.end = self._progress + sequence.tokens
            sequence.base -= self._progress
            heapq.heappush(self._running, sequence)
            self._base += sequence.base
            self._stall += self._timing.prefill(sequence.new)
        if self.full is None and len(self._running) == self.slots:
            self.full = self.now(), self.busy
        if not self._running:
            return None
        return self._stall + (self._running[0].end - self._progress) * self._step()

    def _step(self) -> float:
        batch = len(self._running)
        return self._timing.step(batch, self._base / batch + self._progress)

    def _advance(self, seconds: float) -> None:
        self.busy += len(self._running) * seconds
        read = min(self._stall, seconds)
        self._stall -= read
        if self._running:
            self._progress += (seconds - read) / self._step()
        while self._running and self._running[0].end <= self._progress + 1e-6:
            sequence = heapq.heappop(self._running)
            self._base -= sequence.base
            if not sequence.done.done():
                sequence.done.set_result(None)


class ModelledAgent:
    """Says nothing in particular, in as many turns and tokens as a model would.

    Without an engine it answers at once. `begun` is the engine's (time, busy) when the last
    of `episodes` was opened.
    """

    def __init__(self, load: Load, engine: ModelledEngine | None, episodes: int) -> None:
        self.name, self.load = "modelled", load
        self._engine, self._left = engine, episodes
        if engine is not None:
            self.model = engine
        self.read: set[str] = set()  # prompts that are in the prefix cache
        self.turns = 0
        self.begun = (0.0, 0.0)

    @asynccontextmanager
    async def episode(
        self, question: str, *, sample: int, seed: int
    ) -> AsyncIterator[ModelledEpisode]:
        self._left -= 1
        if self._left == 0 and self._engine is not None:
            self.begun = self._engine.now(), self._engine.busy
        yield ModelledEpisode(self, self._engine, question, random.Random(seed))


class ModelledEpisode:
    """One conversation: so many tokens sampled, so many observed."""

    def __init__(
        self,
        agent: ModelledAgent,
        engine: ModelledEngine | None,
        question: str,
        rng: random.Random,
    ) -> None:
        load = agent.load
        turns = rng.choices(range(1, len(load.turns) + 1), load.turns)[0]
        mean = math.log(load.turn_tokens) - load.sigma**2 / 2
        lengths = [rng.lognormvariate(mean, load.sigma) for _ in range(turns)]
        self._lengths = [max(1, min(load.most_tokens, round(length))) for length in lengths]
        self._agent, self._engine, self._question = agent, engine, question
        self._turn = self._context = 0

    async def act(self, observation: str) -> Action:
        agent, turn, length = self._agent, self._turn, self._lengths[self._turn]
        new = agent.load.output_tokens if turn else agent.load.prompt_tokens
        self._context += new
        if turn == 0 and self._question in agent.read:
            new = 0
        agent.read.add(self._question)
        if self._engine is not None:
            await self._engine.generate(self._context, new, length)
        self._context += length
        self._turn += 1
        agent.turns += 1
        last = self._turn == len(self._lengths)
        return Action(r"\boxed{42}" if last else code_block(f"{turn}"))

    def tokens(self) -> TokenRecord:
        """Return a record as large as a real one."""
        load, spans, end = self._agent.load, list[Span](), 0
        for turn, length in enumerate(self._lengths[: self._turn]):
            new = load.output_tokens if turn else load.prompt_tokens
            kind = SpanKind.OBSERVATION if turn else SpanKind.PROMPT
            spans.append(Span(kind, turn, end, end + new))
            spans.append(Span(SpanKind.SAMPLED, turn, end + new, end + new + length))
            end += new + length
        sampled = sum(self._lengths[: self._turn])
        return TokenRecord(tuple(range(end)), tuple(spans), (-0.123456789,) * sampled)


class ModelledInterpreter:
    """Cells that take as long as in a warm sandbox, on `loop`'s clock; without, no time."""

    def __init__(self, load: Load, loop: VirtualLoop | None) -> None:
        self._load, self._loop = load, loop

    @property
    def description(self) -> dict[str, str]:
        return {"host": "modelled"}

    def session(self, *, seed: int = 0) -> ModelledSession:
        return ModelledSession(self._load, random.Random(seed), self._loop)

    def close(self) -> None:
        pass


class ModelledSession:
    """Draws the time of each cell from its seed: the same in every run."""

    def __init__(self, load: Load, rng: random.Random, loop: VirtualLoop | None) -> None:
        self._load, self._rng, self._loop = load, rng, loop

    def run(self, code: str) -> ExecutionResult:
        if self._loop is None:
            return ExecutionResult(ExecutionStatus.OK, "42")
        self._loop.sleep(self._load.cell(self._rng))
        return ExecutionResult(ExecutionStatus.OK, "42")

    def fork(self) -> ModelledSession:
        return ModelledSession(self._load, copy(self._rng), self._loop)

    def close(self) -> None:
        pass
