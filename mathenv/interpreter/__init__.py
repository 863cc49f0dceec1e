"""Sandboxed Python sessions behind one protocol (`base`): on this machine, or in Docker."""

from mathenv.interpreter.aio import AsyncInterpreter, AsyncSession
from mathenv.interpreter.base import ForkError, Interpreter, Limits, Session
from mathenv.interpreter.docker_host import DockerInterpreter, DockerSession
from mathenv.interpreter.local import LocalInterpreter, LocalSession

__all__ = [
    "AsyncInterpreter",
    "AsyncSession",
    "DockerInterpreter",
    "DockerSession",
    "ForkError",
    "Interpreter",
    "Limits",
    "LocalInterpreter",
    "LocalSession",
    "Session",
]
