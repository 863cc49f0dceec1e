r"""Compare two read formulas by their values at points. Runs in the worker process only.

Two formulas agree at all points only if they mean the same: see `evaluate.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mpmath import mp
from mpmath.libmp import NoConvergence

if TYPE_CHECKING:
    from mathenv.grading import evaluate
else:
    evaluate = sys.modules["_mathenv_evaluate"]  # `worker.py` has loaded it

DIGITS = (50, 300, 1200)  # closed forms that agree are computed again with more
_POINT_DIGITS = 100  # of functions at points
_MANY_DIGITS = 4000  # where terms of sums are huge, as in (2^2005 + 1) / 2^2006
POINTS = (1, 2, 3, 4, 5)  # all values positive
_MIXED_POINTS = 4  # at each, one variable is negative: that tells sqrt(x^2) from x
_LEAST_AGREEING = 3
_FUNCTION_TOLERANCE = 1e-6  # where one side is written with decimals
_FORMS = {"equal", "factor", "positive factor"}


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
    first, second = evaluate.Evaluator(point, special), evaluate.Evaluator(point, special)
    a, b = first.scalar(reading["gold"]), second.scalar(reading["answer"])
    return a, b, max(first.largest, second.largest, abs(a), abs(b))


def _pairs(reading: Mapping[str, Any]) -> Iterator[tuple[Any, Any, Any, bool]]:
    """Yield both values, their size, and whether all variables are positive, at all points."""
    points = [(point, "") for point in POINTS + evaluate.WHOLE_POINTS]
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
            elif positive or evaluate.is_real(a) or evaluate.is_real(b):
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
        return bool(evaluate.is_real(first) and mp.re(first) > 0)
    if same and varies:
        return True
    return False if reading["exact"] else None
