r"""Closed forms and rational functions, compared exactly and without a worker process.

Trees of `expression.py` that hold sums, products, quotients, integer powers and roots are
evaluated at fixed rational points: exactly, as fractions, where no root is involved, else in
floating point. Two rational functions that agree exactly at such points are equal
(Schwartz-Zippel); two that differ clearly at one are not. Everything in between is left to the
worker, and so is every spelling with two readings, such as `1/2x`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from mathenv.grading.expression import Formula, Tree, read_formula
from mathenv.grading.normalize import key
from mathenv.grading.policy import STRICT, GradePolicy
from mathenv.grading.tokens import variables_of

MAX_CHARS = 400
_INVERTED = re.compile(
    r"(?<=[A-Z)])\^\s*(?:\{\s*-1\s*\}|-1|\{?\s*(?:T|\\top|\\intercal)(?![a-zA-Z])\s*\}?)"
)
_CARTESIAN = re.compile(r"[A-Z](?:\s*\\times\s*[A-Z])+")
_LETTER = re.compile(r"\\?[a-zA-Z]+")
MAX_BITS = 4000  # of an intermediate fraction
MAX_EXPONENT = 200
_CLEARLY = 1e-6  # relative to the largest intermediate value
_POINTS = 3
# Algebraic relations between these, other letters and numbers escape a rational evaluation.
_SPECIAL = frozenset({"i", "e", "E", "\\infty", "\\pm"})

Value = tuple[Fraction | None, float, float]  # exact or None, float, largest intermediate
Point = Callable[[str], Fraction]


class _NotAlgebraError(ArithmeticError):
    """A function, a sum, or whatever else is more than algebra."""


def parse_pair(gold: str, answer: str) -> tuple[Formula, Formula] | None:
    """Read two texts; None where one is no formula."""
    first = read_formula(gold, variables_of(gold))
    second = None if first is None else read_formula(answer, variables_of(answer))
    return None if first is None or second is None else (first, second)


def matrices_in_other_order(gold: str, answer: str) -> bool:
    r"""Say whether products of matrices or sets have other orders: B^{-1}A^{-1}, A^{-1}B^{-1}.

    Capital letters are taken for matrices where there are no others, and one of them is inverted
    or transposed.
    """
    if _CARTESIAN.fullmatch(gold) and _CARTESIAN.fullmatch(answer):
        return key(gold) != key(answer)
    if not (_INVERTED.search(gold) or _INVERTED.search(answer)):
        return False
    letters = [_LETTER.findall(_INVERTED.sub(" ", text)) for text in (gold, answer)]
    capitals = all(letter.isupper() for text in letters for letter in text)
    return capitals and letters[0] != letters[1] and len(set(letters[0] + letters[1])) > 1


def compare_algebra(gold: str, answer: str, policy: GradePolicy = STRICT) -> bool | None:
    """Decide whether two expressions are equal, or return None where that is not certain."""
    if max(len(gold), len(answer)) > MAX_CHARS:
        return None
    pair = parse_pair(gold, answer)
    if pair is None or any(formula.ambiguous or formula.deep for formula in pair):
        return None
    if matrices_in_other_order(gold, answer):
        return False
    first, second = pair
    try:
        if first.names | second.names <= {"\\pi"}:
            return _compare_constants(first, second, policy)
        return _compare_functions(first, second)
    except (ArithmeticError, ValueError, RecursionError):
        return None


def approximate(text: str) -> float | None:
    """Return the value of a closed form as a float, or None."""
    formula = read_formula(text)
    if formula is None or not formula.names <= {"\\pi"}:
        return None
    try:
        return _evaluate(formula.tree, _true_pi)[1]
    except (ArithmeticError, ValueError, RecursionError):
        return None


def _compare_constants(first: Formula, second: Formula, policy: GradePolicy) -> bool | None:
    a, b = _evaluate(first.tree, _true_pi), _evaluate(second.tree, _true_pi)
    tolerance = max(policy.tolerance, policy.float_noise, policy.exact_tolerance)
    clearly = max(_CLEARLY, 10 * tolerance)
    if abs(a[1] - b[1]) > max(clearly * max(a[2], b[2]), 2 * policy.absolute_tolerance):
        return False
    if first.decimal or second.decimal or first.names != second.names:
        return None
    a, b = _evaluate(first.tree, _point(0)), _evaluate(second.tree, _point(0))
    if a[0] is None or b[0] is None or (a[0] != b[0] and policy.exact_tolerance):
        return None
    return a[0] == b[0]


def _compare_functions(first: Formula, second: Formula) -> bool | None:
    proof = True
    for number in range(_POINTS):
        a, b = _evaluate(first.tree, _point(number)), _evaluate(second.tree, _point(number))
        if a[0] is not None and b[0] is not None:
            equal = a[0] == b[0]
        else:
            proof = False
            equal = abs(a[1] - b[1]) <= _CLEARLY * max(a[2], b[2])
        if not equal:
            return False if _difference_counts(first, second) else None
    return True if proof else None


def _difference_counts(first: Formula, second: Formula) -> bool:
    """Say whether a difference at one point shows that two functions differ.

    Letters may also be a unit (`16t`, `5 cm`), unless they stand in a sum.
    """
    if first.names & _SPECIAL or second.names & _SPECIAL:
        return False
    if first.names == second.names:
        return not (first.decimal or second.decimal)
    return all(one.is_sum for one in (first, second) if one.names)


def _point(number: int) -> Point:
    """Return fixed positive rational values for the variables, other ones for each number."""

    def value(name: str) -> Fraction:
        code = sum((i + 1) * 31 ** (i % 5) * ord(char) for i, char in enumerate(name))
        return Fraction(10_007 + 7_919 * code + 104_729 * number, 9_973 + 13 * number * code)

    return value


def _true_pi(_name: str) -> Fraction:
    return Fraction(math.pi)


# ---------------------------------------------------------------------- evaluation


def _evaluate(tree: Tree, point: Point) -> Value:
    """Return the value of a tree. Raises `ArithmeticError` for what is not algebra."""
    node, *rest = tree
    if node == "n":
        return _value(Fraction(rest[0]))
    if node == "v":
        return _value(point(rest[0]))
    evaluator = _NODES.get(node)
    if evaluator is None:
        raise _NotAlgebraError
    return evaluator(point, *rest)


def _value(exact: Fraction) -> Value:
    number = float(exact)
    return exact, number, abs(number)


def _checked(exact: Fraction | None, number: float, *sizes: float) -> Value:
    if (
        exact is not None
        and exact.numerator.bit_length() + exact.denominator.bit_length() > MAX_BITS
    ):
        raise OverflowError
    if not math.isfinite(number):
        raise OverflowError
    return exact, number, max(abs(number), *sizes)


def _sum(point: Point, *terms: Tree) -> Value:
    total = _evaluate(terms[0], point)
    for term in terms[1:]:
        value = _evaluate(term, point)
        exact = None if total[0] is None or value[0] is None else total[0] + value[0]
        total = _checked(exact, total[1] + value[1], total[2], value[2])
    return total


def _negative(point: Point, tree: Tree) -> Value:
    exact, number, size = _evaluate(tree, point)
    return None if exact is None else -exact, -number, size


def _product(point: Point, *factors: Tree) -> Value:
    a = _evaluate(factors[0], point)
    for factor in factors[1:]:
        b = _evaluate(factor, point)
        exact = None if a[0] is None or b[0] is None else a[0] * b[0]
        a = _checked(exact, a[1] * b[1], a[2] * abs(b[1]), abs(a[1]) * b[2])
    return a


def _quotient(point: Point, top: Tree, bottom: Tree) -> Value:
    return _divide(_evaluate(top, point), _evaluate(bottom, point))


def _divide(a: Value, b: Value) -> Value:
    if b[0] == 0 or abs(b[1]) <= 1e-9 * b[2]:
        raise ZeroDivisionError
    exact = None if a[0] is None or b[0] is None else a[0] / b[0]
    loss = b[2] / abs(b[1])  # digits that cancelled in the denominator
    return _checked(exact, a[1] / b[1], a[2] / abs(b[1]), abs(a[1] / b[1]) * loss)


def _power(point: Point, base: Tree, exponent: Tree) -> Value:
    return _raise(_evaluate(base, point), _evaluate(exponent, point))


def _raise(a: Value, b: Value) -> Value:
    power = b[0]
    if power is None or abs(power) > MAX_EXPONENT:
        raise OverflowError
    if power.denominator == 1:
        return _whole_power(a, int(power))
    if a[1] <= 0:
        raise ArithmeticError
    number = a[1] ** float(power)
    return _checked(None, number, number * a[2] / a[1] * max(1.0, abs(float(power))))


def _whole_power(a: Value, power: int) -> Value:
    if power < 0:
        return _divide(_value(Fraction(1)), _whole_power(a, -power))
    exact = a[0]
    if exact is not None:
        bits = max(exact.numerator.bit_length(), exact.denominator.bit_length())
        if power * bits > MAX_BITS:
            raise OverflowError
        exact = exact**power
    number = a[1] ** power
    loss = a[2] / abs(a[1]) if a[1] else 1.0
    return _checked(exact, number, abs(number) * loss * max(1, power))


def _root(point: Point, degree_tree: Tree, tree: Tree) -> Value:
    """Return the root. Exact for constants only: that of x^2 is not x."""
    degree = _evaluate(degree_tree, point)[0]
    if degree is None or degree.denominator != 1 or not 2 <= degree < 100:
        raise _NotAlgebraError
    exact, number, size = _evaluate(tree, point)
    if exact == 0:
        return _value(Fraction(0))
    if number <= 0:
        raise ArithmeticError  # complex, or the sign is lost to rounding
    if exact is not None and degree == 2 and _is_constant(tree):
        top, bottom = _integer_root(exact.numerator), _integer_root(exact.denominator)
        if top is not None and bottom is not None:
            return _value(Fraction(top, bottom))
    value = number ** (1 / int(degree))
    return _checked(None, value, value * size / number)


def _is_constant(tree: Any) -> bool:
    if not isinstance(tree, list):
        return True
    return tree[0] != "v" and all(map(_is_constant, tree[1:]))


def _integer_root(number: int) -> int | None:
    if number.bit_length() > 1000:
        return None
    root = math.isqrt(number)
    return root if root * root == number else None


_NODES: dict[str, Callable[..., Value]] = {
    "+": _sum,
    "-": _negative,
    "*": _product,
    "/": _quotient,
    "^": _power,
    "root": _root,
}
