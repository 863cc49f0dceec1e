"""Coroutines share a bounded number of sessions; what dies is replaced alone."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter import AsyncInterpreter, ForkError, LocalInterpreter
from mathenv.interpreter.base import RESTARTED
from mathenv.types import ExecutionStatus


def test_many_trajectories_share_few_sessions(interpreter):
    async def trajectory(pool: AsyncInterpreter, number: int) -> str:
        async with pool.session(seed=number) as session:
            await session.run(f"x = {number}")
            await asyncio.sleep(0)
            return (await session.run("x + 1")).output

    async def play() -> list[str]:
        async with AsyncInterpreter(interpreter, max_sessions=4) as pool:
            return await asyncio.gather(*(trajectory(pool, number) for number in range(60)))

    assert asyncio.run(play()) == [str(number + 1) for number in range(60)]


def test_never_more_than_the_bounds(interpreter):
    """Counted where they run: in each cell and around each session."""
    running, live, most = [0], [0], [0, 0]

    class Counted:
        description = interpreter.description

        def session(self, *, seed=0):
            return CountedSession(interpreter.session(seed=seed))

        def close(self):
            pass

    class CountedSession:
        def __init__(self, session):
            self.session = session
            live[0] += 1
            most[1] = max(most[1], live[0])

        def run(self, code):
            running[0] += 1
            most[0] = max(most[0], running[0])
            try:
                return self.session.run(code)
            finally:
                running[0] -= 1

        def close(self):
            self.session.close()
            live[0] -= 1

    async def trajectory(pool: AsyncInterpreter) -> None:
        async with pool.session() as session:
            for _ in range(2):
                await session.run("import time\ntime.sleep(0.01)")

    async def play() -> None:
        async with AsyncInterpreter(Counted(), max_sessions=5, max_running=2) as pool:
            await asyncio.gather(*(trajectory(pool) for _ in range(12)))

    asyncio.run(play())
    assert most == [2, 5]
    assert live == [0]


def test_copies(interpreter):
    async def play() -> list[str]:
        async with AsyncInterpreter(interpreter, max_sessions=3) as pool:
            async with pool.session() as session:
                await session.run("x = [1]")
                async with session.fork() as one, session.fork() as two:
                    await asyncio.gather(one.run("x.append(2)"), two.run("x.append(3)"))
                    return [(await s.run("x")).output for s in (session, one, two)]

    assert asyncio.run(play()) == ["[1]", "[1, 2]", "[1, 3]"]


def test_copies_that_find_no_place_are_an_error_not_a_deadlock(interpreter):
    async def play() -> str:
        async with AsyncInterpreter(interpreter, max_sessions=1, wait_seconds=0.1) as pool:
            async with pool.session() as session:
                await session.run("x = 1")
                with pytest.raises(InfraError, match="max_sessions"):
                    async with session.fork():
                        pass
                await session.run(
                    "import threading, time\n"
                    "t = threading.Thread(target=time.sleep, args=(60,), daemon=True)\nt.start()"
                )
                return (await session.run("x")).output

    assert asyncio.run(play()) == "1"


def test_a_refused_copy_gives_its_place_back(interpreter):
    async def play() -> str:
        async with AsyncInterpreter(interpreter, max_sessions=2) as pool:
            async with pool.session() as session:
                await session.run("import threading\nstop = threading.Event()")
                await session.run("t = threading.Thread(target=stop.wait)\nt.start()")
                for _ in range(3):
                    with pytest.raises(ForkError):
                        async with session.fork():
                            pass
                await session.run("stop.set()\nt.join()")
                async with session.fork() as copy:
                    return (await copy.run("2")).output

    assert asyncio.run(play()) == "2"


def test_cancelled_cells_free_their_places(hasty):
    async def play() -> str:
        async with AsyncInterpreter(hasty, max_sessions=1, max_running=1) as pool:

            async def endless() -> None:
                async with pool.session() as session:
                    await session.run("while True:\n    pass")

            task = asyncio.create_task(endless())
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            async with pool.session() as session:
                return (await session.run("1 + 1")).output

    assert asyncio.run(play()) == "2"


def test_misuse_is_an_error(interpreter):
    async def play() -> None:
        async with AsyncInterpreter(interpreter) as pool, pool.session() as session:
            first = asyncio.create_task(session.run("1"))
            await asyncio.sleep(0)  # the cell is on its way; its end is heard of in a later turn
            with pytest.raises(ConfigError, match="busy"):
                await session.run("1")
            await first

    asyncio.run(play())
    with pytest.raises(ConfigError, match="at least 1"):
        AsyncInterpreter(interpreter, max_sessions=0)


def zygotes_of(running, host: int) -> list[int]:
    """The helper processes that have sessions: parents of processes without children."""
    parents = {}
    for process in running(host):
        fields = Path(f"/proc/{process}/status").read_text().split("PPid:")
        parents[process] = int(fields[1].split()[0])
    return sorted({parents[p] for p in parents if p not in parents.values()} & set(parents))


def test_a_zygote_that_dies_is_replaced_without_its_neighbours(running, launchers):
    others = launchers(os.getpid())
    with LocalInterpreter(zygotes=2) as interpreter:
        first, second = interpreter.session(), interpreter.session()
        first.run("q = 1")
        second.run("q = 2")
        helpers = zygotes_of(lambda host: running(host, others), os.getpid())
        assert len(helpers) == 2

        async def play() -> list[ExecutionStatus]:
            async def trajectory(pool: AsyncInterpreter, number: int) -> ExecutionStatus:
                async with pool.session() as session:
                    await session.run(f"x = {number}")
                    if number == 5:
                        os.kill(helpers[0], signal.SIGKILL)
                    return (await session.run("import time\ntime.sleep(0.1)")).status

            async with AsyncInterpreter(interpreter, max_sessions=8) as pool:
                return await asyncio.gather(*(trajectory(pool, number) for number in range(30)))

        statuses = asyncio.run(play())
        # Only sessions that were open in the dead one are affected.
        assert statuses.count(ExecutionStatus.INFRA) <= 8
        assert set(statuses) <= {ExecutionStatus.OK, ExecutionStatus.INFRA}
        results = [session.run("q") for session in (first, second)]
        lost = [r.status for r in results].index(ExecutionStatus.INFRA)
        assert results[1 - lost].output == str(2 - lost)
        assert (first, second)[lost].run("3").output == f"{RESTARTED}\n3"
