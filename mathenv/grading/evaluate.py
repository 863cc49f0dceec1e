r"""The value of a formula at one point. Runs in the worker process only.

Trees are those of `expression.py`. Every name is a variable of its own, with its letter case,
index, primes and accent, and every function that is not known is a value that its name and
arguments fix. mpmath computes to any number of digits, and knows nothing of the text.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from mpmath import mp

Tree = list[Any]

WHOLE_POINTS = (6, 7, 8)  # positive integers, for factorials and the ends of sums
_MAX_TERMS = 2000
_MAX_POWER = 10**6
_MAX_FACTORIAL = 10**5

_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
_HYPERBOLIC = ("sinh", "cosh", "tanh", "coth", "sech", "csch")
_ORDINARY = {name: getattr(mp, name) for name in (*_TRIGONOMETRIC, *_HYPERBOLIC, "exp", "erf")}
_INVERSE = {f"arc{name}": getattr(mp, f"a{name}") for name in (*_TRIGONOMETRIC, *_HYPERBOLIC)}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "\\pi": lambda: +mp.pi,
    "e": lambda: +mp.e,
    "i": lambda: mp.mpc(0, 1),
}


class UndefinedError(ArithmeticError):
    """A formula has no finite value at a point, or none that is worth its cost."""


class Evaluator:
    """Values of trees at one point."""

    def __init__(
        self, point: int, special: str = "", bound: Mapping[str, Any] | None = None
    ) -> None:
        self._point = point
        self._special = special  # the variable that is negative, or after "complex " not real
        self._bound = dict(bound or {})
        self.largest = mp.mpf(0)  # of all terms of sums: how much may have cancelled
        self._in_degrees = False

    def value(self, tree: Tree) -> Any:
        """Return the value of a tree. Raises `ArithmeticError` or `ValueError` for none."""
        number = _NODES[tree[0]](self, *tree[1:])
        if not isinstance(number, mp.matrix) and not mp.isfinite(number):
            raise UndefinedError
        return number

    def scalar(self, tree: Tree) -> Any:
        """Return the value of a tree; for a matrix, a number that its shape and cells fix."""
        value = self.value(tree)
        if not isinstance(value, mp.matrix):
            return value
        cells = [(value[i, j], f"{i} {j}") for i in range(value.rows) for j in range(value.cols)]
        self.largest = max([self.largest, *(abs(cell) for cell, _ in cells)])
        shape = mp.mpf(_digest(f"{value.rows} by {value.cols}") % 997)
        return shape + mp.fsum(cell * (_digest(place) % 9973) / 1009 for cell, place in cells)

    def _matrix(self, *rows: list[Tree]) -> Any:
        return mp.matrix([[self.value(cell) for cell in row] for row in rows])

    def _number(self, text: str) -> Any:
        top, _, bottom = text.partition("/")
        return mp.mpf(top) / mp.mpf(bottom) if bottom else mp.mpf(top)

    def _variable(self, name: str) -> Any:
        if name in self._bound:
            return self._bound[name]
        if name in _CONSTANTS:
            return _CONSTANTS[name]()
        if name == "\\pm":
            return mp.mpf(1 if self._point % 2 else -1)
        code = _digest(name)
        if self._point in WHOLE_POINTS:
            return mp.mpf(2 + (code + self._point * (code % 7 + 1)) % 11)
        size = mp.mpf(1 + (code // 16 * (2 * self._point + 1)) % 99_991) / 31_013
        size += mp.mpf(1) / 9
        if self._special == f"complex {name}":
            return mp.mpc(size, size / 3)
        return -size if name == self._special else size

    def _add(self, *terms: Tree) -> Any:
        values = [self.value(term) for term in terms]
        if isinstance(values[0], mp.matrix):
            return sum(values[1:], values[0])
        self.largest = max(self.largest, *map(abs, values))
        return mp.fsum(values)

    def _multiply(self, *factors: Tree) -> Any:
        values = [self.value(factor) for factor in factors]
        return reduce(operator.mul, values)

    def _divide(self, top: Tree, bottom: Tree) -> Any:
        below = self.value(bottom)
        if abs(below) < mp.mpf(10) ** (-mp.dps // 2) and bottom[0] in ("+", "f", "*"):
            raise UndefinedError  # what cancelled cannot be told from zero
        return self.value(top) / below

    def _negate(self, tree: Tree) -> Any:
        return -self.value(tree)

    def _power(self, base: Tree, exponent: Tree) -> Any:
        a = self.value(base)
        if isinstance(a, mp.matrix):
            return self._matrix_power(a, exponent)
        b = self.value(exponent)
        if abs(b) > _MAX_POWER and abs(a) != 1:
            raise UndefinedError
        if _is_odd_root(exponent) and is_real(a) and a < 0:
            return mp.sign(a) ** int(exponent[1][1]) * abs(a) ** b
        return a ** (int(b) if is_whole(b) else b)

    def _matrix_power(self, matrix: Any, exponent: Tree) -> Any:
        if exponent in (["v", "T"], ["v", "\\top"]):
            return matrix.T
        power = self.value(exponent)
        if not is_whole(power) or abs(power) > _MAX_TERMS:
            raise UndefinedError
        return matrix ** int(power)

    def _root(self, degree: Tree, tree: Tree) -> Any:
        n, inside = self.value(degree), self.value(tree)
        if not is_real(n) or n == 0:
            raise UndefinedError
        if is_real(inside) and inside < 0 and is_whole(n) and int(n) % 2:
            return -((-inside) ** (1 / n))
        return mp.sqrt(inside) if n == 2 else inside ** (1 / n)

    def _function(self, name: str, *arguments: Tree) -> Any:
        outer, self._in_degrees = self._in_degrees, name in _TRIGONOMETRIC
        values = [self.value(argument) for argument in arguments]
        self._in_degrees = outer
        return apply(name, values)

    def _unknown(self, name: str, *arguments: Tree) -> Any:
        """Return a value between 0.5 and 1.5 that only the name and the arguments fix."""
        values = [mp.nstr(self.value(argument), 25) for argument in arguments]
        code = _digest(f"{name}({';'.join(values)})")
        return mp.mpf(code % 1_000_003) / 1_000_003 + mp.mpf(1) / 2

    def _degrees(self, tree: Tree) -> Any:
        return self.value(tree) * mp.pi / 180 if self._in_degrees else self.value(tree)

    def _series(self, kind: str, name: str, low: Tree, high: Tree, body: Tree) -> Any:
        infinite = high == ["v", "\\infty"]
        first = self.value(low)
        last = mp.inf if infinite else self.value(high)
        if not is_whole(first) or not (infinite or is_whole(last)):
            raise UndefinedError
        if not infinite and last - first > _MAX_TERMS:
            raise UndefinedError

        def term(number: Any) -> Any:
            bound = {**self._bound, name: mp.mpf(number)}
            inner = Evaluator(self._point, self._special, bound)
            result = inner.value(body)
            self.largest = max(self.largest, abs(result))
            return result

        if infinite:
            return (mp.nsum if kind == "sum" else mp.nprod)(term, [int(first), mp.inf])
        terms = [term(number) for number in range(int(first), int(last) + 1)]
        return mp.fsum(terms) if kind == "sum" else mp.fprod(terms)

    def _sum_of(self, *rest: Any) -> Any:
        return self._series("sum", *rest)

    def _product_of(self, *rest: Any) -> Any:
        return self._series("prod", *rest)


_NODES: dict[str, Callable[..., Any]] = {
    "n": Evaluator._number,
    "m": Evaluator._matrix,
    "v": Evaluator._variable,
    "+": Evaluator._add,
    "*": Evaluator._multiply,
    "/": Evaluator._divide,
    "-": Evaluator._negate,
    "^": Evaluator._power,
    "root": Evaluator._root,
    "f": Evaluator._function,
    "u": Evaluator._unknown,
    "text": Evaluator._unknown,
    "deg": Evaluator._degrees,
    "sum": Evaluator._sum_of,
    "prod": Evaluator._product_of,
}


def apply(name: str, values: list[Any]) -> Any:
    """Return the value of a known function."""
    if name in _ORDINARY or name in _INVERSE:
        (x,) = values
        if name in ("exp", "sinh", "cosh") and abs(x) > _MAX_POWER:
            raise UndefinedError
        return (_ORDINARY.get(name) or _INVERSE[name])(x)
    return _SPECIAL[name](*values)


def _factorial(x: Any) -> Any:
    if abs(x) > _MAX_FACTORIAL:
        raise UndefinedError
    return mp.factorial(x)


def _double_factorial(x: Any) -> Any:
    if abs(x) > _MAX_FACTORIAL:
        raise UndefinedError
    return mp.fac2(x)


def _binomial(n: Any, k: Any) -> Any:
    if max(abs(n), abs(k)) > _MAX_FACTORIAL:
        raise UndefinedError
    return mp.binomial(n, k)


def _whole_function(compute: Callable[[int, int], int]) -> Callable[..., Any]:
    def function(*values: Any) -> Any:
        if not values or not all(map(is_whole, values)):
            raise UndefinedError
        result = int(values[0])
        for value in values[1:]:
            result = compute(result, int(value))
        return mp.mpf(result)

    return function


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return abs(a)


def _lcm(a: int, b: int) -> int:
    return abs(a * b) // _gcd(a, b) if a and b else 0


def _extreme(choose: Callable[..., Any]) -> Callable[..., Any]:
    def function(*values: Any) -> Any:
        if not all(map(is_real, values)):
            raise UndefinedError
        return choose(values) if len(values) > 1 else values[0]

    return function


def _log(x: Any) -> Any:
    """Return a logarithm to a base that is not said: neither ln nor lg, unless the same."""
    return mp.log(x) / (2 + mp.mpf(1) / 7)


def _log_to_base(base: Any, x: Any) -> Any:
    return mp.log(x) / mp.log(base)


_SPECIAL: dict[str, Callable[..., Any]] = {
    "ln": mp.log,
    "log": _log,
    "lg": mp.log10,
    "logbase": _log_to_base,
    "abs": lambda x: mp.det(x) if isinstance(x, mp.matrix) else abs(x),
    "floor": mp.floor,
    "ceil": mp.ceil,
    "!": _factorial,
    "!!": _double_factorial,
    "binom": _binomial,
    "gcd": _whole_function(_gcd),
    "lcm": _whole_function(_lcm),
    "max": _extreme(max),
    "min": _extreme(min),
    "sgn": mp.sign,
    "det": mp.det,
    "Re": mp.re,
    "Im": mp.im,
}


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")


def _is_odd_root(exponent: Tree) -> bool:
    """Say whether an exponent is written as p/q with an odd q: then powers of -8 are real."""
    if exponent[0] != "/" or exponent[1][0] != "n" or exponent[2][0] != "n":
        return False
    return exponent[1][1].isdigit() and exponent[2][1].isdigit() and int(exponent[2][1]) % 2 == 1


def is_real(value: Any) -> bool:
    """Say whether a number has no imaginary part."""
    return mp.im(value) == 0


def is_whole(value: Any) -> bool:
    """Say whether a number is an integer."""
    return is_real(value) and mp.isint(mp.re(value))
