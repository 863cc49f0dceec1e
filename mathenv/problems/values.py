"""Reference answers as published rows write them: numbers with float noise, boxes, units."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from mathenv.errors import DataError
from mathenv.problems.files import Row
from mathenv.protocol import last_boxed

_DOUBLE_DIGITS = 15  # decimal digits that a double keeps
_MAX_EXPONENT = 50  # beyond, writing all digits helps nobody
_NOISE_DIGITS = 12  # a number this short, followed by others, is what was meant
_BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+([^\s$.,]+)")
_CONTEST = re.compile(r"/(\d{4})_([A-Z]+)_(\w+?)_Problems/")


def plain_number(text: str) -> str:
    """Write a number as people do: `145.0` is 145, `033` is 33, 0.30000000000000004 is 0.3.

    Other text and numbers without noise are returned as they are.
    """
    try:
        number = Decimal(text.replace(",", ""))
    except InvalidOperation:
        return text
    if not number.is_finite() or abs(number.adjusted()) > _MAX_EXPONENT:
        return text
    if number == number.to_integral_value():
        return str(int(number))
    short = Decimal(f"{number:.{_DOUBLE_DIGITS}g}").normalize()
    digits = len(number.normalize().as_tuple().digits)
    if digits > _DOUBLE_DIGITS and len(short.as_tuple().digits) <= _NOISE_DIGITS:
        number = short
    return f"{number:f}"


def boxed_answer(row: Row, column: str = "solution") -> str:
    r"""Return what the last box of a solution holds; some are written `\boxed 5`.

    Raises:
        DataError: the solution has no box.
    """
    solution = row.text(column)
    answer = last_boxed(solution)
    bare = _BARE_BOX.findall(solution)
    if not answer and bare:
        answer = bare[-1]
    if not answer:
        raise DataError(f"{row.where}: the {column} has no \\boxed{{}} and there is no answer")
    return answer


def contest(url: str) -> str:
    """Return the contest in an AoPS wiki address, e.g. `AIME I` or `AMC 12A`, or nothing."""
    found = _CONTEST.search(url)
    return f"{found[2]} {found[3]}" if found else ""
