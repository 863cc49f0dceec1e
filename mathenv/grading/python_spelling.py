r"""Values as Python, sympy and numpy print them, written as LaTeX.

The text is parsed by `ast` and never evaluated. `Fraction(1, 2)`, `[(1, 2), (3, 4)]`,
`{x: 1, y: 2}`, `Interval.open(2, oo)`, `np.float64(0.5)`, `3*x**2`, `(2 <= x) & (x < oo)`.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable

from mathenv.grading.letters import FUNCTIONS, SYMBOLS, names

MAX_CHARS = 1000
_LIKELY = re.compile(
    r"\b(?:math|np|numpy|sympy)\.|[A-Za-z_][A-Za-z_.0-9]*\(|\*\*|[0-9]_[0-9]|^[\[{(].*[\]})]$|[0-9]j\b|[<>]=|&|^-?oo$|"
    r"[0-9a-z)]\s*\*\s*[a-zA-Z0-9(]",
    re.DOTALL,
)
_ONLY_TEXT = re.compile(r"[\\$^{}%°√]|(?<![<>=!])=(?!=)")
_PYTHON_ONLY = re.compile(r"\[?\{|(?:[a-z]+\.)?(?:mpc|Poly|Interval|frozenset|set)\(")
_UNDERSCORE = re.compile(r"[0-9]_[0-9]")
_ARRAY = re.compile(r"\[[-+0-9.e\s\[\]]*[0-9.]\s+[-+0-9.e\s\[\]]*\]")  # numpy prints no commas
_ARRAY_BLANK = re.compile(r"(?<=[0-9.\]])\s+(?=[-0-9.\[])")
_GROUPED = re.compile(r"[0-9]{1,3}(?:_[0-9]{3})+(?:\.[0-9]+)?")
_LETTER_WITH_INDEX = re.compile(r"([A-Za-z]|alpha|beta|gamma|theta|lambda|mu|omega|phi)_?([0-9]+)")
_NAMES = {
    **{"pi": "\\pi", "E": "e", "I": "i", "oo": "\\infty", "inf": "\\infty", "nan": "\\text{nan}"},
    **{"True": "\\text{True}", "False": "\\text{False}", "Reals": "\\mathbb{R}"},
    **{"EmptySet": "\\emptyset", "Integers": "\\mathbb{Z}"},
}
_MODULES = frozenset({"np", "numpy", "math", "sympy", "sp", "mpmath", "mp", "S", "cmath"}) | {
    "fractions",
    "decimal",
}
_SIGNS: dict[type[ast.AST], str] = {
    **{ast.Add: "+", ast.Sub: "-", ast.Mult: " \\cdot "},
    **{ast.Lt: "<", ast.LtE: "\\leq", ast.Gt: ">", ast.GtE: "\\geq", ast.Eq: "="},
    ast.NotEq: "\\neq",
}


class _OtherError(Exception):
    """The text is no value that Python prints."""


def from_python(text: str) -> str:
    """Return a text that is a Python value as LaTeX; any other text stays as it is."""
    if len(text) > MAX_CHARS or not _LIKELY.search(text) or not text.isascii():
        return text
    if _UNDERSCORE.search(text) and not _GROUPED.fullmatch(text.strip("+-( )")):
        return text  # 1200_7 is a numeral in a base
    if _ARRAY.fullmatch(text):
        text = _ARRAY_BLANK.sub(", ", text)
    if _ONLY_TEXT.search(text) and not (_PYTHON_ONLY.match(text) and "\\" not in text):
        return text
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval").body
        _mark_letters(tree)
        if isinstance(tree, ast.Name) and tree.id not in _NAMES:
            return text  # (D) is a choice
        if isinstance(tree, ast.Tuple) and tree.elts and tree.elts[0].col_offset == 0:
            return ", ".join(_all(tree.elts))  # no brackets around it
        return _write(tree)
    except (_OtherError, SyntaxError, ValueError, RecursionError, MemoryError):
        return text


def _mark_letters(tree: ast.AST) -> None:
    """Where there are other letters, I and E are letters as well, not sympy's constants."""
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    others = {node.id for node in names if len(node.id) == 1} - {"I", "E"}
    for node in names:
        if node.id in ("I", "E") and others:
            node.id = f"letter {node.id}"


