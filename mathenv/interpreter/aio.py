"""Sessions for coroutines: thousands of trajectories share a bounded number of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from mathenv.errors import ConfigError, InfraError, whole
from mathenv.interpreter.base import Interpreter, Session
from mathenv.types import ExecutionResult

_T = TypeVar("_T")


class AsyncSession:
    """A session for one coroutine at a time, from `AsyncInterpreter.session` or `fork`."""

    def __init__(self, pool: AsyncInterpreter, session: Session) -> None:
        self._pool, self._session = pool, session
        self._busy: asyncio.Future[Any] | None = None

    async def run(self, code: str) -> ExecutionResult:
        """Run one cell as soon as a thread is free. Raises what `Session.run` raises.

        The cell of a cancelled task runs on until its time is over; the task does not wait.
        """
        return await asyncio.shield(self._start(lambda: self._session.run(code)))

    @asynccontextmanager
    async def fork(self) -> AsyncIterator[AsyncSession]:
        """A copy, as by `Session.fork`: `async with session.fork() as copy`.

        It takes a place like any session. All sessions may be waiting for copies, so this one
        raises `InfraError` if none ends within `wait_seconds`.
        """
        try:
            await asyncio.wait_for(self._pool._places.acquire(), self._pool.wait_seconds)
        except TimeoutError:
            raise InfraError("no free session: raise max_sessions or close some") from None
        call: asyncio.Future[Session] | None = None
        try:
            call = self._start(self._session.fork)
            session = await asyncio.shield(call)
        except BaseException:
            self._pool._release(call)
            raise
        async with self._pool._closing(AsyncSession(self._pool, session)) as copy:
            yield copy

    def _start(self, function: Callable[[], _T]) -> asyncio.Future[_T]:
        if self._busy is not None and not self._busy.done():
            raise ConfigError("the session is busy: await its last call first")
        call = asyncio.get_running_loop().run_in_executor(self._pool._threads, function)
        self._busy = call
        return call


class AsyncInterpreter:
    """Coroutines' view of an interpreter. Use it in one event loop.

        async with AsyncInterpreter(interpreter, max_sessions=64) as pool:
            async with pool.session(seed=0) as session:
                result = await session.run("1 + 1")

    At most `max_sessions` sessions are open and `max_running` cells run at once (default:
    two per core; more would wait for processors, at most ten times as long as a cell may run).
    Others wait their turn, first come first served, without a thread. `interpreter` stays
    its owner's to close. Raises `ConfigError` for a bound below one.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        *,
        max_sessions: int = 64,
        max_running: int | None = None,
        wait_seconds: float = 60.0,
    ) -> None:
        running = 2 * (os.cpu_count() or 1) if max_running is None else max_running
        max_sessions, running = (
            whole("max_sessions", max_sessions, 1),
            whole("max_running", running, 1),
        )
        self.interpreter, self.wait_seconds = interpreter, wait_seconds
        self._places = asyncio.Semaphore(max_sessions)
        self._threads = ThreadPoolExecutor(running, thread_name_prefix="cells")
        self._endings: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def session(self, *, seed: int = 0) -> AsyncIterator[AsyncSession]:
        """A new session, when there is a place for it; closed at the end of the block."""
        await self._places.acquire()
        session = AsyncSession(self, self.interpreter.session(seed=seed))
        async with self._closing(session) as session:
            yield session

    async def close(self) -> None:
        """Wait until the sessions that are being closed are. Safe to call twice."""
        while self._endings:
            await asyncio.wait(self._endings)
        self._threads.shutdown(wait=False)

    async def __aenter__(self) -> AsyncInterpreter:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @asynccontextmanager
    async def _closing(self, session: AsyncSession) -> AsyncIterator[AsyncSession]:
        try:
            yield session
        finally:
            await asyncio.shield(self._release(session._busy, session._session))

    def _release(
        self, busy: asyncio.Future[Any] | None, session: Session | None = None
    ) -> asyncio.Task[None]:
        """Close a session (or the copy that `busy` makes) when `busy` is over; free its place."""
        ending = asyncio.get_running_loop().create_task(self._end(busy, session))
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        return ending

    async def _end(self, busy: asyncio.Future[Any] | None, session: Session | None) -> None:
        try:
            if busy is not None and not busy.done():
                await asyncio.wait([busy])
            if session is None and busy is not None and busy.exception() is None:
                session = busy.result()
            if session is not None:
                await asyncio.get_running_loop().run_in_executor(self._threads, session.close)
        finally:
            self._places.release()
