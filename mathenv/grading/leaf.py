r"""Compare two single values with sympy. Runs in the worker process only (`worker.py`).

Constants are compared by value, in arbitrary precision; everything else by math-verify, whose
verdict an independent numeric evaluation may overrule in both directions.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.function import AppliedUndef
from sympy.external.gmpy import GROUND_TYPES

PARSING_GOLD, PARSING_ANSWER, COMPARING = 1, 2, 3
DIGITS, MANY_DIGITS = 50, 300
TOLERANCE = 1e-6

# A lone last letter is a variable: stripped as a unit, `16t` would equal 16 and `a+b+c`
# would not parse.
_LAST_VARIABLE = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]$")
_NOT_CLOSED = (
    sympy.Integral,
    sympy.Sum,
    sympy.Product,
    sympy.Limit,
    sympy.Derivative,
    sympy.floor,
    sympy.ceiling,
    sympy.Piecewise,
    sympy.Max,
    sympy.Min,
    sympy.UnevaluatedExpr,  # math-verify's percent sign
    AppliedUndef,
)
# Where functions are compared. Identities hold at points chosen for no reason; the negative ones
# tell sqrt(x^2) from x.
_POSITIVE_POINTS = (37, 83, 141, 199)
_MIXED_POINTS = (59, 127)


def _config(units: bool) -> LatexExtractionConfig:
    return LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True,
            units=units,
            malformed_operators=True,
            nits=True,
            boxed="all",
            equations=False,
        ),
    )


_WITH_UNITS, _WITHOUT_UNITS = _config(True), _config(False)


@lru_cache(maxsize=256)  # a gold is compared with many answers, a part with many parts
def _parse(text: str) -> list[Any]:
    config = _WITHOUT_UNITS if _LAST_VARIABLE.search(text) else _WITH_UNITS
    return list(
        parse(
            f"\\boxed{{{text}}}",
            extraction_config=[config],
            fallback_mode="no_fallback",
            extraction_mode="first_match",
            parsing_timeout=None,
        )
    )


def compare(
    gold: str, answer: str, options: Mapping[str, Any], stage: Callable[[int], None]
) -> tuple[str, str]:
    """Return (verdict, detail); verdicts: correct, incorrect, gold_error, unparsed.

    Args:
        gold: LaTeX of the reference.
        answer: LaTeX of the answer.
        options: fields of `symbolic.Options`.
        stage: is told what is being done, for the report on a worker that dies.
    """
    read = _parse_whole if options.get("raw") else _parse
    stage(PARSING_GOLD)
    gold_parsed = read(gold)
    if not gold_parsed:
        return "gold_error", "math-verify cannot parse the reference answer"
    stage(PARSING_ANSWER)
    answer_parsed = read(answer)
    if not answer_parsed:
        return "unparsed", "math-verify cannot parse the answer"
    stage(COMPARING)
    if options.get("raw"):
        equal = bool(verify(gold_parsed, answer_parsed, timeout_seconds=None))
        return ("correct" if equal else "incorrect"), ""
    return _compare_parsed(gold_parsed, answer_parsed, options)


def _parse_whole(text: str) -> list[Any]:
    """Parse as a user of math-verify would: the box of a response, a bare answer as LaTeX."""
    if "boxed" not in text and "$" not in text:
        text = f"${text}$"
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    return list(parse(text, extraction_config=config, parsing_timeout=None))


def _compare_parsed(
    gold: list[Any], answer: list[Any], options: Mapping[str, Any]
) -> tuple[str, str]:
    decided = constants_equal(gold[0], answer[0], options)
    if decided is not None:
        return ("correct" if decided else "incorrect"), "by value"
    same_symbols = bool(options.get("same_symbols", True))
    equal = verify(
        gold,
        answer,
        float_rounding=round(-math.log10(options.get("tolerance") or TOLERANCE)),
        timeout_seconds=None,
        strict=same_symbols,
        allow_set_relation_comp=True,
    )
    if equal and not _values_close(gold[0], answer[0], options):
        return "incorrect", "math-verify accepted it, an evaluation to 50 digits does not"
    if not equal and _same_solutions(gold[0], answer[0]):
        return "correct", "the inequalities have the same solutions"
    if not equal and functions_equal(gold[0], answer[0], options):
        return "correct", "math-verify refused it, the values agree at all points tried"
    return ("correct" if equal else "incorrect"), ""


# ------------------------------------------------------------------------- constants


def constants_equal(gold: Any, answer: Any, options: Mapping[str, Any]) -> bool | None:
    """Compare two closed forms without variables by value; None for anything else.

    math-verify chops small differences (1/2004! equals 1/2006!) and rounds to 6 decimals.
    """
    if not (_is_closed(gold) and _is_closed(answer)):
        return None
    if gold.free_symbols or answer.free_symbols:
        return None
    gold, answer = _evaluated(gold), _evaluated(answer)
    if isinstance(gold, sympy.Rational) and isinstance(answer, sympy.Rational):
        exactly = gold == answer
        return exactly or _within(gold, answer, options.get("exact_tolerance", 0.0))
    first, second = _number(gold, DIGITS), _number(answer, DIGITS)
    if first is None or second is None:
        return None
    if gold.has(sympy.Float) or answer.has(sympy.Float):
        if abs(first - second) <= options.get("absolute_tolerance", 0.0):
            return True
        return _within(first, second, options.get("tolerance", TOLERANCE))
    if _within(first, second, options.get("exact_tolerance", 0.0)):
        return True
    if not _within(first, second, sympy.Float(10) ** (10 - DIGITS)) and (first or second):
        return not first - second if 0 in (first, second) else False
    first, second = _number(gold, MANY_DIGITS), _number(answer, MANY_DIGITS)
    if not _within(first, second, sympy.Float(10, MANY_DIGITS) ** (20 - MANY_DIGITS)):
        return False
    difference = (gold - answer).evalf(5, maxn=2 * MANY_DIGITS)
    return bool(difference == 0 or getattr(difference, "_prec", 1) == 1)  # 1: no digit is certain


def _evaluated(value: Any) -> Any:
    """Let sympy do the arithmetic that the parser left undone: 2^2008 becomes an integer."""
    return value.func(*map(_evaluated, value.args)) if value.args else value


def _is_closed(value: Any) -> bool:
    return isinstance(value, sympy.Expr) and not value.has(*_NOT_CLOSED)


def _number(value: Any, digits: int) -> Any:
    """Evaluate; None where the result is no finite number."""
    try:
        number = sympy.N(value, digits)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return None
    return number if number.is_number and number.is_finite else None


def _within(first: Any, second: Any, tolerance: Any) -> bool:
    return bool(abs(first - second) <= tolerance * max(abs(first), abs(second)))


def _values_close(gold: Any, answer: Any, options: Mapping[str, Any]) -> bool:
    """Check constants inside containers as well. True also where that says nothing."""
    containers = (sympy.Tuple, sympy.FiniteSet)
    if isinstance(gold, containers) and isinstance(answer, containers):
        return _all_close(gold.args, answer.args, options)
    if isinstance(gold, sympy.MatrixBase) and isinstance(answer, sympy.MatrixBase):
        return _all_close(gold, answer, options, ordered=True)
    return constants_equal(gold, answer, options) is not False


def _all_close(
    gold: Iterable[Any], answer: Iterable[Any], options: Mapping[str, Any], ordered: bool = False
) -> bool:
    golds, answers = list(gold), list(answer)
    if len(golds) != len(answers):
        return True
    if ordered:
        return all(_values_close(g, a, options) for g, a in zip(golds, answers, strict=True))
    return all(any(_values_close(g, a, options) for a in answers) for g in golds)


# ------------------------------------------------------------------------- functions


def functions_equal(gold: Any, answer: Any, options: Mapping[str, Any]) -> bool:
    """Say whether two functions of the same variables agree at fixed points.

    Wherever one of the two is real they must agree; where neither is (the root of a negative
    number), the branch is a matter of convention: sqrt(1/n) and 1/sqrt(n) are equal.
    """
    gold, answer = _with_imaginary_unit(gold, answer)
    if not (_is_closed(gold) and _is_closed(answer)):
        return False
    names = sorted(gold.free_symbols, key=str)
    if not names:
        return constants_equal(gold, answer, options) is True
    if gold.free_symbols != answer.free_symbols or len(names) > 8:
        return False
    tolerance = TOLERANCE if gold.has(sympy.Float) or answer.has(sympy.Float) else 1e-20
    agreed = 0
    for seed in _POSITIVE_POINTS + _MIXED_POINTS:
        point = _point(names, seed)
        first, second = _number(gold.subs(point), 30), _number(answer.subs(point), 30)
        if first is None or second is None:
            continue
        if _within(first, second, tolerance):
            agreed += seed in _POSITIVE_POINTS
        elif first.is_real or second.is_real:
            return False
    return agreed >= 3


def _point(names: list[Any], seed: int) -> dict[Any, Any]:
    """Return values between 0.1 and 3, every other one negative at the mixed points."""
    point = {}
    for index, name in enumerate(names):
        size = sympy.Rational(1 + (seed * (7 * index + 3)) % 293, 97)
        negative = seed in _MIXED_POINTS and (index + _MIXED_POINTS.index(seed)) % 2 == 0
        point[name] = -size if negative else size
    return point


def _same_solutions(gold: Any, answer: Any) -> bool:
    """Compare two linear inequalities in one variable by their solutions."""
    relations = (
        sympy.core.relational.StrictLessThan,
        sympy.core.relational.LessThan,
        sympy.core.relational.StrictGreaterThan,
        sympy.core.relational.GreaterThan,
    )
    if not (isinstance(gold, relations) and isinstance(answer, relations)):
        return False
    names = gold.free_symbols | answer.free_symbols
    if len(names) != 1 or gold.free_symbols != answer.free_symbols:
        return False
    (name,) = names
    sides = [relation.lhs - relation.rhs for relation in (gold, answer)]
    if any(side.as_poly(name) is None or side.as_poly(name).degree() != 1 for side in sides):
        return False
    return bool(gold.as_set() == answer.as_set())


def _with_imaginary_unit(gold: Any, answer: Any) -> tuple[Any, Any]:
    """Read a free `i` as the imaginary unit, which math-verify takes for a variable."""
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return gold, answer
    unit = {
        symbol: sympy.I for symbol in gold.free_symbols | answer.free_symbols if str(symbol) == "i"
    }
    return (gold.subs(unit), answer.subs(unit)) if unit else (gold, answer)


# --------------------------------------------------------------------------- start-up


def check_ground_types() -> None:
    """Refuse gmpy2: it ignores signals inside (10^9)! and differs in numerics."""
    if GROUND_TYPES != "python":
        sys.exit("sympy runs on gmpy2: set SYMPY_GROUND_TYPES=python")


def warm_up() -> None:
    """Run the common paths once before forking, so that children inherit filled caches."""
    for gold, answer in (
        ("\\frac{1}{2}", "0.5"),
        ("\\frac{\\sqrt{3}}{2}", "\\pi"),
        ("(x+1)^2", "x^2+2x+1"),
        ("\\sqrt{\\frac{1}{n}}", "\\frac{1}{\\sqrt{n}}"),
        ("\\{1,2\\}", "2,1"),
        ("[0,1)", "[0,2)"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
        ("x=1", "1"),
        ("\\sin^2 x", "1-\\cos^2 x"),
        ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}1\\\\3\\end{pmatrix}"),
    ):
        compare(gold, answer, {}, lambda _stage: None)
    _parse.cache_clear()
