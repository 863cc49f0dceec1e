r"""Answers made of parts: lists, sets, tuples, intervals, unions, matrices, assignments.

`read_shape` looks at one level of an answer; the parts stay text, and the grader compares
them with the same cascade again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from mathenv.grading.chains import FUNCTION, NAME, read_chain
from mathenv.grading.normalize import key
from mathenv.grading.relations import split_relations

_OPEN, _CLOSE = "([{", ")]}"
_WORD = (
    r"\\(?:text|textrm|mbox|mathrm|textnormal)\s*\{{\s*,?\s*(?:{0})\s*,?\s*\}}"
    r"|(?<![a-zA-Z\\{{])(?:{0})(?![a-zA-Z}}])"
)
_JOINING = {
    ",": re.compile(_WORD.format("and|or")),
    "=": re.compile(_WORD.format("and|or") + r"|\\(?:lor|land|vee|wedge)(?![a-zA-Z])"),
    "or": re.compile(_WORD.format("or") + r"|\\(?:lor|vee)(?![a-zA-Z])"),
}
_AND = re.compile(_WORD.format("and") + r"|\\(?:land|wedge)(?![a-zA-Z])")
_OR = re.compile(_WORD.format("or") + r"|\\(?:lor|vee)(?![a-zA-Z])")
_BUILDER = re.compile(r"\\\{\s*([a-z])\s*(?:\\mid|\||:)\s*(.*?)\s*\\\}", re.DOTALL)
_WORDED = re.compile(r"\\(?:text|textrm|mbox|mathrm)\s*\{([^{}]*[0-9][^{}]*)\}")
_MEMBER = re.compile(r"^([a-zA-Z](?:_\{?\w+\}?|\([a-z]\))?)\s*\\in(?![a-zA-Z])\s*")
_MATRIX = re.compile(
    r"\\begin\{(?P<env>[pbBv]?matrix|smallmatrix|array)\}(?:\s*\{[lcr|\s]*\})?(?P<body>.*)"
    r"\\end\{(?P=env)\}",
    re.DOTALL,
)
_CASES = re.compile(
    r"\\begin\{(?P<env>cases|aligned|align\*?|gathered)\}(?P<body>.*)\\end\{(?P=env)\}", re.DOTALL
)
_MATRIX_CALL = re.compile(r"(?:[a-zA-Z]+\.)?(?:Matrix|array)\s*\((?P<body>\[.*\])\)", re.DOTALL)
_ROWS = re.compile(r"\\\\(?:\s*\[[^\]]*\])?")
_RELATION = re.compile(r"[=<>]|\\(?:leq|geq|lt|gt|neq|in|approx|equiv|subset|sim)(?![a-zA-Z])")
_NAMED = re.compile(rf"{NAME}|{FUNCTION}")
_ABSOLUTE = re.compile(rf"\|({NAME})\|")
_ORDER = re.compile(r"(<|>|\\leq(?![a-zA-Z])|\\geq(?![a-zA-Z]))")
_ONE_ARGUMENT = re.compile(rf"{NAME}\s*\(\s*{NAME}\s*\)")
_INDEX_CALL = re.compile(r"([a-z])\(([kmn])\)")  # a sequence: a(n) is a_n
_ELLIPSIS = re.compile(r"\\(?:ldots|dots|cdots|dotsc)(?![a-zA-Z])|\.\.\.|…")
_PLUS_MINUS = re.compile(r"\\pm(?![a-zA-Z])")


@dataclass(frozen=True, slots=True)
class Shape:
    """One level of an answer.

    `kind`: list (no brackets), set, tuple (any of round and square brackets: also
    intervals and vectors), union, matrix. `items` are the parts as text; a matrix has them row
    by row and `columns` in each.
    """

    kind: str
    items: tuple[str, ...]
    brackets: str = ""
    columns: int = 0

    @property
    def ordered(self) -> bool:
        """True where position carries meaning."""
        if self.kind in ("tuple", "matrix", "ratio"):
            return True
        return self.kind == "list" and any(map(_ELLIPSIS.search, self.items))


def read_shape(text: str) -> Shape | None:
    """Return the outermost structure of a normalised answer, or None for a single value."""
    text = _MEMBER.sub("", text).strip()
    worded = _WORDED.fullmatch(text)
    text = worded[1] if worded else text
    matrix = _read_matrix(text)
    if matrix is not None:
        return matrix
    parts = split_top(text, "\\cup")
    if len(parts) > 1:
        return Shape("union", parts)
    for separators in (";", ","):
        parts = split_top(text, separators)
        if len(parts) > 1:
            return Shape("list", parts)
    parts = split_top(text, ":")
    if len(parts) > 1 and not _RELATION.search(text):
        return Shape("ratio", parts)
    return _read_brackets(text) or _read_plus_minus(text)


def as_python_list(gold: Shape, answer: Shape) -> Shape:
    """Read the answer [1, 2] as Python's list where the reference lists values, no interval."""
    python = gold.kind == "list" and answer.kind == "tuple" and answer.brackets == "[]"
    return replace(answer, kind="list") if python else answer


