"""Sandboxed Python sessions behind one protocol (`base`); `local` runs them on this machine."""

from mathenv.interpreter.base import Interpreter, Limits, Session
from mathenv.interpreter.local import LocalInterpreter, LocalSession

__all__ = ["Interpreter", "Limits", "LocalInterpreter", "LocalSession", "Session"]
