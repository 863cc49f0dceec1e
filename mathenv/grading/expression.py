r"""Read a formula as a tree, exactly as it is written: letter case, indices, primes, accents.

A tree is nested lists, so that it travels to the worker as JSON:

    ["n", "1.5"]  ["v", "x_1"]  ["+", a, b, ...]  ["*", a, b, ...]  ["/", a, b]  ["-", a]
    ["^", a, b]  ["root", degree, a]  ["f", "sin", a]  ["u", "f'", a, ...]  ["deg", a]
    ["sum", "k", low, high, body]  ["prod", ...]  ["text", "\\int_0^1", body]  ["m", row, ...]

`f`: a function that can be evaluated. `u`: one that is only known by its name, such as `f(x)` or
a derivative. `text`: an operator whose meaning is not evaluated (limits, integrals).
Whatever is not in the grammar is not read at all: a formula is never read in part.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from mathenv.grading.letters import (
    ACCENTS,
    FONTS,
    FUNCTION_LETTERS,
    FUNCTIONS,
    LIMITS,
    OPAQUE_FUNCTIONS,
    SYMBOLS,
)
from mathenv.grading.tokens import UnreadableError, tokenize

MAX_DEPTH = 100

Tree = list[Any]

_REPEATING = re.compile(r"([0-9]*)\.([0-9]*)\s*\\[a-z]+\s*\{?\s*([0-9]+)")
_CLOSING = {
    "{": "}",
    "(": ")",
    "[": "]",
    "\\{": "\\}",
    "\\lfloor": "\\rfloor",
    "\\lceil": "\\rceil",
}
_BARS = {"|": "|", "\\vert": "\\vert", "\\lvert": "\\rvert"}
_NORMS = {"\\|": "\\|", "\\Vert": "\\Vert", "\\lVert": "\\rVert"}
_STARTS = frozenset({"(", "{", "[", "\\frac", "\\sqrt", "\\binom", "\\lfloor", "\\lceil"}) | LIMITS
_DIFFERENTIALS = ("d", "\\partial")
_GEOMETRIC = ("\\angle ", "\\triangle ")
_VECTORS = frozenset({"\\vec", "\\mathbf", "\\boldsymbol", "\\nabla", "\\overrightarrow"})


@dataclass(frozen=True, slots=True)
class Formula:
    """A read text.

    Attributes:
        tree: see the module.
        names: the variables, as `x_1`, `f'`, `\\vec a`.
        ambiguous: written in a way that people read differently (`1/2x`): no proof of a difference.
        decimal: holds a number with a decimal point.
        deep: holds a sum, limit, integral or derivative, which may be equal to something that
            looks unlike it.
        is_sum: its outermost operation is an addition.
    """

    tree: Tree
    names: frozenset[str]
    ambiguous: bool
    decimal: bool
    deep: bool

    @property
    def is_sum(self) -> bool:
        return self.tree[0] == "+"


@lru_cache(maxsize=4096)  # a gold is compared with many answers
def read_formula(text: str, variables: frozenset[str] = frozenset()) -> Formula | None:
    """Read a normalised text, or return None where it is outside of the grammar.

    Args:
        text: as `normalize` gives it.
        variables: letters that are no functions, although brackets may follow them.
    """
    try:
        parser = _Parser(tokenize(text), variables)
        return parser.whole()
    except (UnreadableError, RecursionError):
        return None


class _Parser:
    """Recursive descent over tokens; each method reads one rule of the grammar."""

    def __init__(self, tokens: list[str], variables: frozenset[str]) -> None:
        self._tokens = tokens
        self._variables = variables
        self._next = 0
        self._depth = 0
        self._bars = 0
        self._vectors = not _VECTORS.isdisjoint(tokens)
        self._names: set[str] = set()
        self._ambiguous = self._decimal = self._deep = False

    def whole(self) -> Formula:
        tree = self._sum()
        if self._next != len(self._tokens):
            raise UnreadableError
        return Formula(tree, frozenset(self._names), self._ambiguous, self._decimal, self._deep)

    # ------------------------------------------------------------------ tokens

    def _peek(self, ahead: int = 0) -> str:
        index = self._next + ahead
        return self._tokens[index] if index < len(self._tokens) else ""

    def _take(self, expected: str = "") -> str:
        token = self._peek()
        if not token or (expected and token != expected):
            raise UnreadableError
        self._next += 1
        return token

    def _taken(self, *wanted: str) -> bool:
        """Take the next token if it is one of those wanted."""
        if self._peek() not in wanted:
            return False
        self._next += 1
        return True

    def _group_tokens(self) -> list[str]:
        """Take a braced group or a single token, and return what is inside."""
        if self._peek() != "{":
            return [self._take()]
        depth, start = 0, self._next + 1
        while True:
            token = self._take()
            depth += (token == "{") - (token == "}")
            if depth == 0:
                return self._tokens[start : self._next - 1]

    def _inside(self, tokens: list[str]) -> Tree:
        """Read tokens on their own, as a formula."""
        self._enter()
        outer = self._tokens, self._next, self._bars
        self._tokens, self._next, self._bars = tokens, 0, 0
        tree = self._sum()
        if self._next != len(tokens):
            raise UnreadableError
        self._tokens, self._next, self._bars = outer
        self._depth -= 1
        return tree

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise UnreadableError

    # ------------------------------------------------------------------ operations

    def _sum(self) -> Tree:
        terms = [self._term()]
        while self._peek() in ("+", "-", "\\pm", "\\mp"):
            sign = self._take()
            terms.append(self._with_sign(sign, self._term()))
        return terms[0] if len(terms) == 1 else ["+", *terms]

    def _with_sign(self, sign: str, operand: Tree) -> Tree:
        if sign == "+":
            return operand
        if sign in ("\\pm", "\\mp"):
            self._names.add("\\pm")
            operand = ["*", ["v", "\\pm"], operand]
        return operand if sign == "\\pm" else ["-", operand]

    def _term(self) -> Tree:
        left = self._signed()
        divided = False
        while token := self._peek():
            if token in ("*", "\\cdot", "\\times", "/", "\\div"):
                self._take()
                left = self._operation(token, left, self._signed())
                divided = token in ("/", "\\div")
            elif self._starts_factor(token):
                self._ambiguous |= divided  # 1/2x
                last = left[-1] if left[0] == "*" else left
                if last[0] == "n" and self._is_number():
                    raise UnreadableError  # `2 3`, but not `2^6 3^5`
                left = _product(left, self._power())
            elif token == "\\circ":
                self._take()
                left = ["u", "\\circ", left, self._power()]
            else:
                break
        return left

    def _operation(self, sign: str, left: Tree, right: Tree) -> Tree:
        if sign in ("/", "\\div"):
            return ["/", left, right]
        if sign == "\\times" and self._vectors:
            return ["u", "\\times", left, right]
        return _product(left, right)

    def _signed(self) -> Tree:
        sign = self._peek()
        if sign not in ("+", "-", "\\pm", "\\mp"):
            return self._power()
        self._take()
        self._enter()
        operand = self._with_sign(sign, self._signed())
        self._depth -= 1
        return operand

    def _starts_factor(self, token: str) -> bool:
        if token in _BARS or token in _NORMS:
            return self._bars == 0
        return (
            token[0].isalnum()
            or token[0] == "."
            or token in _STARTS
            or token.startswith(("\\begin{", *_GEOMETRIC))
            or token in SYMBOLS
            or token in ACCENTS
            or token in FONTS
            or token.removeprefix("\\") in FUNCTIONS
            or token.removeprefix("\\") in OPAQUE_FUNCTIONS
        )

    def _is_number(self, ahead: int = 0) -> bool:
        return self._peek(ahead)[:1] in tuple("0123456789.")

    def _power(self) -> Tree:
        base = self._postfix(self._atom())
        if self._peek() != "^":
            return base
        self._take()
        if self._taken("\\circ"):
            return ["deg", base]
        tree = ["^", base, self._exponent()]
        if self._peek() == "^":
            raise UnreadableError
        self._ambiguous |= self._peek() == "!"
        return self._postfix(tree)

    def _postfix(self, tree: Tree) -> Tree:
        """Read factorials and percent signs behind a value."""
        while self._peek() in ("!", "%"):
            if self._take() == "%":
                tree = ["/", tree, ["n", "100"]]
            elif self._taken("!"):
                tree = ["f", "!!", tree]
            else:
                tree = ["f", "!", tree]
        return tree

    def _exponent(self) -> Tree:
        if self._peek() in ("{", "("):
            return self._group()
        if self._taken("-"):  # 10^-3
            return ["-", self._exponent()]
        if self._peek() in ("\\frac", "\\sqrt"):
            return self._atom()
        token = self._take()
        if token[0].isdigit():
            self._ambiguous |= len(token) > 1  # TeX reads x^12 as x^1 2
            return self._number(token)
        if token.isalpha() or token in SYMBOLS:
            return self._name(token)
        raise UnreadableError

    def _group(self) -> Tree:
        self._enter()
        opening = self._take()
        bars, self._bars = self._bars, 0
        inside = self._sum()
        if self._taken("\\choose"):
            inside = ["f", "binom", inside, self._sum()]
        self._take(_CLOSING[opening])
        self._bars = bars
        self._depth -= 1
        return inside

    # ------------------------------------------------------------------ values

    def _atom(self) -> Tree:
        token = self._peek()
        if token in ("(", "{", "["):
            return self._group()
        if token in ("\\lfloor", "\\lceil"):
            return ["f", token[2:], self._group()]
        if token in _BARS or token in _NORMS:
            return self._between_bars()
        self._take()
        if token[:1].isdigit() or token[:1] == ".":
            return self._numeral(token)
        if token.startswith("\\begin{"):
            return self._matrix(token)
        if token.startswith(_GEOMETRIC):
            return self._name(token)
        reader = _COMMANDS.get(token)
        if reader is not None:
            return reader(self)
        return self._named(token)

    def _named(self, token: str) -> Tree:
        """Read a function, an accent, a font, an operator with limits, or a variable."""
        bare = token.removeprefix("\\")
        if bare in FUNCTIONS or bare in OPAQUE_FUNCTIONS:
            return self._function(bare)
        if token in ACCENTS:
            return self._accented(token)
        if token in FONTS:
            return self._styled(token)
        if token in LIMITS:
            return self._with_limits(token)
        if token.isalpha() or token in SYMBOLS:
            return self._variable(token)
        raise UnreadableError

    def _number(self, token: str) -> Tree:
        if "\\" in token:
            match = _REPEATING.match(token)
            if match is None:
                raise UnreadableError
            return ["n", str(repeating(*match.groups()))]
        if token[0] == "0" and token.isdigit() and len(token) > 1:
            raise UnreadableError  # 2020-01-02 is no difference
        self._decimal |= "." in token or "e" in token.lower()
        return ["n", token.replace(",", "")]

    def _numeral(self, token: str) -> Tree:
        if self._taken("_"):  # a numeral in a base is not its digits' decimal value
            name = f"{token}_{''.join(self._group_tokens())}"
            self._names.add(name)
            return ["v", name]
        number = self._number(token)
        if self._peek() == "\\frac" and token.isdigit():
            return self._mixed(token)
        return number

    def _mixed(self, whole: str) -> Tree:
        """Read 2\\frac{1}{3} as two and a third; with letters in it, it is a product."""
        self._take()
        start, tokens = self._next, self._tokens
        top, bottom = self._argument(), self._argument()
        parts = ("".join(top), "".join(bottom))
        if all(part.isdigit() for part in parts):
            if int(parts[0]) >= int(parts[1]):
                self._ambiguous = True
            else:
                return ["+", ["n", whole], ["/", ["n", parts[0]], ["n", parts[1]]]]
        self._next, self._tokens = start, tokens
        return _product(["n", whole], self._fraction())

    def _fraction(self) -> Tree:
        top, bottom = self._argument(), self._argument()
        if top[0] in _DIFFERENTIALS and bottom[0] == top[0] and len(bottom) > 1:
            return self._derivative(top, bottom)
        return ["/", self._inside(top), self._inside(bottom)]

    def _argument(self) -> list[str]:
        """Take what a TeX command takes: a group, or one token, of a number one digit."""
        token = self._peek()
        if token.isdigit() and len(token) > 1:
            self._tokens = self._tokens.copy()
            self._tokens[self._next] = token[1:]
            return [token[0]]
        tokens = self._group_tokens()
        if not tokens:
            raise UnreadableError
        return tokens

    def _derivative(self, top: list[str], bottom: list[str]) -> Tree:
        """Read dy/dx, d^2y/dx^2 and (d/dx) y: values that only their names tell."""
        self._deep = True
        order, rest = "", top[1:]
        if rest[:1] == ["^"]:
            order, rest = ("".join(rest[1:4]), rest[4:]) if rest[1] == "{" else (rest[1], rest[2:])
        name = "D" + order.strip("{}") + " " + "".join(bottom).replace("{", "").replace("}", "")
        return ["u", name, self._inside(rest) if rest else self._power()]

    def _root(self) -> Tree:
        degree: Tree = ["n", "2"]
        if self._taken("["):
            start = self._next
            while not self._taken("]"):
                self._take()
            degree = self._inside(self._tokens[start : self._next - 1])
        if len(self._peek()) > 1 and self._peek().isdigit():
            raise UnreadableError  # TeX reads \sqrt57 as \sqrt{5}7
        return ["root", degree, self._inside(self._argument())]

    def _binomial(self) -> Tree:
        return ["f", "binom", self._inside(self._argument()), self._inside(self._argument())]

    def _between_bars(self) -> Tree:
        self._enter()
        opening = self._take()
        self._bars += 1
        inside = self._sum()
        self._take(_BARS.get(opening) or _NORMS[opening])
        self._bars -= 1
        self._depth -= 1
        return ["f", "abs", inside] if opening in _BARS else ["u", "norm", inside]

    def _matrix(self, opening: str) -> Tree:
        """Read the rows of a matrix; between single bars it is a determinant."""
        self._enter()
        bars, self._bars = self._bars, 0
        rows: list[list[Tree]] = [[self._sum()]]
        closing = opening.replace("begin", "end")
        while not self._taken(closing):
            if self._taken("&"):
                rows[-1].append(self._sum())
                continue
            self._take("\\\\")
            if self._peek() != closing:
                rows.append([self._sum()])
        self._bars = bars
        self._depth -= 1
        if len({len(row) for row in rows}) != 1:
            raise UnreadableError
        return ["f", "det", ["m", *rows]] if "vmatrix" in opening else ["m", *rows]

    # ------------------------------------------------------------------ names

    def _variable(self, token: str) -> Tree:
        name = self._with_marks(token)
        if self._is_applied(token):
            power = ""
            if self._taken("^"):
                power = "^" + "".join(self._group_tokens())
            return ["u", name + power, *self._arguments()]
        return self._name(name)

    def _name(self, name: str) -> Tree:
        self._names.add(name)
        return ["v", name]

    def _with_marks(self, token: str) -> str:
        """Take index and primes: `x`, `_`, `1` is the name `x_1`."""
        name = token
        if self._taken("_"):
            index = [t for t in self._group_tokens() if t not in FONTS and t not in ("{", "}")]
            name += "_" + "".join(index)
        while self._taken("'"):
            name += "'"
        if self._peek() == "^" and self._peek(1) == "'":
            raise UnreadableError
        return name

    def _is_applied(self, token: str) -> bool:
        """Say whether brackets after a letter hold the arguments of a function.

        So for f(x+1), and for other letters where a single value is inside: I(0), y(t). Not where
        the letter stands alone elsewhere: n(n-1), kP(1-P).
        """
        if token in self._variables or token == "\\pi":
            return False
        ahead = 0
        if self._peek() == "^":
            ahead = self._behind_script()
        if token == "E" and self._peek() == "[":
            return True  # an expected value
        if self._peek(ahead) != "(":
            return False
        if token in FUNCTION_LETTERS:
            return True
        ahead += 1
        ahead += self._peek(ahead) == "-"
        value, after = self._peek(ahead), self._peek(ahead + 1)
        single = value.isalnum() or value in SYMBOLS
        return single and (after == "," or (after == ")" and (ahead < 2 or value.isdigit())))

    def _behind_script(self) -> int:
        """Return how far ahead the superscript that comes next ends; 0 for a plain power."""
        if self._peek(1) != "{":
            return 0
        inner = self._peek(2) + self._peek(3)
        if inner == "-1" and self._peek(4) == "}":
            return 5
        return 6 if inner[:1] == "(" and self._peek(4) == ")" and self._peek(5) == "}" else 0

    def _arguments(self) -> list[Tree]:
        self._enter()
        closing = _CLOSING[self._take()]
        bars, self._bars = self._bars, 0
        arguments = [self._sum()]
        while self._taken(","):
            arguments.append(self._sum())
        self._take(closing)
        self._bars = bars
        self._depth -= 1
        return arguments

    def _accented(self, accent: str) -> Tree:
        tokens = self._argument()
        if all(token.isalpha() or token in SYMBOLS for token in tokens) and len(tokens) < 4:
            return self._name(self._with_marks(f"{accent} {''.join(tokens)}"))
        return ["u", accent, self._inside(tokens)]

    def _styled(self, font: str) -> Tree:
        """Read \\mathrm{e} as e, \\operatorname{lcm} as that function, \\mathbb{R} as a name."""
        tokens = self._argument()
        word = "".join(tokens)
        if FONTS[font]:
            return self._name(self._with_marks(f"{font} {word}"))
        bare = word.removeprefix("\\") if len(tokens) == 1 else word
        if bare in FUNCTIONS or bare in OPAQUE_FUNCTIONS:
            return self._function(bare)
        if len(tokens) == 1 and (word.isalpha() or word in SYMBOLS):
            return self._variable(word)
        if len(tokens) > 1 and word.isalpha() and self._peek() == "(":
            return ["u", word, *self._arguments()]
        if word.isalpha():
            raise UnreadableError
        return self._inside(tokens)

    # ------------------------------------------------------------------ functions

    def _function(self, name: str) -> Tree:
        index = power = None
        while self._peek() in ("_", "^"):
            if self._take() == "_":
                index = self._group_tokens()
            elif self._taken("-"):
                power = ["-", self._exponent()]
            else:
                power = self._exponent()
        arguments = self._function_arguments()
        if power == ["-", ["n", "1"]] and "arc" + name in FUNCTIONS:
            name, power = "arc" + name, None
        tree = self._applied(name, index, arguments)
        return tree if power is None else ["^", tree, power]

    def _applied(self, name: str, index: list[str] | None, arguments: list[Tree]) -> Tree:
        if name in ("log", "plainlog") and index is not None:
            return ["f", "logbase", self._inside(index), *arguments]
        if name in OPAQUE_FUNCTIONS or index is not None:
            return ["u", name + ("_" + "".join(index) if index else ""), *arguments]
        return ["f", FUNCTIONS[name], *arguments]

    def _function_arguments(self) -> list[Tree]:
        if self._peek() == "(":
            arguments = self._arguments()
            self._ambiguous |= self._peek() == "^"
            return arguments
        if self._peek() == "\\{":
            self._take()
            arguments = [self._sum()]
            while self._taken(","):
                arguments.append(self._sum())
            self._take("\\}")
            return arguments
        return [self._juxtaposed()]

    def _juxtaposed(self) -> Tree:
        """Read the argument of \\sin 2\\pi x: factors up to a sign or the next function."""
        self._enter()
        if self._taken("-"):
            argument: Tree = ["-", self._power()]
        elif self._peek().removeprefix("\\") in FUNCTIONS:
            argument = self._power()
        else:
            argument = self._power()
            numbers = argument[0] == "n"
            while self._continues(numbers):
                factor = self._power()
                self._ambiguous |= factor[0] not in ("n", "v") and not numbers
                numbers = False
                argument = _product(argument, factor)
        self._ambiguous |= self._peek() == "/"
        self._depth -= 1
        return argument

    def _continues(self, numbers: bool) -> bool:
        token = self._peek()
        if not token or not self._starts_factor(token) or self._is_number():
            return False
        if token.removeprefix("\\") in FUNCTIONS or token in LIMITS:
            return False
        return numbers or token not in ("(", "[", "|", "\\lvert")

    # ------------------------------------------------------------------ sums and limits

    def _with_limits(self, operator: str) -> Tree:
        self._deep = True
        low: list[str] = []
        high: list[str] = []
        while self._peek() in ("_", "^"):
            if self._take() == "_":
                low = self._group_tokens()
            else:
                high = self._group_tokens()
        kind = {"\\sum": "sum", "\\prod": "prod"}.get(operator)
        if kind and high and "=" in low and low.index("=") == 1 and "'" not in low:
            first, last = self._inside(low[2:]), self._inside(high)
            body = self._term()
            if not _in_an_index(low[0], body):
                return [kind, low[0], first, last, body]
            return ["text", f"{operator}_{''.join(low)}^{''.join(high)}", body]
        text = f"{operator}_{''.join(low)}^{''.join(high)}"
        if operator in ("\\int", "\\oint", "\\iint", "\\iiint"):
            return ["text", text, self._sum()]
        return ["text", text, self._term()]


_COMMANDS: dict[str, Callable[[_Parser], Tree]] = {
    "\\frac": _Parser._fraction,
    "\\sqrt": _Parser._root,
    "\\binom": _Parser._binomial,
}


def _in_an_index(name: str, tree: Any) -> bool:
    """Say whether a variable stands in the index of another: `k` in `F_{n-k}`."""
    if not isinstance(tree, list):
        return False
    if tree and tree[0] == "v":
        return name in tree[1].partition("_")[2]
    return any(_in_an_index(name, part) for part in tree)


def _product(left: Tree, right: Tree) -> Tree:
    factors = left[1:] if left[0] == "*" else [left]
    return ["*", *factors, right]


def repeating(whole: str, fixed: str, period: str) -> Fraction:
    """Return the value of `whole.fixed` followed by the period again and again."""
    value = Fraction(int(whole or 0)) + Fraction(int(fixed or 0), 10 ** len(fixed))
    return value + Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
