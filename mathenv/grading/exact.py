r"""Exact numbers: read without sympy, compared as fractions.

Handles integers with thousands separators, decimals, `a/b`, `\frac{a}{b}`, mixed numbers,
scientific notation, a percent sign and a trailing unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from mathenv.grading.normalize import braced
from mathenv.grading.policy import STRICT, GradePolicy
from mathenv.grading.units import (
    UNIT_POWER,
    conversion,
    labels_conflict,
    split_power,
    split_unit,
    units_agree,
)

MAX_SCALE = 400  # decimal exponents beyond this are left to the symbolic tier

_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,3}(?: [0-9]{3})+|[0-9]+)?(?:\.[0-9]+|\.)?"
_SCALE = (
    r"(?:\s*(?:\\times|\\cdot|\*|x)\s*10\s*\^\s*\{?\s*(?P<power>[+-]?[0-9]{1,4})\s*\}?"
    r"|[eE](?P<e>[+-]?[0-9]{1,4}))?"
)
_DECIMAL = re.compile(rf"(?P<sign>[+-]?)\s*(?P<digits>{_UNSIGNED}){_SCALE}")
_RATIO = re.compile(
    rf"(?P<sign>[+-]?)\s*(?P<whole>[0-9]+(?=\s*\\| [0-9]))?\s*"
    rf"(?:\\frac\s*\{{\s*(?P<a>-?{_UNSIGNED})\s*\}}\s*\{{\s*(?P<b>-?{_UNSIGNED})\s*\}}"
    rf"|(?P<c>{_UNSIGNED})\s*/\s*(?:(?P<d>{_UNSIGNED})|\(\s*(?P<e>-[0-9]+)\s*\)))"
)
_WRAPPED_NUMBER = re.compile(
    r"\\(?:text|textbf|mathbf|mathrm|mbox|bf|boldsymbol)\s*\{\s*([-+$]?[0-9.][^{}]*)\}"
)
_REPEATING = re.compile(
    r"(-?)\s*([0-9]*)\.([0-9]*)\s*\\(?:overline|bar|dot)\s*\{?\s*([0-9]{1,30})\s*\}?"
)
# `5m`: a unit in an answer, a variable in a reference.
_LETTER_UNIT = re.compile(r"(.*[0-9}])(?:\s*(?=[mgsL]$)|\s(?=[JNWVK]$))([a-zA-Z])")
# `2.5 million dollars`
_MAGNITUDE = re.compile(
    r"(?P<number>[-+]?[0-9][0-9.,]*)\s*(?:\\(?:text|mathrm|mbox)\s*\{\s*)?"
    r"(?P<word>hundred|thousand|million|billion|trillion)(?P<unit>(?:\s+[a-zA-Z]{3,})*)\s*\}?"
)
_ZEROS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_PERCENT = re.compile(r"\s*(?:%|\\text\{\s*percent\s*\}|percent|pct)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ExactNumber:
    """A number as it was written. `percent`: a percent sign follows; `value` leaves it out."""

    value: Fraction
    percent: bool = False
    decimal: bool = False  # written with a decimal point or in scientific notation
    ratio: bool = False  # written as a fraction
    unit: str = ""
    unit_power: str = ""  # the exponent after a unit in \\text{}, as in cm^2
    places: int = 0  # decimals, where it is written as a plain decimal
    letter_unit: bool = False  # the unit is a letter that might be a variable
    reduced: bool = True  # not a fraction that could be shortened


def parse_number(text: str) -> ExactNumber | None:
    """Read a normalised answer as one number, or return None."""
    if text.isdigit() and text.isascii():
        return ExactNumber(Fraction(int(text)))
    if wrapped := _WRAPPED_NUMBER.fullmatch(text):
        text = wrapped[1].strip()
    bare = _PERCENT.sub("", text)
    if bare != text:
        number = _parse_unsigned(bare)
        return None if number is None else replace(number, percent=True)
    bare, unit = split_unit(text)
    number = _parse_unsigned(bare)
    if number is None and (match := _MAGNITUDE.fullmatch(text)):
        return _magnitude(match)
    if number is None and (match := _LETTER_UNIT.fullmatch(text)):
        number, unit = _parse_unsigned(match[1]), match[2]
        if number is not None:
            return replace(number, unit=unit.lower(), letter_unit=True)
    if number is not None and unit:
        unit, worded = split_power(unit)
        number = replace(number, unit=unit, unit_power=worded)
    power = UNIT_POWER.search(text) if number is not None and unit else None
    if number is None or power is None:
        return number
    return replace(number, unit_power=power.group(1))


def _magnitude(match: re.Match[str]) -> ExactNumber | None:
    unit = split_unit(f"1{match['unit']}")[1]
    number = _parse_unsigned(match["number"])
    if number is None or bool(unit) != bool(match["unit"]):
        return None
    return replace(number, value=number.value * 10 ** _ZEROS[match["word"]], places=0, unit=unit)


def _parse_unsigned(text: str) -> ExactNumber | None:
    text = text.strip()
    if text.startswith("(") and text.endswith(")") and "," not in text:
        text = text[1:-1]
    if "/" in text or "\\frac" in text:
        return _ratio(braced(text))
    if "\\" in text and (match := _REPEATING.fullmatch(text)):
        return _repeating(match)
    match = _DECIMAL.fullmatch(text)
    if match is None or not any(c.isdigit() for c in match["digits"]):
        return None
    scale = int(match["power"] or match["e"] or 0)
    if abs(scale) > MAX_SCALE:
        return None
    value = _exact(match["digits"]) * Fraction(10) ** scale
    written_exactly = "." not in match["digits"].rstrip(".") and not match["e"]
    places = 0 if scale else len(match["digits"].rpartition(".")[2]) * ("." in match["digits"])
    signed = -value if match["sign"] == "-" else value
    return ExactNumber(signed, decimal=not written_exactly, places=places)


def _repeating(match: re.Match[str]) -> ExactNumber:
    """Read `0.1\\overline{6}`, an exact value."""
    sign, whole, fixed, period = match.groups()
    value = Fraction(int(whole or 0)) + Fraction(int(fixed or 0), 10 ** len(fixed))
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    return ExactNumber(-value if sign else value, ratio=True)


def _ratio(text: str) -> ExactNumber | None:
    match = _RATIO.fullmatch(text)
    if match is None:
        return None
    top, bottom = match["a"] or match["c"], match["b"] or match["d"] or match["e"]
    if not top or not bottom or not top.strip("-.") or not bottom.strip("-."):
        return None
    numerator, denominator = _exact(top), _exact(bottom)
    if denominator == 0:
        return None
    value = numerator / denominator
    if match["whole"]:
        if value < 0:
            return None
        value += int(match["whole"])
    top, bottom = abs(numerator / denominator).as_integer_ratio()
    lowest = top == abs(numerator) and bottom == abs(denominator)
    reduced = lowest and abs(denominator) != 1 and not (match["whole"] and numerator > denominator)
    return ExactNumber(-value if match["sign"] == "-" else value, ratio=True, reduced=reduced)


def _exact(digits: str) -> Fraction:
    digits = digits.replace(",", "").replace(" ", "")
    return Fraction(digits[:-1] if digits.endswith(".") else digits)


def numbers_equal(gold: ExactNumber, answer: ExactNumber, policy: GradePolicy = STRICT) -> bool:
    """Decide whether two numbers agree under `policy` (see there; cm^2 is never cm^3)."""
    if gold.unit and answer.unit and gold.unit_power != answer.unit_power:
        return False
    factor = conversion(gold.unit, answer.unit)
    if factor is not None and factor != 1:  # 5 km is 5000 m, and not 5 m
        power = int(gold.unit_power or 1)
        answer = replace(answer, value=answer.value * factor**power, unit=gold.unit)
        if not factor:
            return False
    if factor is None and labels_conflict(gold.unit, answer.unit):
        return False
    if policy.units != "strip" and not units_agree(gold.unit, answer.unit, policy):
        return False
    if policy.require_reduced and not (answer.reduced and _kinds_fit(gold, answer)):
        return False
    return any(_close(gold, answer, value, policy) for value in _readings(gold, answer, policy))


def _kinds_fit(gold: ExactNumber, answer: ExactNumber) -> bool:
    """Where an integer is asked for, a fraction is arithmetic left to do."""
    return not (answer.ratio and gold.value.denominator == 1)


def _readings(gold: ExactNumber, answer: ExactNumber, policy: GradePolicy) -> list[Fraction]:
    """Return the values on the gold's scale that the answer may stand for."""
    value, shift = answer.value, int(gold.percent) - int(answer.percent)
    if policy.percent == "factor":
        plain = not (gold.ratio or answer.ratio)
        return [value, value / 100, value * 100] if plain else [value]
    if policy.percent == "exact":
        return [value] if shift == 0 else []
    if policy.percent == "hundredth":
        return [value * Fraction(100) ** shift]
    return [value, value * Fraction(100) ** shift]


def _close(gold: ExactNumber, answer: ExactNumber, value: Fraction, policy: GradePolicy) -> bool:
    difference = abs(gold.value - value)
    if difference == 0:
        return True
    if policy.round_to_gold and gold.places and rounds_to(value, gold.value, gold.places):
        return True
    integers = gold.value.denominator == 1 and value.denominator == 1
    inexact = answer.decimal or gold.decimal
    if inexact and difference <= Fraction(policy.absolute_tolerance):
        return True
    if integers or not inexact:  # however they are written: 1000001.0 is an integer
        tolerance = policy.exact_tolerance
    else:
        tolerance = policy.tolerance if gold.ratio or answer.ratio else policy.float_noise
    return tolerance > 0 and difference <= Fraction(tolerance) * abs(gold.value)


def rounds_to(value: Fraction, target: Fraction, places: int) -> bool:
    """Say whether `value` rounded to `places` decimals, halves either way, is `target`."""
    return abs(value - target) <= Fraction(1, 2 * 10**places)
