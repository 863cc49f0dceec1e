"""Sandboxed sessions in Docker containers, for hosts other than Linux or a second wall.

Each container runs `container.py`, and in it the same `LocalInterpreter` as on this machine.
Cells travel over the socket attached to its stdin and stdout. Containers and their contents
are not trusted: what they send is bounded and checked, and one that does not answer is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import queue
import socket
import struct
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

from mathenv.errors import ConfigError, InfraError, whole
from mathenv.interpreter.base import WALL_FACTOR, ForkError, Limits
from mathenv.interpreter.container import MAX_FRAME, encode, fingerprint
from mathenv.interpreter.engine import BUILD, Engine, Resources
from mathenv.interpreter.launcher import START_SECONDS
from mathenv.interpreter.local import DEFAULT_LIMITS, TIERS
from mathenv.interpreter.process import MAX_FRAME as MAX_CELL_FRAME
from mathenv.types import ExecutionResult, ExecutionStatus

IMAGE = "mathenv-interpreter"
CONTAINER_SECONDS = 300.0  # to start on a busy machine; one that ends is noticed at once
# Above the limits that hold inside: three requests to a zygote on a busy machine.
SLACK_SECONDS = 100.0
SEND_SECONDS = 30


class _Container:
    """A running container: sends requests, and gives the answers to those who wait."""

    def __init__(self, engine: Engine, config: dict[str, Any]) -> None:
        self._engine, self._pid = engine, os.getpid()
        self._lock = threading.Lock()  # one frame after another
        self._numbers = itertools.count()
        self._waiting: dict[int, queue.SimpleQueue[dict[str, Any] | None]] = {}
        self._failure = ""
        self._complaints = b""
        self._id, self._attached = engine.start()
        self._socket = getattr(self._attached, "_sock", self._attached)
        try:
            self._socket.settimeout(None)
            patience = struct.pack("ll", SEND_SECONDS, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
            threading.Thread(target=self._listen, name="docker-interpreter", daemon=True).start()
            self.hello = self.request(config, CONTAINER_SECONDS)
        except BaseException:
            self.close()
            raise

    def alive(self) -> bool:
        return not self._failure and os.getpid() == self._pid

    def request(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises `InfraError` if the container has ended, could not do it, or took longer than
        `seconds` and was killed for it.
        """
        number = next(self._numbers)
        answer = self._waiting[number] = queue.SimpleQueue()
        try:
            if not self.alive():
                raise InfraError(self._failure or "the container belongs to another process")
            self.send({"id": number, **message})
            reply = answer.get(timeout=seconds)
        except queue.Empty:
            self.close(f"the container did not answer within {seconds:g} s and was killed")
            reply = None
        finally:
            del self._waiting[number]
        if reply is None:
            raise InfraError(self._failure)
        if "error" in reply:
            kind = ForkError if reply.get("kind") == "ForkError" else InfraError
            raise kind(str(reply["error"])[:1000])
        return reply

    def send(self, message: dict[str, Any]) -> None:
        """Send a message that has no answer. One that cannot be sent ends the container."""
        try:
            with self._lock:
                self._socket.sendall(encode(message))
        except OSError as error:
            self.close(f"the container takes no requests: {error}")

    def close(self, reason: str = "the container was removed") -> None:
        """Kill and remove the container. Safe to call twice."""
        if os.getpid() != self._pid:  # a forked copy of the host
            return
        self._failure = self._failure or reason
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._engine.remove(self._id)

    def _listen(self) -> None:
        """Read what the container sends until it ends, then tell everybody who waits."""
        reason = "the container ended"
        frames = bytearray()
        try:
            with self._socket.makefile("rb") as stream:
                # 8 bytes before every piece: the stream's number, padding, the length
                while len(header := stream.read(8)) == 8:
                    data = stream.read(int.from_bytes(header[4:], "big"))
                    if header[0] == 2:
                        self._complaints = (self._complaints + data)[-1000:]
                    else:
                        frames += data
                        self._deliver(frames)
        except (OSError, ValueError, RecursionError) as error:
            reason = f"the container sent something else than answers: {error}"
        complaints = self._complaints.decode("utf-8", "replace").strip()
        self._failure = self._failure or f"{reason}. {complaints}".strip()
        for answer in list(self._waiting.values()):
            answer.put(None)
        self.close()
        self._attached.close()

    def _deliver(self, frames: bytearray) -> None:
        """Take the whole frames from the front of `frames`."""
        while len(frames) >= 4:
            end = 4 + int.from_bytes(frames[:4], "big")
            if end > MAX_FRAME:
                raise ValueError(f"a frame of {end} bytes")
            if len(frames) < end:
                return
            message = json.loads(frames[4:end])
            del frames[:end]
            if not isinstance(message, dict):
                raise ValueError("not an object")
            answer = self._waiting.get(message.get("id", -1))
            if answer is not None:
                answer.put(message)


