r"""Compare two read formulas by their values at points. Runs in the worker process only.

Trees are those of `expression.py`. Every name is a variable of its own, with its letter case,
index, primes and accent, and every function that is not known is a value that its name and
arguments fix; so two formulas agree at all points only if they mean the same. mpmath computes to
any number of digits, and knows nothing of the text.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from typing import Any

from mpmath import mp
from mpmath.libmp import NoConvergence

Tree = list[Any]

DIGITS = (50, 300, 1200)  # closed forms that agree are computed again with more
_POINT_DIGITS = 100  # of functions at points
_MANY_DIGITS = 4000  # where terms of sums are huge, as in (2^2005 + 1) / 2^2006
POINTS = (1, 2, 3, 4, 5)  # all values positive
WHOLE_POINTS = (6, 7, 8)  # positive integers, for factorials and the ends of sums
_MIXED_POINTS = 4  # at each, one variable is negative: that tells sqrt(x^2) from x
_LEAST_AGREEING = 3
_MAX_TERMS = 2000
_MAX_POWER = 10**6
_MAX_FACTORIAL = 10**5
_FUNCTION_TOLERANCE = 1e-6  # where one side is written with decimals
_FORMS = {"equal", "factor", "positive factor"}

_ORDINARY = {
    name: getattr(mp, name)
    for name in [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "sinh",
        "cosh",
        "tanh",
        "coth",
        "sech",
        "csch",
        "exp",
        "gamma",
        "erf",
    ]
}
_INVERSE = {
    f"arc{name}": getattr(mp, f"a{name}")
    for name in [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "sinh",
        "cosh",
        "tanh",
        "coth",
        "sech",
        "csch",
    ]
}
_TRIGONOMETRIC = frozenset(["sin", "cos", "tan", "cot", "sec", "csc"])
_WHOLE = frozenset({"!", "!!", "binom", "gcd", "lcm"})
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
        if _is_odd_root(exponent) and _is_real(a) and a < 0:
            return mp.sign(a) ** int(exponent[1][1]) * abs(a) ** b
        return a ** (int(b) if _is_whole(b) else b)

    def _matrix_power(self, matrix: Any, exponent: Tree) -> Any:
        if exponent in (["v", "T"], ["v", "\\top"]):
            return matrix.T
        power = self.value(exponent)
        if not _is_whole(power) or abs(power) > _MAX_TERMS:
            raise UndefinedError
        return matrix ** int(power)

    def _root(self, degree: Tree, tree: Tree) -> Any:
        n, inside = self.value(degree), self.value(tree)
        if not _is_real(n) or n == 0:
            raise UndefinedError
        if _is_real(inside) and inside < 0 and _is_whole(n) and int(n) % 2:
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
        if not _is_whole(first) or not (infinite or _is_whole(last)):
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
        if not values or not all(map(_is_whole, values)):
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
        if not all(map(_is_real, values)):
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


def _is_real(value: Any) -> bool:
    return mp.im(value) == 0


def _is_whole(value: Any) -> bool:
    return _is_real(value) and mp.isint(mp.re(value))


# ------------------------------------------------------------------------- comparison


def compare(reading: Mapping[str, Any], options: Mapping[str, Any]) -> bool | None:
    """Say whether two formulas are equal; None where their values do not decide it.

    Args:
        reading: `gold` and `answer`, trees; `form`: `equal`, or `factor` and `positive factor`,
            where the values only need a constant ratio (equations, inequalities); `names`, the
            variables; `exact`, False where a difference is no proof; `decimals`, on how many
            sides there are decimals.
        options: fields of `symbolic.Options`.
    """
    assert reading["form"] in _FORMS
    if reading["form"] != "equal":
        return _same_up_to_factor(reading)
    if reading["names"]:
        equal = _equal(reading, options)
    else:
        equal = _closed_equal(reading, options)
        if equal is False and (common := _with_common_logarithms(reading)):
            equal = _closed_equal(common, options)
    return None if equal is False and not reading["exact"] else equal


def _with_common_logarithms(reading: Mapping[str, Any]) -> Mapping[str, Any] | None:
    r"""Read `\log 100` as 2 where nothing natural is near; None without such a logarithm."""
    text = repr(reading["gold"]) + repr(reading["answer"])
    if "'log'" not in text or "'ln'" in text or "'e'" in text:
        return None
    sides = {side: _log_as_lg(reading[side]) for side in ("gold", "answer")}
    return {**reading, **sides}


def _log_as_lg(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_log_as_lg(part) for part in tree]
    return "lg" if tree == "log" else tree


def _pair(reading: Mapping[str, Any], point: int, special: str = "") -> tuple[Any, Any, Any]:
    """Return both values and the size of what they were computed from."""
    first, second = Evaluator(point, special), Evaluator(point, special)
    a, b = first.scalar(reading["gold"]), second.scalar(reading["answer"])
    return a, b, max(first.largest, second.largest, abs(a), abs(b))


def _pairs(reading: Mapping[str, Any]) -> Iterator[tuple[Any, Any, Any, bool]]:
    """Yield both values, their size, and whether all variables are positive, at all points."""
    points = [(point, "") for point in POINTS + WHOLE_POINTS]
    points += [(9 + i, name) for i, name in enumerate(reading["names"][:_MIXED_POINTS])]
    points += [(19, f"complex {name}") for name in reading["names"] if name[0] in "zw"]
    for point, special in points:
        try:
            yield *_pair(reading, point, special), not special
        except Exception as error:
            if not _undecided(error):
                raise


def _undecided(error: BaseException) -> bool:
    return isinstance(error, ArithmeticError | ValueError | TypeError | NoConvergence)


def _closed_equal(reading: Mapping[str, Any], options: Mapping[str, Any]) -> bool | None:
    """Compare two closed forms, with more and more digits while they agree."""
    huge = False
    for digits in (*DIGITS, _MANY_DIGITS):
        if digits == _MANY_DIGITS and not huge:
            break
        with mp.workdps(digits):
            try:
                a, b, size = _pair(reading, POINTS[0])
            except Exception as error:
                if _undecided(error):
                    return None
                raise
            if digits == DIGITS[0]:
                tolerated = _tolerated(a, b, reading, options)
                if tolerated is not None:
                    return tolerated
            difference = abs(a - b)
            if difference > mp.mpf(10) ** (15 - digits) * size:
                return False
            if _inexact(reading):
                return True
            huge = size > mp.mpf(10) ** 50 * max(abs(a), abs(b))
            if size > mp.mpf(10) ** (_MANY_DIGITS // 2):
                return None
    return True


def _inexact(reading: Mapping[str, Any]) -> bool:
    """Say whether infinite sums are in it, which are computed to fewer digits."""
    return "\\infty" in repr(reading["gold"]) + repr(reading["answer"])


def _tolerated(
    a: Any, b: Any, reading: Mapping[str, Any], options: Mapping[str, Any]
) -> bool | None:
    """Decide where the policy allows a difference; None where the values must be equal."""
    difference, size = abs(a - b), max(abs(a), abs(b))
    tolerance = options.get("exact_tolerance", 0.0)
    if reading["decimals"]:
        if difference <= options.get("absolute_tolerance", 0.0):
            return True
        least = options.get("tolerance", 1e-6)
        if reading["decimals"] == 2:
            least = min(least, options.get("float_noise", least))
        return bool(difference <= max(tolerance, least) * size)
    if _inexact(reading):
        return bool(difference <= mp.mpf(10) ** -20 * size)
    return True if tolerance and difference <= tolerance * size else None


def _equal(reading: Mapping[str, Any], options: Mapping[str, Any]) -> bool | None:
    """Compare two functions at fixed points.

    Wherever one of the two is real they must agree; where neither is (the root of a negative
    number), the branch is a matter of convention: sqrt(1/n) and 1/sqrt(n) are equal.
    """
    agreed = 0
    with mp.workdps(_POINT_DIGITS):
        tolerance = _function_tolerance(reading, options)
        for a, b, size, positive in _pairs(reading):
            lost = _lost(a, b, size)
            if lost is None:
                continue
            if abs(a - b) <= tolerance * max(abs(a), abs(b)) + lost:
                agreed += positive
            elif positive or _is_real(a) or _is_real(b):
                return False
    return True if agreed >= _LEAST_AGREEING else None


def _lost(a: Any, b: Any, size: Any) -> Any:
    """Return what rounding may have cost two values; None where it says nothing about them.

    As after (7^300 + 1) - 7^300: so much cancelled that no digit is left.
    """
    lost = mp.mpf(10) ** (20 - _POINT_DIGITS) * size
    return lost if lost <= mp.mpf(10) ** -10 * max(abs(a), abs(b), mp.mpf(10) ** -30) else None


def _function_tolerance(reading: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    if reading["decimals"] == 2:
        return mp.mpf(options.get("float_noise", 1e-10))
    if reading["decimals"] == 1:
        return mp.mpf(min(_FUNCTION_TOLERANCE, options.get("tolerance", _FUNCTION_TOLERANCE)))
    return mp.mpf(10) ** -25


def _same_up_to_factor(reading: Mapping[str, Any]) -> bool | None:
    """Say whether one formula is a constant, not zero, times the other; both not constant."""
    ratios: list[Any] = []
    values: list[Any] = []
    with mp.workdps(_POINT_DIGITS):
        for a, b, size, _positive in _pairs(reading):
            least = _lost(a, b, size)
            if least is None:
                continue
            if abs(a) <= least or abs(b) <= least:
                if abs(a) <= least and abs(b) <= least:
                    continue
                return False if reading["exact"] else None
            ratios.append(a / b)
            values.append(a)
        return _constant_ratio(ratios, values, reading)


def _constant_ratio(
    ratios: list[Any], values: list[Any], reading: Mapping[str, Any]
) -> bool | None:
    if len(ratios) < _LEAST_AGREEING:
        return None
    first = ratios[0]
    same = all(abs(ratio - first) <= mp.mpf(10) ** -25 * abs(first) for ratio in ratios)
    varies = any(abs(value - values[0]) > mp.mpf(10) ** -25 * abs(values[0]) for value in values)
    if same and varies and reading["form"] == "positive factor":
        return bool(_is_real(first) and mp.re(first) > 0)
    if same and varies:
        return True
    return False if reading["exact"] else None
