"""What engines share whose client lives in an event loop: a thread that runs one loop.

Connections and background tasks belong to the loop that made them, but a model outlives
the `asyncio.run` calls that use it. So they live in a loop of their own, and requests are
handed over and cancelled across threads.
"""

from __future__ import annotations

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from agents.base import Completion, CompletionRequest, check_request
from mathenv.errors import InfraError, MathEnvError
from mathenv.types import FinishReason

Result = TypeVar("Result")


class LoopThread:
    """An event loop that runs in a thread of its own until it is closed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work` in the loop and block until it is done."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work` in the loop; cancelling the caller cancels it there.

        Raises:
            InfraError: the loop was closed before it was done.
        """
        if self.closed:
            work.close()
            raise InfraError(f"{self._name} is closed")
        job = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise InfraError(f"{self._name} was closed while it answered") from None

    def close(self) -> None:
        """Cancel what runs, stop the loop and its thread. Safe to call twice."""
        if self.closed:
            return
        self.wait(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@contextmanager
def as_infra_error(name: str) -> Iterator[None]:
    """Turn whatever an engine raises into an `InfraError` that names it."""
    try:
        yield
    except MathEnvError:
        raise
    except Exception as error:
        raise InfraError(f"{name}: {type(error).__name__}: {error}") from error


def finish_reason(name: str, finish: str | None, stopped_at: object) -> FinishReason:
    """Return why a turn ended, in vLLM's words: `stopped_at` is a text, a token id or None.

    Raises:
        InfraError: it did not come to an end, e.g. because it was aborted.
    """
    if finish == "length":
        return FinishReason.LENGTH
    if finish == "stop":
        return FinishReason.STOP_STRING if isinstance(stopped_at, str) else FinishReason.STOP
    raise InfraError(f"{name}: the engine ended a turn with {finish!r}")


class ThreadedModel(ABC):
    """Base of engines that answer requests one by one; implements `LanguageModel`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread = LoopThread(name)

    @property
    def name(self) -> str:
        return self._name

    @asynccontextmanager
    async def session(self) -> AsyncIterator[ThreadedModel]:
        yield self

    async def complete(self, request: CompletionRequest) -> Completion:
        """Answer a request.

        Raises:
            ConfigError: an impossible request. InfraError: the engine failed or is closed.
        """
        check_request(request)
        with as_infra_error(self._name):
            return await self._thread.run(self._answer(request))

    def close(self) -> None:
        if self._thread.closed:
            return
        try:
            self._thread.wait(self._shut_down())
        finally:
            self._thread.close()

    @abstractmethod
    async def _answer(self, request: CompletionRequest) -> Completion:
        """Answer a request, in the engine's own loop."""

    @abstractmethod
    async def _shut_down(self) -> None:
        """Free what the engine holds, in the engine's own loop."""
