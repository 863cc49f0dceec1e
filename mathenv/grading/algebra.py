r"""Closed forms and rational functions, compared exactly and without sympy.

A small recursive parser reads sums, products, quotients, integer powers, roots, decimals,
one-letter variables and Greek letters, and evaluates both sides at fixed rational points:
exactly, as fractions, where no root is involved, else in floating point. Two rational
functions that agree exactly at such points are equal (Schwartz-Zippel); two that differ
clearly at one are not. Everything in between is left to the symbolic tier, and so is every
spelling with two readings: `1/2x`, `f(x)`, `\sin x`, words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache

from mathenv.grading.normalize import braced
from mathenv.grading.policy import STRICT, GradePolicy

MAX_CHARS = 400
MAX_BITS = 4000  # of an intermediate fraction
MAX_EXPONENT = 200
_CLEARLY = 1e-6  # relative to the largest intermediate value
_POINTS = 3

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]+(?:,[0-9]{3})+(?![0-9])|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<command>\\[a-zA-Z]+)|(?P<letters>[a-zA-Z]+)|(?P<other>[-+*/^(){}\[\]_]))"
)
_GREEK = frozenset(
    re.findall(
        r"\\\w+",
        r"\pi \alpha \beta \gamma \delta \epsilon \theta \lambda \mu \nu \rho \sigma \tau "
        r"\phi \varphi \omega \psi \kappa \eta \zeta \xi \varepsilon",
    )
)
_WORDS = frozenset(
    re.findall(r"\w+", "ln pi tg lg or if re im th sh ch as is no to of in at it on we")
)
_FUNCTION_NAMES = frozenset("fghFGHPQpqWTLuv")
# Algebraic relations between these, other letters and numbers escape a rational evaluation.
_SPECIAL = frozenset({"i", "e", "E"})

Value = tuple[Fraction | None, float, float]  # exact or None, float, largest intermediate


class _UnreadableError(Exception):
    """The text is outside of the small grammar, or its value is too large."""


class Expression:
    """A parsed text: `names` are its variables, `evaluate` gives its value at a point."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokenize(text)
        self._next = 0
        self.names: set[str] = set()
        self.has_decimal = "." in text
        self.is_sum = any(token in ("+", "-") for token in self._tokens[1:])
        self._program = self._sum()
        if self._next != len(self._tokens):
            raise _UnreadableError

    def evaluate(self, point: Callable[[str], Fraction]) -> Value:
        """Return the value where `point` gives each variable's. Raises `ArithmeticError`."""
        return self._program(point)

    # ------------------------------------------------------------------ grammar

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self, expected: str = "") -> str:
        token = self._peek()
        if not token or (expected and token != expected):
            raise _UnreadableError
        self._next += 1
        return token

    def _sum(self) -> Program:
        left = self._term()
        while self._peek() in ("+", "-"):
            left = _operation(self._take(), left, self._term())
        return left

    def _term(self) -> Program:
        left = self._signed()
        divided = False
        while token := self._peek():
            if token in ("*", "/"):
                self._take()
                left = _operation(token, left, self._signed())
                divided = token == "/"
            elif _starts_factor(token):
                if divided or (token[0].isdigit() and self._tokens[self._next - 1][0].isdigit()):
                    raise _UnreadableError  # 1/2x; `2 3`
                left = _operation("*", left, self._power())
            else:
                break
        return left

    def _signed(self) -> Program:
        if self._peek() in ("+", "-"):
            sign = self._take()
            operand = self._signed()
            return operand if sign == "+" else _operation("-", _constant(Fraction(0)), operand)
        return self._power()

    def _power(self) -> Program:
        base = self._atom()
        if self._peek() != "^":
            return base
        self._take()
        exponent = self._exponent()
        if self._peek() == "^":
            raise _UnreadableError
        return _operation("^", base, exponent)

    def _exponent(self) -> Program:
        if self._peek() in ("{", "("):
            return self._group()
        token = self._take()
        if token[0].isdigit() and len(token) == 1:
            return _constant(Fraction(token))
        if (len(token) == 1 and token.isalpha()) or token in _GREEK:
            return self._variable(token)
        raise _UnreadableError

    def _group(self) -> Program:
        closing = {"{": "}", "(": ")", "[": "]"}[self._take()]
        inside = self._sum()
        self._take(closing)
        return inside

    def _atom(self) -> Program:
        token = self._peek()
        if token in ("(", "{", "["):
            return self._group()
        self._take()
        if token[0].isdigit() or token[0] == ".":
            if self._peek() == "_":
                raise _UnreadableError  # a numeral in a base
            return _constant(Fraction(token.replace(",", "")))
        if token == "\\frac":
            top = self._braces()
            return _operation("/", top, self._braces())
        if token == "\\sqrt":
            return self._root()
        if token in _GREEK or (len(token) == 1 and token.isalpha()):
            return self._variable(token)
        raise _UnreadableError

    def _braces(self) -> Program:
        if self._peek() != "{":
            raise _UnreadableError
        return self._group()

    def _root(self) -> Program:
        degree = 2
        if self._peek() == "[":
            self._take()
            token = self._take()
            if not token.isdigit() or len(token) > 2 or int(token) < 2:
                raise _UnreadableError
            degree = int(token)
            self._take("]")
        outside, self.names = self.names, set()
        inside = self._braces()
        constant = not self.names
        self.names |= outside
        return _rooted(inside, degree, constant)

    def _variable(self, name: str) -> Program:
        if self._peek() == "_":
            self._take()
            closing = self._peek() == "{" and self._take()
            name += "_" + self._take()
            if closing:
                self._take("}")
        if name in _FUNCTION_NAMES and self._peek() in ("(", "["):
            raise _UnreadableError  # f(x): not a product
        self.names.add(name)
        return lambda point: _value(point(name))


