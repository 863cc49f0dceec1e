"""Is the sandbox well? Canary cells through the real interpreter, each with a known outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mathenv.errors import InfraError, MathEnvError
from mathenv.interpreter.base import Interpreter, Limits, Session
from mathenv.interpreter.local import TIERS, LocalInterpreter
from mathenv.types import ExecutionResult, ExecutionStatus


@dataclass(frozen=True, slots=True)
class Check:
    """One canary: what was tried, whether the outcome was right, and the outcome."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What isolates the code (`Interpreter.description`) and what the canaries say."""

    description: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for check in self.checks)

    def failures(self) -> str:
        """The failed checks in one line, "" if none."""
        return "; ".join(f"{c.name}: {c.detail}" for c in self.checks if not c.ok)


def _says(output: str) -> Callable[[ExecutionResult], bool]:
    return lambda result: result.status is ExecutionStatus.OK and result.output == output


def _ends(status: ExecutionStatus) -> Callable[[ExecutionResult], bool]:
    return lambda result: result.status is status


def _refused(result: ExecutionResult) -> bool:
    last = result.output.splitlines()[-1] if result.output else ""
    refusals = ("PermissionError:", "FileNotFoundError:", "OSError:")
    return result.status is ExecutionStatus.ERROR and last.startswith(refusals)


def _not_there(result: ExecutionResult) -> bool:
    last = result.output.splitlines()[-1] if result.output else ""
    return result.status is ExecutionStatus.ERROR and last.startswith("ModuleNotFoundError:")


_OURS = Path(__file__).parents[1]  # here, and in the image that `Dockerfile` makes
_FILES = (f"{_OURS}/problems/label_issues.json", "/opt/interpreter/mathenv/types.py", __file__)
_READ_OURS = f"""for path in {_FILES!r}:
    try:
        open(path).read(1)
    except OSError as error:
        refusal = error
    else:
        raise SystemExit("could read " + path)
raise refusal"""
_SOLVE = "from sympy import *\nx = symbols('x')\nsolve(x**2 - 2, x)"
# Each cell runs in the session that the one before has left.
CANARIES: tuple[tuple[str, str, Callable[[ExecutionResult], bool]], ...] = (
    ("arithmetic", "1 + 1", _says("2")),
    ("sympy", _SOLVE, _says("[-sqrt(2), sqrt(2)]")),
    ("numpy", "import numpy\nint(numpy.arange(4).sum())", _says("6")),
    ("names persist", "x", _says("x")),
    ("time limit", "while True:\n    pass", _ends(ExecutionStatus.TIMEOUT)),
    ("memory limit", "bytearray(2**44)", _ends(ExecutionStatus.MEMORY)),
    ("files", "open('scratch', 'w').write('ok')", _says("2")),
    ("host files refused", "open('/etc/passwd').read(1)", _refused),
    ("answers not importable", "from mathenv.problems import load_problems", _not_there),
    ("answers not readable", _READ_OURS, _refused),
    ("other packages not importable", "import gymnasium", _not_there),
    ("network refused", "import socket\nsocket.socket()", _refused),
    ("processes refused", "import os\nos.fork()", _refused),
    ("signals refused", "import os\nos.kill(os.getppid() or 1, 0)", _refused),
)


def examine(interpreter: Interpreter) -> Report:
    """Run the canary cells. Never raises for a sick interpreter: the report says it.

    Takes as long as the interpreter's cell limit, because one cell runs into it.
    """
    checks = []
    try:
        session = interpreter.session()
        try:
            for name, code, is_right in CANARIES:
                checks.append(_check(session, name, code, is_right))
            checks.append(_check_fork(session))
        finally:
            session.close()
    except MathEnvError as error:
        checks.append(Check("session", False, str(error)))
    return Report(interpreter.description, tuple(checks))


def _check(
    session: Session, name: str, code: str, is_right: Callable[[ExecutionResult], bool]
) -> Check:
    result = session.run(code)
    lines = result.output.splitlines() or [""]
    return Check(name, is_right(result), f"{result.status.value}: {lines[-1]}"[:200])


def _check_fork(session: Session) -> Check:
    session.run("branch = ['root']")
    copy = session.fork()
    try:
        copy.run("branch.append('leaf')")
        outputs = [which.run("branch").output for which in (session, copy)]
    finally:
        copy.close()
    return Check("fork", outputs == ["['root']", "['root', 'leaf']"], " ".join(outputs)[:200])


def local_tiers(limits: Limits) -> dict[str, str]:
    """Tier of the local interpreter -> why it does not work here, "" if it does."""
    reasons = {}
    for tier in TIERS:
        try:
            LocalInterpreter(limits, tier=tier, zygotes=1).close()
            reasons[tier] = ""
        except InfraError as error:
            reasons[tier] = str(error).partition("Tried ")[2] or str(error)
    return reasons
