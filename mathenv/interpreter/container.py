"""The program inside a container: `LocalInterpreter` behind frames on stdin and stdout.

Standard library only. `docker.py` is the other end. A frame is 4 bytes of length, big-endian,
then a JSON object. The first frame in holds `limits`, `min_tier`, the `options` of the
interpreter and the `fingerprint` of the host's sources; the answer has the `description`, or
`stale` where ours are others, or `refused`, why the options are. After that:

    {op: run, id, session, seed, lost, code}   -> {id, status, output, truncated, session_lost}
    {op: fork, id, session, new}               -> {id}
    {op: close, session}                       no answer

A session comes into being with its first cell. Each has a thread here, so that its requests
run in order and beside those of the others. An answer to a request that our machinery
could not carry out is {id, error, kind}. When stdin ends, so does the container.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import queue
import threading
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from mathenv.errors import ConfigError, MathEnvError
from mathenv.interpreter.base import Limits
from mathenv.interpreter.local import LocalInterpreter, LocalSession

MAX_FRAME = 4 << 20


def encode(message: dict[str, Any]) -> bytes:
    """Return the frame of a message."""
    body = json.dumps(message).encode()
    return len(body).to_bytes(4, "big") + body


def fingerprint() -> str:
    """Return a hash of the source files that an image holds: both ends must be the same."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in (root / "types.py", root / "errors.py", *sorted(root.glob("interpreter/*.py"))):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


class _Worker:
    """A session and the thread that carries out its requests, one after another."""

    def __init__(self, server: _Server, session: LocalSession) -> None:
        self._server, self._session = server, session
        self.requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while (request := self.requests.get()) is not None:
            try:
                answer = self._answer(request)
            except Exception as error:
                kind = type(error).__name__
                answer = {"error": str(error) or kind, "kind": kind}
            self._server.send({"id": request["id"], **answer})
        self._session.close()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "fork":
            self._server.add(request["new"], self._session.fork())
            return {}
        return dataclasses.asdict(self._session.run(request["code"]))


class _Server:
    """Gives every request to the worker of its session."""

    def __init__(self, replies: BinaryIO) -> None:
        self._replies = replies
        self._lock = threading.Lock()
        self._workers: dict[str, _Worker] = {}

    def start(self, config: dict[str, Any]) -> dict[str, Any]:
        """Start the interpreter if the host's `mathenv` is this one. Returns the answer."""
        if config["fingerprint"] != fingerprint():
            return {"stale": True}
        # Not imported above: the host reads this file too, and need not be Linux.
        import_module("mathenv.interpreter.sandbox").forbid_inspection()
        warnings.simplefilter("ignore")  # the host gives the warnings
        limits = Limits(**config["limits"])
        try:
            self._interpreter = LocalInterpreter(
                limits, min_tier=config["min_tier"], **config["options"]
            )
        except ConfigError as error:
            return {"refused": str(error)}
        return {"description": self._interpreter.description}

    def send(self, message: dict[str, Any]) -> None:
        frame = encode(message)
        with self._lock:
            self._replies.write(frame)
            self._replies.flush()

    def add(self, name: str, session: LocalSession) -> _Worker:
        worker = self._workers[name] = _Worker(self, session)
        return worker

    def dispatch(self, request: dict[str, Any]) -> None:
        if request["op"] == "close":
            if worker := self._workers.pop(request["session"], None):
                worker.requests.put(None)
            return
        worker = self._workers.get(request["session"])
        if worker is None:
            session = self._interpreter.session(seed=request["seed"])
            session._lost = request["lost"]  # the session whose place it takes was elsewhere
            try:
                worker = self.add(request["session"], session)
            except RuntimeError as error:  # some cell has used up the container's threads
                self.send({"id": request["id"], "error": str(error)})
                return
        worker.requests.put(request)


def _read_frame(requests: BinaryIO) -> dict[str, Any]:
    size = int.from_bytes(requests.read(4), "big")
    body = requests.read(size) if size else b""
    if not body:
        os._exit(0)  # the host has closed our stdin, or has died
    message: dict[str, Any] = json.loads(body)
    return message


def main() -> None:
    """Serve until stdin ends. Everything else in the container ends with this process."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # nothing that is printed can come between the frames
    config = _read_frame(requests)
    server = _Server(replies)
    try:
        server.send({"id": config["id"], **server.start(config)})
    except (MathEnvError, OSError) as error:
        server.send({"id": config["id"], "error": str(error)})
        return
    while True:
        server.dispatch(_read_frame(requests))


if __name__ == "__main__":
    main()