def _write(node: ast.AST) -> str:
    writer = _WRITERS.get(type(node))
    if writer is None:
        raise _OtherError
    return writer(node)


def _all(nodes: list[ast.expr]) -> list[str]:
    return [_write(node) for node in nodes]


def _constant(node: ast.Constant) -> str:
    value = node.value
    if isinstance(value, bool):
        return f"\\text{{{value}}}"
    if isinstance(value, complex):
        return f"{value.imag:g}i" if value.imag != 1 else "i"
    if isinstance(value, str) and re.fullmatch(r"[-+0-9./eE]+", value):
        return value
    if isinstance(value, int | float):
        return repr(value)
    raise _OtherError


def _name(node: ast.Name) -> str:
    if node.id.startswith("letter "):
        return node.id[-1]
    if node.id in _NAMES:
        return _NAMES[node.id]
    if "\\" + node.id in SYMBOLS:
        return "\\" + node.id
    indexed = _LETTER_WITH_INDEX.fullmatch(node.id)
    if indexed is not None:
        letter = indexed[1] if len(indexed[1]) == 1 else "\\" + indexed[1]
        return f"{letter}_{{{indexed[2]}}}"
    if len(node.id) == 1:
        return node.id
    raise _OtherError


def _attribute(node: ast.Attribute) -> str:
    """Read `np.pi`, `S.Reals`, `np.True_`."""
    if not isinstance(node.value, ast.Name) or node.value.id not in _MODULES:
        raise _OtherError
    return _name(ast.Name(node.attr.rstrip("_")))


def _operation(node: ast.BinOp) -> str:
    left, right = _write(node.left), _write(node.right)
    if isinstance(node.op, ast.Pow):
        return f"{_grouped(node.left, left)}^{{{right}}}"
    if isinstance(node.op, ast.Div):
        if isinstance(node.left, ast.Constant) and isinstance(node.right, ast.Constant):
            return f"{left}/{right}"
        return f"\\frac{{{left}}}{{{right}}}"
    if isinstance(node.op, ast.BitAnd | ast.BitOr):
        return _joined([left, right], isinstance(node.op, ast.BitAnd))
    sign = _SIGNS.get(type(node.op))
    if sign is None:
        raise _OtherError
    if isinstance(node.op, ast.Mult):
        left, right = _grouped(node.left, left, add=True), _grouped(node.right, right, add=True)
    elif isinstance(node.op, ast.Sub):
        right = _grouped(node.right, right, add=True)
    return f"{left}{sign}{right}"


def _grouped(node: ast.expr, text: str, add: bool = False) -> str:
    """Put brackets around what binds less than a power, or with `add` than a product."""
    if isinstance(node, ast.UnaryOp):
        return f"({text})"
    if isinstance(node, ast.BinOp) and (not add or isinstance(node.op, ast.Add | ast.Sub)):
        return f"({text})"
    if isinstance(node, ast.Constant) and isinstance(node.value, complex):
        return f"({text})"
    return text if add or isinstance(node, ast.Name | ast.Constant) else f"({text})"


def _unary(node: ast.UnaryOp) -> str:
    operand = _write(node.operand)
    if isinstance(node.op, ast.USub):
        return f"-{_grouped(node.operand, operand, add=True)}"
    if isinstance(node.op, ast.UAdd):
        return operand
    raise _OtherError


def _comparison(node: ast.Compare) -> str:
    text = _write(node.left)
    for operator, side in zip(node.ops, node.comparators, strict=True):
        sign = _SIGNS.get(type(operator))
        if sign is None:
            raise _OtherError
        text += f" {sign} {_write(side)}"
    return text


def _bool(node: ast.BoolOp) -> str:
    return _joined(_all(node.values), isinstance(node.op, ast.And))


def _joined(parts: list[str], both: bool) -> str:
    """Join conditions: (2 <= x) & (x < oo) is the chain 2 <= x < oo."""
    if both and len(parts) == 2:
        for first, second in (parts, parts[::-1]):
            upper = re.fullmatch(r"([A-Za-z]) ((?:<|\\leq) .*)", second)
            if upper is not None and re.fullmatch(rf".* (?:<|\\leq) {upper[1]}", first):
                return f"{first} {upper[2]}"
    return (" \\text{ and } " if both else " \\text{ or } ").join(parts)