Program = Callable[[Callable[[str], Fraction]], Value]


def _tokenize(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    text = text.replace("\\cdot", "*").replace("\\times", "*").replace("\\div", "/").strip()
    text = text.replace("**", "^")
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise _UnreadableError
        position = match.end()
        letters = match["letters"]
        if letters is None:
            tokens.append(match.group().strip())
        elif len(letters) > 2 or letters.lower() in _WORDS:
            raise _UnreadableError
        else:
            tokens += letters
    return tokens


def _starts_factor(token: str) -> bool:
    return token[0].isalnum() or token in ("(", "{", "[", "\\frac", "\\sqrt") or token in _GREEK


# ---------------------------------------------------------------------- evaluation


def _value(exact: Fraction) -> Value:
    number = float(exact)
    return exact, number, abs(number)


def _constant(exact: Fraction) -> Program:
    value = _value(exact)
    return lambda point: value


def _operation(symbol: str, left: Program, right: Program) -> Program:
    combine = {"+": _add, "-": _subtract, "*": _multiply, "/": _divide, "^": _raise}[symbol]
    return lambda point: combine(left(point), right(point))


def _checked(exact: Fraction | None, number: float, *sizes: float) -> Value:
    if (
        exact is not None
        and exact.numerator.bit_length() + exact.denominator.bit_length() > MAX_BITS
    ):
        raise OverflowError
    if not math.isfinite(number):
        raise OverflowError
    return exact, number, max(abs(number), *sizes)


def _add(a: Value, b: Value) -> Value:
    exact = None if a[0] is None or b[0] is None else a[0] + b[0]
    return _checked(exact, a[1] + b[1], a[2], b[2])


def _subtract(a: Value, b: Value) -> Value:
    exact = None if a[0] is None or b[0] is None else a[0] - b[0]
    return _checked(exact, a[1] - b[1], a[2], b[2])


def _multiply(a: Value, b: Value) -> Value:
    exact = None if a[0] is None or b[0] is None else a[0] * b[0]
    return _checked(exact, a[1] * b[1], a[2] * abs(b[1]), abs(a[1]) * b[2])


def _divide(a: Value, b: Value) -> Value:
    if b[0] == 0 or abs(b[1]) <= 1e-9 * b[2]:
        raise ZeroDivisionError
    exact = None if a[0] is None or b[0] is None else a[0] / b[0]
    loss = b[2] / abs(b[1])  # digits that cancelled in the denominator
    return _checked(exact, a[1] / b[1], a[2] / abs(b[1]), abs(a[1] / b[1]) * loss)


def _raise(a: Value, b: Value) -> Value:
    power = b[0]
    if power is None or abs(power) > MAX_EXPONENT:
        raise OverflowError
    if power.denominator == 1:
        if power < 0:
            return _divide(_value(Fraction(1)), _raise(a, _value(-power)))
        if a[0] is not None and power * a[0].denominator.bit_length() > MAX_BITS:
            raise OverflowError
        if a[0] is not None and power * a[0].numerator.bit_length() > MAX_BITS:
            raise OverflowError
        exact = None if a[0] is None else a[0] ** int(power)
        number = a[1] ** int(power)
        loss = a[2] / abs(a[1]) if a[1] else 1.0
        return _checked(exact, number, abs(number) * loss * max(1, int(power)))
    if a[1] <= 0:
        raise ArithmeticError
    number = a[1] ** float(power)
    return _checked(None, number, number * a[2] / a[1] * max(1.0, abs(float(power))))


def _rooted(inside: Program, degree: int, constant: bool) -> Program:
    """Return the root. Exact for constants only: that of x^2 is not x."""

    def root(point: Callable[[str], Fraction]) -> Value:
        exact, number, size = inside(point)
        if exact == 0:
            return _value(Fraction(0))
        if number <= 0:
            raise ArithmeticError  # complex, or the sign is lost to rounding
        if constant and exact is not None:
            top, bottom = (
                _integer_root(exact.numerator, degree),
                _integer_root(exact.denominator, degree),
            )
            if top is not None and bottom is not None:
                return _value(Fraction(top, bottom))
        value = number ** (1 / degree)
        return _checked(None, value, value * size / number)

    return root


def _integer_root(number: int, degree: int) -> int | None:
    if degree != 2 or number.bit_length() > 1000:
        return None
    root = math.isqrt(number)
    return root if root * root == number else None


# ---------------------------------------------------------------------- comparison


@lru_cache(maxsize=2048)
def parse_expression(text: str) -> Expression | None:
    """Read a normalised text, or return None where it is outside of the grammar."""
    if len(text) > MAX_CHARS or not text:
        return None
    try:
        return Expression(braced(text))
    except (_UnreadableError, RecursionError, ValueError, ArithmeticError):
        return None  # ArithmeticError: `9,999,...` may be too large for a float


def _point(number: int) -> Callable[[str], Fraction]:
    """Return fixed positive rational values for the variables, other ones for each number."""

    def value(name: str) -> Fraction:
        code = sum((i + 1) * 31 ** (i % 5) * ord(char) for i, char in enumerate(name))
        return Fraction(10_007 + 7_919 * code + 104_729 * number, 9_973 + 13 * number * code)

    return value


def _true_pi(_name: str) -> Fraction:
    return Fraction(math.pi)


def compare_algebra(gold: str, answer: str, policy: GradePolicy = STRICT) -> bool | None:
    """Decide whether two expressions are equal, or return None where that is not certain."""
    first, second = parse_expression(gold), parse_expression(answer)
    if first is None or second is None:
        return None
    try:
        if first.names | second.names <= {"\\pi"}:
            return _compare_constants(first, second, policy)
        return _compare_functions(first, second)
    except (ArithmeticError, ValueError, RecursionError):
        return None


def _compare_constants(first: Expression, second: Expression, policy: GradePolicy) -> bool | None:
    a, b = first.evaluate(_true_pi), second.evaluate(_true_pi)
    tolerance = max(policy.tolerance, policy.float_noise, policy.exact_tolerance)
    clearly = max(_CLEARLY, 10 * tolerance)
    if abs(a[1] - b[1]) > max(clearly * max(a[2], b[2]), 2 * policy.absolute_tolerance):
        return False
    if first.has_decimal or second.has_decimal or first.names != second.names:
        return None
    a, b = first.evaluate(_point(0)), second.evaluate(_point(0))
    if a[0] is None or b[0] is None or (a[0] != b[0] and policy.exact_tolerance):
        return None
    return a[0] == b[0]


def _compare_functions(first: Expression, second: Expression) -> bool | None:
    proof = True
    for number in range(_POINTS):
        a, b = first.evaluate(_point(number)), second.evaluate(_point(number))
        if a[0] is not None and b[0] is not None:
            equal = a[0] == b[0]
        else:
            proof = False
            equal = abs(a[1] - b[1]) <= _CLEARLY * max(a[2], b[2])
        if not equal:
            return False if _difference_counts(first, second) else None
    return True if proof else None


def _difference_counts(first: Expression, second: Expression) -> bool:
    """Say whether a difference at one point shows that two functions differ.

    Letters may also be a unit (`16t`, `5 cm`), unless they stand in a sum.
    """
    if first.names & _SPECIAL or second.names & _SPECIAL:
        return False
    if first.names == second.names:
        return not (first.has_decimal or second.has_decimal)
    return all(one.is_sum for one in (first, second) if one.names)
