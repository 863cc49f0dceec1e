"""Start the processes that train together, from one that does not train itself.

`accelerate launch` and `torchrun` start a whole program in every process. A program that does
more than training (the online loop samples and evaluates between stages) stays one process and
has its stages trained by others.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from mathenv.errors import MathEnvError, TrainingError

_LOOPBACK = "127.0.0.1"
_END_SECONDS = 10


def processes_for(wanted: int) -> int:
    """Return how many processes to start here: `wanted`, but one per GPU or CPU thread at most.

    1, no other process, under a launcher: its processes train together already.
    """
    if "WORLD_SIZE" in os.environ:
        return 1
    return min(wanted, torch.cuda.device_count() or torch.get_num_threads())


def run_together(
    count: int, work: Callable[..., Any], *arguments: Any, on_message: Callable[..., None]
) -> None:
    """Call `work(*arguments, tell)` in `count` processes that are one process group.

    What the first of them tells, `tell(*values)`, arrives as `on_message(*values)`. The
    processes share this one's threads. `work` and its arguments must be picklable.

    Raises:
        MathEnvError: what a process raised. TrainingError: one died.
    """
    context = get_context("forkserver")
    # Imported once, not by every process of every stage; torch alone takes seconds.
    context.set_forkserver_preload(["learners.training.train"])
    threads = max(1, torch.get_num_threads() // count)
    group = {
        "MASTER_ADDR": _LOOPBACK,
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": str(threads),  # accelerate takes all cores for each where it is unset
    }
    started, heard = [], []
    try:
        for rank in range(count):
            receiving, sending = context.Pipe(duplex=False)
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            process = context.Process(
                target=_member,
                args=(sending, group | place, threads, work, arguments),
                daemon=True,  # ends with this process
            )
            process.start()
            started.append(process)
            heard.append(receiving)
            sending.close()
        _listen(heard, on_message)
        for process in started:
            process.join(_END_SECONDS)
    finally:
        for process in started:
            process.kill()
            process.join()


def _listen(heard: list[Connection], on_message: Callable[..., None]) -> None:
    """Pass messages on until every process has said that it is done."""
    left = list(heard)
    while left:
        for connection in wait(left):
            assert isinstance(connection, Connection)
            try:
                kind, content = connection.recv()
            except EOFError:
                raise TrainingError(
                    "a process that trains died; what it printed is above, and out of memory "
                    "is the usual cause. What is finished is kept: the same command continues"
                ) from None
            match kind:
                case "message":
                    on_message(*content)
                case "error":
                    raise content
                case "done":
                    left.remove(connection)


def _member(
    sending: Connection,
    environment: dict[str, str],
    threads: int,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent ends this process
    os.environ.update(environment)
    torch.set_num_threads(threads)
    # Where the parent has gone nobody listens: ends this process, and by it the others.
    with suppress(BrokenPipeError):
        try:
            work(*arguments, lambda *values: sending.send(("message", values)))
        except MathEnvError as error:
            sending.send(("error", error))
        else:
            sending.send(("done", None))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
