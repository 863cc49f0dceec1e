"""Sandboxed Python sessions behind one protocol (`base`)."""

from mathenv.interpreter.base import Interpreter, Limits, Session

__all__ = ["Interpreter", "Limits", "Session"]