class _Slot:
    """A worker's place: its present container, and how many sessions have it as theirs."""

    def __init__(self, engine: Engine, config: dict[str, Any]) -> None:
        self._engine, self._config = engine, config
        self._lock = threading.Lock()
        self._container: _Container | None = None
        self.sessions = 0

    def container(self) -> _Container:
        """The container, or a new one if it has died or the host has forked."""
        with self._lock:
            if self._container is None or not self._container.alive():
                self._container = _Container(self._engine, self._config)
            return self._container

    def close(self) -> None:
        if self._container is not None:
            self._container.close("the interpreter is closed")


class DockerSession:
    """A session of `DockerInterpreter`. It is given a container with its first cell."""

    def __init__(self, interpreter: DockerInterpreter, seed: int) -> None:
        self._interpreter, self._seed = interpreter, seed
        self._slot: _Slot | None = None
        self._container: _Container | None = None
        self._name = ""
        self._lost = self._closed = False

    def run(self, code: str) -> ExecutionResult:
        """Run one cell. Raises `ConfigError` only if the session or interpreter is closed."""
        started = time.monotonic()
        if self._closed:
            raise ConfigError("the session is closed: open a new one with Interpreter.session()")
        if len(code) > MAX_CELL_FRAME // 8:
            text = f"ValueError: the cell has {len(code)} characters"
            return ExecutionResult(ExecutionStatus.ERROR, text, session_lost=self._lost)
        try:
            result = self._run(code)
        except InfraError as error:
            self._discard()
            text = f"InfraError: {error}"[: self._interpreter.limits.output_chars]
            result = ExecutionResult(ExecutionStatus.INFRA, text, session_lost=self._lost)
        except BaseException:  # such as Ctrl-C in the host: the cell may still run
            self._discard()
            raise
        return dataclasses.replace(result, seconds=time.monotonic() - started)

    def fork(self) -> DockerSession:
        """An independent copy in the same container. See `Session.fork` for what it may raise."""
        if self._closed:
            raise ConfigError("the session is closed: open a new one with Interpreter.session()")
        copy = DockerSession(self._interpreter, self._seed)
        copy._lost = self._lost
        if self._container is None:
            return copy
        copy._slot = self._interpreter._take_slot(self._slot)
        copy._name = self._interpreter._new_name()
        request = {"op": "fork", "session": self._name, "new": copy._name}
        try:
            self._container.request(request, SLACK_SECONDS)
        except (ForkError, InfraError):
            copy.close()
            raise
        except BaseException:  # such as Ctrl-C in the host: it may still divide
            copy.close()
            self._discard()
            raise
        copy._container = self._container
        return copy

    def close(self) -> None:
        """End the session's process. Safe to call twice."""
        self._closed = True
        self._discard()

    def __deepcopy__(self, memo: object) -> DockerSession:
        """A copy of the session is a fork. Raises as `fork` does."""
        return self.fork()

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "a session that runs cannot be pickled: end the episode first, or branch from it "
            "with copy.deepcopy or Session.fork()"
        )

    def __enter__(self) -> DockerSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if self._slot is not None:  # locks may be held by this very thread: leave it to others
            self._interpreter._forgotten.append((self._slot, self._container, self._name))

    def _run(self, code: str) -> ExecutionResult:
        if self._container is None:
            self._slot = self._interpreter._take_slot()
            self._container = self._slot.container()
            self._name = self._interpreter._new_name()
            lost, self._lost = self._lost, False
        else:
            lost = False
        limits = self._interpreter.limits
        reply = self._container.request(
            {"op": "run", "session": self._name, "seed": self._seed, "lost": lost, "code": code},
            WALL_FACTOR * (limits.cell_seconds + limits.grace_seconds) + SLACK_SECONDS,
        )
        try:
            return ExecutionResult(
                ExecutionStatus(reply["status"]),
                str(reply["output"])[: limits.output_chars],
                truncated=bool(reply["truncated"]),
                session_lost=bool(reply["session_lost"]),
            )
        except (KeyError, ValueError) as error:
            self._container.close("the container sent an unreadable answer")
            raise InfraError(f"the container sent an unreadable answer: {error}") from None

    def _discard(self) -> None:
        slot, self._slot = self._slot, None
        container, self._container = self._container, None
        self._lost = self._lost or container is not None
        if slot is not None:
            self._interpreter._release(slot, container, self._name)