def _tuple(node: ast.Tuple) -> str:
    if len(node.elts) < 2:
        raise _OtherError
    return f"({', '.join(_all(node.elts))})"


def _list(node: ast.List) -> str:
    """Write a list; one of tuples, equations or names with values as the bare list of them."""
    items = _all(node.elts)
    if items and all(isinstance(item, ast.Tuple | ast.Dict) for item in node.elts):
        return ", ".join(items)
    if len(items) == 1:
        raise _OtherError
    return f"[{', '.join(items)}]"


def _set(node: ast.Set) -> str:
    return f"\\{{{', '.join(_all(node.elts))}\\}}"


def _dict(node: ast.Dict) -> str:
    """Write {x: 1, y: 2} as x = 1, y = 2."""
    pairs = []
    for name, value in zip(node.keys, node.values, strict=True):
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            name = ast.Name(name.value)
        if not isinstance(name, ast.Name | ast.Call):
            raise _OtherError
        pairs.append(f"{_write(name)} = {_write(value)}")
    if not pairs:
        raise _OtherError
    return ", ".join(pairs)


# ----------------------------------------------------------------------------- calls


def _call(node: ast.Call) -> str:
    name = _called(node.func)
    if name in ("Matrix", "ImmutableMatrix", "ImmutableDenseMatrix", "array", "MutableDenseMatrix"):
        return _matrix(node)
    arguments = _all(node.args)
    if name == "mpc":
        arguments += [_write(word.value) for word in node.keywords]
    elif name == "Interval" and node.keywords:
        open_ends = {word.arg: _write(word.value) for word in node.keywords}
        arguments += [open_ends.get(end, "") for end in ("left_open", "right_open")]
    writer = _CALLS.get(name)
    if writer is not None:
        return writer(arguments)
    if node.keywords:
        raise _OtherError
    if name in FUNCTIONS:
        return f"\\{FUNCTIONS[name]}({', '.join(arguments)})"
    if len(name) == 1 and name.isalpha():
        return f"{name}({', '.join(arguments)})"
    raise _OtherError


def _called(function: ast.expr) -> str:
    """Return the name that is called, without its module: `sqrt` for `sympy.sqrt`."""
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        module = function.value.id
        return function.attr if module in _MODULES else f"{module}.{function.attr}"
    raise _OtherError


def _matrix(node: ast.Call) -> str:
    if not node.args or not isinstance(node.args[0], ast.List):
        raise _OtherError
    rows = node.args[0].elts
    nested = [row.elts for row in rows if isinstance(row, ast.List)]
    if nested and len(nested) == len(rows):
        body = " \\\\ ".join(" & ".join(_all(row)) for row in nested)
    elif _called(node.func) == "array":
        return _list(node.args[0])
    else:
        body = " \\\\ ".join(_all(rows))  # a column
    return f"\\begin{{pmatrix}}{body}\\end{{pmatrix}}"


def _fraction(a: list[str]) -> str:
    if len(a) == 1:
        return a[0]
    return f"\\frac{{{a[0]}}}{{{a[1]}}}" if not a[0].startswith("-") else _negative(a)


def _negative(a: list[str]) -> str:
    return f"-\\frac{{{a[0][1:]}}}{{{a[1]}}}"


def _same(a: list[str]) -> str:
    if len(a) != 1:
        raise _OtherError
    return a[0]


def _interval(brackets: str) -> Callable[[list[str]], str]:
    def write(a: list[str]) -> str:
        left, right = brackets[0], brackets[1]
        if len(a) >= 3:
            left = "(" if "True" in a[2] else left
        if len(a) == 4:
            right = ")" if "True" in a[3] else right
        if "\\infty" in a[0]:
            left = "("
        if "\\infty" in a[1]:
            right = ")"
        return f"{left}{a[0]}, {a[1]}{right}"

    return write


def _relation(sign: str) -> Callable[[list[str]], str]:
    return lambda a: f"{a[0]} {sign} {a[1]}"