def joined_differently(first: str, second: str) -> bool:
    """Say whether inequalities are joined by `and` on one side and by `or` on the other."""
    if not (has_order(first) and has_order(second)):
        return False
    words = [(bool(_AND.search(text)), bool(_OR.search(text))) for text in (first, second)]
    return words in ([(True, False), (False, True)], [(False, True), (True, False)])


def _read_matrix(text: str) -> Shape | None:
    bare = text
    while len(bare) > 2 and bare[0] in "([" and bare[-1] in ")]" and "\\begin" in bare[:12]:
        bare = bare[1:-1].strip()
    match = _MATRIX.fullmatch(bare)
    if match is not None and "\\begin" not in match["body"]:
        if match["env"] == "vmatrix":
            return None  # a determinant is a number
        cells = [row.split("&") for row in _split_rows(match["body"])]
        return _matrix([[cell.strip() for cell in row] for row in cells])
    match = _CASES.fullmatch(bare)
    if match is not None and "\\begin" not in match["body"]:
        rows = [row.replace("&", " ").strip(" ,;") for row in _split_rows(match["body"])]
        return Shape("list", tuple(rows)) if len(rows) > 1 else None
    match = _MATRIX_CALL.fullmatch(text)
    return as_matrix(_read_brackets(match["body"])) if match is not None else None


def _split_rows(body: str) -> list[str]:
    body = body.replace("\\hline", "")
    return [row.strip() for row in _ROWS.split(body) if row.strip()]


def _matrix(rows: list[list[str]]) -> Shape | None:
    widths = {len(row) for row in rows}
    if len(widths) != 1:
        return None
    return Shape("matrix", tuple(cell for row in rows for cell in row), columns=widths.pop())


def as_matrix(shape: Shape | None) -> Shape | None:
    """Read `[[1,2],[3,4]]` as a matrix. None where the shape is no list of equal rows."""
    if shape is None or shape.kind != "tuple" or shape.brackets != "[]":
        return None
    rows = [_read_brackets(item) for item in shape.items]
    if any(row is None or row.brackets != "[]" for row in rows):
        return None
    return _matrix([list(row.items) for row in rows if row is not None])


def _read_brackets(text: str) -> Shape | None:
    for opening, closing, kind in (
        ("\\{", "\\}", "set"),
        ("\\langle", "\\rangle", "tuple"),
        ("{", "}", "set"),
        ("(", ")", "tuple"),
        ("[", "]", "tuple"),
        ("(", "]", "tuple"),
        ("[", ")", "tuple"),
    ):
        if text.startswith(opening) and _closes_at_end(text, opening, closing):
            inside = text[len(opening) : len(text) - len(closing)].strip()
            brackets = "<>" if "angle" in opening else opening[-1] + closing[-1]
            return _bracketed(inside, brackets, kind, opening)
    return None