class DockerInterpreter:
    """Sessions in `containers` long-lived Docker containers, forks of one warm process each.

    Args:
        limits: of each session, held inside its container.
        image: name of the image, built from the `Dockerfile` beside this file.
        containers: how many run, all from the start. One that dies is replaced.
        max_sessions: how many live at once in all of them; one that needs one more waits.
        memory_bytes: of a container. Left out: of two full sessions, and 512 MiB.
        cpus: of a container, e.g. 1.0. Left out: no cap.
        runtime: of the engine, e.g. "runsc". Left out: the engine's default.
        min_tier: as for `LocalInterpreter`, of the sandbox inside the container.
        packages, preload, numpy_legacy: as for `LocalInterpreter`; what they name must be in the
            image (`--build-arg PACKAGES="pandas"`).

    Raises:
        ConfigError: a wrong argument; the docker package or the image is missing or old.
        InfraError: no engine, no permission to use it, or it cannot start the containers.
    """

    def __init__(
        self,
        limits: Limits = DEFAULT_LIMITS,
        *,
        image: str = IMAGE,
        containers: int = 2,
        max_sessions: int = 64,
        memory_bytes: int | None = None,
        cpus: float | None = None,
        runtime: str | None = None,
        min_tier: str | None = None,
        packages: Sequence[str] = (),
        preload: Sequence[str] = (),
        numpy_legacy: str | None = None,
    ) -> None:
        if min_tier is not None and min_tier not in TIERS:
            raise ConfigError(f"min_tier={min_tier!r}: choose one of {', '.join(TIERS)}")
        containers = whole("containers", containers, 1)
        max_sessions = whole("max_sessions", max_sessions, 1)
        self.limits = limits
        memory = memory_bytes or 2 * limits.memory_bytes + (512 << 20)
        resources = Resources(image, max_sessions, memory, cpus, runtime, limits)
        engine = Engine(resources)
        engine.reap()
        config: dict[str, Any] = {"limits": dataclasses.asdict(limits), "min_tier": min_tier}
        config["fingerprint"] = fingerprint()
        options = {"packages": packages, "preload": preload, "numpy_legacy": numpy_legacy}
        config["options"] = options
        self._max_sessions = max_sessions
        self._slots = [_Slot(engine, config) for _ in range(containers)]
        self._free = threading.Condition()
        self._names = itertools.count()
        self._closed = False
        self._forgotten: deque[tuple[_Slot, _Container | None, str]] = deque()
        self._finalizer = weakref.finalize(self, _close_all, self._slots)
        try:
            self._description = _start_all(self._slots, image, engine.image)
        except BaseException:
            self.close()
            raise

    @property
    def description(self) -> dict[str, str]:
        """What isolates the code: host, image, tier inside the container, versions."""
        return dict(self._description)

    def session(self, *, seed: int = 0) -> DockerSession:
        """A new empty session; `seed` sets `random`, `numpy.random` and sympy's generator."""
        return DockerSession(self, whole("seed", seed))

    @property
    def closed(self) -> bool:
        """Whether `close` was called: it takes no further cells."""
        return self._closed

    def __copy__(self) -> DockerInterpreter:
        """Containers have no copies: whoever copies what uses an interpreter shares it."""
        return self

    def __deepcopy__(self, memo: object) -> DockerInterpreter:
        return self

    def __reduce__(self) -> NoReturn:
        raise ConfigError(
            "an interpreter cannot be pickled: its containers are this process's. Name it, as in "
            "interpreter='docker', and each process starts its own"
        )

    def close(self) -> None:
        """End all sessions and remove the containers. Safe to call twice."""
        self._closed = True
        self._finalizer()

    def __enter__(self) -> DockerInterpreter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _new_name(self) -> str:
        return str(next(self._names))

    def _take_slot(self, only: _Slot | None = None) -> _Slot:
        """Wait for room and take it in the emptiest container, or in `only`."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            while self._forgotten:
                self._release(*self._forgotten.popleft())
            with self._free:
                if self._closed:
                    raise ConfigError("the interpreter is closed: make a new one")
                if sum(slot.sessions for slot in self._slots) < self._max_sessions:
                    slot = only or min(self._slots, key=lambda slot: slot.sessions)
                    slot.sessions += 1
                    return slot
                if time.monotonic() > deadline:
                    raise InfraError("no free session: raise max_sessions or close some")
                self._free.wait(1.0)  # and see to what finalisers have left meanwhile

    def _release(self, slot: _Slot, container: _Container | None, name: str) -> None:
        if container is not None and container.alive():
            container.send({"op": "close", "session": name})
        with self._free:
            slot.sessions -= 1
            self._free.notify_all()


def _start_all(slots: Iterable[_Slot], image: str, image_id: str) -> dict[str, str]:
    """Start the containers side by side and return the description of their inside."""
    with ThreadPoolExecutor() as pool:
        # All of them, so that an error of any is raised, not only one of the first.
        hello, *_ = pool.map(lambda slot: slot.container().hello, slots)
    if hello.get("stale"):
        raise ConfigError(
            f"the image {image!r} holds another version of mathenv. Build it anew with: "
            + BUILD.format(image=image)
        )
    if "refused" in hello:
        raise ConfigError(f"{str(hello['refused'])[:1000]} (in the image {image!r})")
    inside = {str(key): str(value) for key, value in dict(hello["description"]).items()}
    if inside.get("tier") == "rlimits":
        warnings.warn(
            "sandbox tier 'rlimits' inside the containers: sessions of one container can read "
            "each other's files. The engine's kernel has no Landlock",
            RuntimeWarning,
            stacklevel=3,
        )
    return {**inside, "host": "docker", "image": image_id}


def _close_all(slots: Iterable[_Slot]) -> None:
    for slot in slots:
        slot.close()