def _log(a: list[str]) -> str:
    return f"\\ln({a[0]})" if len(a) == 1 else f"\\log_{{{a[1]}}}({a[0]})"


def _complex(a: list[str]) -> str:
    return f"{a[0]}+({a[1]})i"


def _finite_set(a: list[str]) -> str:
    if len(a) == 1 and a[0].startswith(("[", "\\{")):  # set([1, 2])
        a = [a[0].removeprefix("\\").removesuffix("\\}")[1:].removesuffix("]")]
    return f"\\{{{', '.join(a)}\\}}" if a else "\\emptyset"


_CALLS: dict[str, Callable[[list[str]], str]] = {
    **dict.fromkeys(("Fraction", "Rational"), _fraction),
    **dict.fromkeys(
        names(
            "Integer Float Decimal float int mpf S sympify str list simplify round "
            "float64 float32 float16 int64 int32 int16 int8 uint8 bool_ bool longdouble "
            "str_"
        ),
        _same,
    ),
    **dict.fromkeys(("complex", "complex128", "mpc"), lambda a: _complex(a) if a[1:] else _same(a)),
    "Poly": lambda a: a[0],
    "sqrt": lambda a: f"\\sqrt{{{_same(a)}}}",
    "cbrt": lambda a: f"\\sqrt[3]{{{_same(a)}}}",
    "root": lambda a: f"\\sqrt[{a[1]}]{{{a[0]}}}",
    "exp": lambda a: f"e^{{{_same(a)}}}",
    "log": _log,
    "ln": _log,
    "log10": lambda a: f"\\log_{{10}}({_same(a)})",
    "log2": lambda a: f"\\log_{{2}}({_same(a)})",
    **dict.fromkeys(("Abs", "abs", "fabs"), lambda a: f"|{_same(a)}|"),
    "factorial": lambda a: f"({_same(a)})!",
    "factorial2": lambda a: f"({_same(a)})!!",
    **dict.fromkeys(("binomial", "comb"), lambda a: f"\\binom{{{a[0]}}}{{{a[1]}}}"),
    "floor": lambda a: f"\\lfloor {_same(a)} \\rfloor",
    **dict.fromkeys(("ceiling", "ceil"), lambda a: f"\\lceil {_same(a)} \\rceil"),
    **dict.fromkeys(("Max", "max"), lambda a: f"\\max({', '.join(a)})"),
    **dict.fromkeys(("Min", "min"), lambda a: f"\\min({', '.join(a)})"),
    "pow": lambda a: f"({a[0]})^{{{a[1]}}}",
    "conjugate": lambda a: f"\\overline{{{_same(a)}}}",
    **dict.fromkeys(("Eq", "Equality"), _relation("=")),
    "Ne": _relation("\\neq"),
    "Lt": _relation("<"),
    "Le": _relation("\\leq"),
    "Gt": _relation(">"),
    "Ge": _relation("\\geq"),
    "StrictLessThan": _relation("<"),
    "Interval": _interval("[]"),
    "Interval.open": _interval("()"),
    "Interval.Lopen": _interval("(]"),
    "Interval.Ropen": _interval("[)"),
    "Union": lambda a: " \\cup ".join(a),
    "Intersection": lambda a: " \\cap ".join(a),
    **dict.fromkeys(("FiniteSet", "set", "frozenset"), _finite_set),
    **dict.fromkeys(
        ("Tuple", "tuple", "Point", "Point2D", "Point3D"),
        lambda a: f"({', '.join(a)})" if len(a) > 1 else _same(a),
    ),
    "And": lambda a: _joined(a, True),
    "Or": lambda a: _joined(a, False),
}

_WRITERS: dict[type[ast.AST], Callable[..., str]] = {
    ast.Constant: _constant,
    ast.Name: _name,
    ast.Attribute: _attribute,
    ast.BinOp: _operation,
    ast.UnaryOp: _unary,
    ast.Compare: _comparison,
    ast.BoolOp: _bool,
    ast.Tuple: _tuple,
    ast.List: _list,
    ast.Set: _set,
    ast.Dict: _dict,
    ast.Call: _call,
}