def _bracketed(inside: str, brackets: str, kind: str, opening: str) -> Shape | None:
    if not inside:
        return Shape(kind, (), brackets) if kind == "set" or brackets == "[]" else None
    if kind == "set" and re.search(r"\||\\(?:mid|vert|colon)(?![a-z])|:", inside):
        return None  # set-builder notation
    parts = split_top(inside, ",")
    if len(parts) == 1:
        parts = split_top(inside, ";")
    if len(parts) > 1:
        return Shape(kind, parts, brackets)
    if opening == "{":  # TeX braces group; only with a comma do they stand for a set
        return read_shape(inside)
    if opening == "(":
        return Shape(kind, (inside.rstrip(", "),), brackets) if inside.endswith(",") else None
    single = _read_plus_minus(inside) if kind == "set" else None
    return Shape(kind, single.items if single else (inside,), brackets)


def _closes_at_end(text: str, opening: str, closing: str) -> bool:
    """Say whether the bracket that opens the text is the one that closes at its end."""
    if not text.endswith(closing):
        return False
    depth = 0
    last = len(text) - 1
    for position, char in enumerate(text):
        if opening == "\\langle":
            depth += text.startswith("\\langle", position) - text.startswith("\\rangle", position)
            if depth == 0:
                return position == len(text) - len(closing)
        else:
            depth += (char in _OPEN) - (char in _CLOSE)
            if depth == 0 and char in _CLOSE:
                return position == last
    return False


def _read_plus_minus(text: str) -> Shape | None:
    r"""Read `a \pm b` as its two values."""
    if "\\pm" not in text:
        text = text.replace("\\mp", "\\pm")
    if len(_PLUS_MINUS.findall(text)) != 1 or _RELATION.search(text.partition("=")[2]):
        return None
    plus = _PLUS_MINUS.sub("+", text).replace("\\mp", "-")
    minus = _PLUS_MINUS.sub("-", text).replace("\\mp", "+")
    return Shape("list", (_unsigned(plus), _unsigned(minus)))


def _unsigned(text: str) -> str:
    return text.removeprefix("+").strip()


def expand(shape: Shape) -> Shape:
    r"""Replace items of a list or set that hold a `\pm` by their two values."""
    if shape.kind not in ("list", "set") or not any("\\pm" in item for item in shape.items):
        return shape
    items: list[str] = []
    for item in shape.items:
        both = _read_plus_minus(item)
        items += both.items if both is not None else (item,)
    return replace(shape, items=tuple(items))


def split_top(text: str, separator: str) -> tuple[str, ...]:
    """Split at a separator outside of all brackets; for "," also at `and` and `or`.

    With "or", only at that word. Empty parts are dropped, so `1, 2, and 3` has three.
    """
    parts: list[str] = []
    depth = start = position = 0
    related = separator == "," and _RELATION.search(text)
    words = _JOINING.get("=" if related else separator)  # p \\land q is one statement
    while position < len(text):
        char = text[position]
        length = 0
        if char == "\\":
            depth += text.startswith(("\\begin{", "\\langle"), position)
            depth -= text.startswith(("\\end{", "\\rangle"), position)
        if depth == 0:
            if separator != "or" and text.startswith(separator, position):
                length = len(separator)
            elif words is not None and (match := words.match(text, position)):
                length = match.end() - position
        if length:
            parts.append(text[start:position])
            start = position = position + length
            continue
        depth += (char in _OPEN) - (char in _CLOSE)
        position += 1
    parts.append(text[start:])
    return tuple(part.strip() for part in parts if part.strip(" ~"))


def split_assignment(text: str) -> tuple[str, str] | None:
    """Return (name, value) of `x = 5`, `f(x) = 2x`, `(p,q) = (3,2)`; None for other equations."""
    chain = read_chain(text)
    if chain is None or not chain.name or len(chain.exact) + len(chain.rough) != 1:
        return None
    return chain.name, chain.main


def unfold(text: str) -> str:
    """Write `(x,y) = (1,2)` as `x = 1, y = 2`; other texts stay as they are."""
    assignment = split_assignment(text)
    if assignment is None or not assignment[0].startswith("("):
        return text
    names, values = _read_brackets(assignment[0]), _read_brackets(assignment[1])
    if names is None or values is None or len(names.items) != len(values.items):
        return text
    return ", ".join(f"{n} = {v}" for n, v in zip(names.items, values.items, strict=True))


