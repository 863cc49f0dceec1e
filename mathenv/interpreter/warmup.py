"""What the nursery does before any session exists, so that sessions start warm and small.

Standard library only (and the libraries that sessions use), loaded by path by `runner.py`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import os
import platform
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from . import memory

LIBRARIES = ("sympy", "numpy", "mpmath")

# What sessions often do. The first time is slow: sympy imports and fills caches inside functions.
REHEARSAL = (
    "from sympy import *; import math, itertools, fractions, decimal, functools, collections",
    "x, y, z = symbols('x y z'); n = symbols('n', integer=True, positive=True)",
    "print(solve(x**3 - 4*x**2 + x + 6, x), solve(x**2 - 2, x), solve(x**2 + x + 1))",
    "print(solve([x + y - 3, x - y - 1], [x, y]), solve(Eq(2*x + 1, 7), x))",
    "print(solve([x**2 + y**2 - 25, x + y - 7], (x, y)), solve(sqrt(x + 3) - x + 3, x))",
    "print(solve(x**3 - 2, x), solve(x**3 + 1, x), solve(x**4 - 16, x), solve(2*x**3 - x, x))",
    "print(solve(x**3 - 3*x + 1, x), solve([2*x + y - 5, x + 3*y - 5], [x, y]))",
    "print(integrate(x**2*cos(x), x), factor(x**4 - 1))",
    "print(solveset(x**2 - 5*x + 6, x), solve(x**2 - 4 > 0, x), nsolve(cos(x) - x, x, 1))",
    "print(factor(x**3 - 1), expand((x + y)**3), simplify((x**2 - 1)/(x - 1)))",
    "print(simplify(sin(x)**2 + cos(x)**2), trigsimp(sin(2*x)/sin(x)), sqrt(8) + Rational(2, 6))",
    "print(diff(x**2*sin(x), x), integrate(x*exp(x), x), integrate(x**2, (x, 0, 1)))",
    "print(apart(1/(x**2 - 1)), limit(sin(x)/x, x, 0), summation(n**2, (n, 1, 10)))",
    "print(Matrix([[1, 2], [3, 4]]).inv(), Matrix([[2, 0], [0, 3]]).det(), latex(sqrt(x)/3))",
    "print(factorint(360), isprime(97), gcd(12, 18), lcm(4, 6), binomial(10, 3), divisors(28))",
    "print(N(pi, 20), sqrt(2).evalf(), Poly(x**2 - 1, x).all_roots(), nsimplify(0.25))",
    "print(sympify('x + 1'), series(exp(x), x, 0, 3), floor(Rational(7, 2)), log(8, 2), I**2)",
    "import numpy as np; np.random.seed(0); print(np.linalg.solve(np.eye(2), np.ones(2)))",
    "print(np.array([1, 2]).sum(), np.roots([1, -3, 2]), np.arange(3).mean())",
    "import mpmath; mpmath.quad(mpmath.sin, [0, 1])",
)

# Whole sessions of different kinds. What each of them writes to, most sessions will.
_SESSIONS = (
    "from sympy import *\nx = symbols('x')\nprint(solve(x**2 - 7*x + 12, x))",
    "from sympy import *\nx, y = symbols('x y')\nprint(solve([3*x + y - 7, x - 2*y], [x, y]))",
    "from sympy import *\nx = symbols('x', real=True)\nprint(simplify((x**2 - 9)/(x - 3)))",
)


def warm_up(preload: Sequence[str], numpy_legacy: str | None, folder: str) -> dict[str, str]:
    """Import the libraries and use them once; returns versions.

    Then their memory is arranged so that sessions, which share it until they write to it,
    write to few pages. `folder` can be written to meanwhile.
    """
    modules = {name: import_module(name) for name in LIBRARIES}
    for name in preload:
        import_module(name)
    _warm_matplotlib(folder)
    _use_pipes_in_asyncio()
    if numpy_legacy is not None:
        modules["numpy"].set_printoptions(legacy=numpy_legacy)
    namespace: dict[str, Any] = {}
    _run(REHEARSAL, namespace)
    _bring_together(partial(_run, REHEARSAL, namespace))
    _run(REHEARSAL, namespace)  # the interpreter adapts new code: let it do so now
    namespace.clear()
    gc.collect()
    memory.fill_holes()
    gc.freeze()  # the collector leaves these objects alone: their pages stay shared
    versions = {name: str(module.__version__) for name, module in modules.items()}
    return {"python": platform.python_version(), **versions}


def _warm_matplotlib(folder: str) -> None:
    """Import matplotlib, if it is there: its list of fonts and its import cost a plot 0.4 s.

    Nothing is drawn, because that would leave font files open.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return
    os.environ["MPLCONFIGDIR"] = folder
    import_module("matplotlib.pyplot").switch_backend("agg")
    del os.environ["MPLCONFIGDIR"]


class _PipeEnd:
    """What an event loop uses of a socket."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def recv(self, size: int) -> bytes:
        return os.read(self._fd, size)

    def send(self, data: bytes) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        os.close(self._fd)


def _use_pipes_in_asyncio() -> None:
    """Let event loops wake themselves by a pipe, since sessions may not make sockets."""
    loop: Any = import_module("asyncio.selector_events").BaseSelectorEventLoop

    def make_self_pipe(self: Any) -> None:
        self._ssock, self._csock = map(_PipeEnd, os.pipe())
        self._internal_fds += 1
        self._add_reader(self._ssock.fileno(), self._read_from_self)

    loop._make_self_pipe = make_self_pipe


def _run(cells: tuple[str, ...], namespace: dict[str, Any]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        for cell in cells:
            exec(cell, namespace)


TYPICAL = tuple(partial(_run, (cell,), {}) for cell in _SESSIONS)


def _bring_together(work: Callable[[], object]) -> None:
    """Give the functions that `work` calls equal code objects that lie side by side.

    A call counts a reference in the code object. As imported, those of sympy's functions that
    are in use are scattered among ten times as many that are not.
    """
    called: dict[int, types.CodeType] = {}  # by id: equal ones of two files are not the same
    sys.setprofile(lambda frame, *_: called.setdefault(id(frame.f_code), frame.f_code))
    try:
        work()
    finally:
        sys.setprofile(None)
    functions = defaultdict(list)
    for thing in gc.get_objects():
        if isinstance(thing, types.FunctionType) and id(thing.__code__) in called:
            functions[id(thing.__code__)].append(thing)
    for number, code in called.items():  # in the order of the first call
        if number in functions:
            copy = _copy(code, called)
            for function in functions[number]:
                function.__code__ = copy


def _copy(code: types.CodeType, called: Container[int]) -> types.CodeType:
    """An equal code object in new memory, with the called ones of the functions inside it."""
    constants = (
        _copy(constant, called)
        if isinstance(constant, types.CodeType) and id(constant) in called
        else constant
        for constant in code.co_consts
    )
    return code.replace(co_consts=tuple(constants))