def is_equation(text: str) -> bool:
    """Say whether a text equates more than a name with a value: `2x + z = 1`."""
    chain = read_chain(text)
    return chain is not None and bool(chain.left)


def as_intervals(text: str) -> str:
    """Write inequalities for one variable, joined by "or", as a union of intervals.

    Texts that are anything else stay as they are.
    """
    parts = split_top(_without_bars(_condition(text)), "or")
    intervals = [_as_interval(part) for part in parts]
    if not all(intervals) or len({name for name, _ in filter(None, intervals)}) != 1:
        return text
    return " \\cup ".join(interval for _, interval in filter(None, intervals))


def members_differ(first: str, second: str) -> bool:
    r"""Say whether both texts say of what they hold, and of different things: `x \in`, `y \in`.

    An inequality for one variable says so as well.
    """
    names = [_about(text) for text in (first, second)]
    return "" not in names and names[0] != names[1]


def _about(text: str) -> str:
    match = _MEMBER.match(text)
    if match is not None:
        return key(match[1])
    if "\\in" in text or not has_order(text):
        return ""
    names = {interval[0] for part in split_top(text, "or") if (interval := _as_interval(part))}
    return key(names.pop()) if len(names) == 1 else ""


def _condition(text: str) -> str:
    r"""Return the condition of `\{x \mid x > 2\}`, where it is an inequality for x."""
    match = _BUILDER.fullmatch(text)
    if match is None or _about(match[2]) != match[1]:
        return text
    return match[2]


def _without_bars(text: str) -> str:
    r"""Write `|x| < 2` and `1 < |x| < 2` without absolute value."""
    relation = split_relations(text)
    if relation is None:
        return text
    relation = relation.upwards()
    bars = [_ABSOLUTE.fullmatch(side) for side in relation.sides]
    if not set(relation.signs) <= {"<", "\\leq"} or sum(map(bool, bars)) != 1:
        return text
    sides, signs = relation.sides, relation.signs
    if len(sides) == 2 and bars[0]:
        return f"-({sides[1]}) {signs[0]} {bars[0][1]} {signs[0]} {sides[1]}"
    if len(sides) == 2 and bars[1]:
        return f"{bars[1][1]} {signs[0]} -({sides[0]}) or {sides[0]} {signs[0]} {bars[1][1]}"
    if len(sides) == 3 and bars[1]:
        low, high, name = sides[0], sides[2], bars[1][1]
        negative = f"-({high}) {signs[1]} {name} {signs[0]} -({low})"
        return f"{negative} or {low} {signs[0]} {name} {signs[1]} {high}"
    return text


def _as_interval(text: str) -> tuple[str, str] | None:
    sides = _ORDER.split(text)  # value, sign, value, ...
    values, signs = [side.strip() for side in sides[::2]], sides[1::2]
    names = [i for i, value in enumerate(values) if _NAMED.fullmatch(value)]
    if len(names) != 1 or len(values) not in (2, 3):
        return None
    if any(sign.startswith(">") or "geq" in sign for sign in signs):
        if any(sign.startswith("<") or "leq" in sign for sign in signs):
            return None
        values, signs, names = values[::-1], signs[::-1], [len(values) - 1 - names[0]]
    index = names[0]
    low = values[index - 1] if index else "-\\infty"
    high = values[index + 1] if index + 1 < len(values) else "\\infty"
    if len(values) == 3 and index != 1:
        return None
    left = "[" if index and "eq" in signs[index - 1] else "("
    right = "]" if index < len(signs) and "eq" in signs[index] else ")"
    return values[index], f"{left}{low}, {high}{right}"


def has_relation(text: str) -> bool:
    """Say whether an equals, order or membership sign stands outside of all brackets."""
    return split_relations(text) is not None


def has_order(text: str) -> bool:
    """Say whether a text holds an inequality sign."""
    return bool(_ORDER.search(text))


def same_role(first: str, second: str) -> bool:
    """Say whether two names stand for the same thing: `y` and `f(x)` both name a function."""
    pair = {_INDEX_CALL.sub(r"\1_\2", name) for name in (first, second)}
    return len(pair) == 1 or ("y" in pair and any(map(_ONE_ARGUMENT.fullmatch, pair)))
