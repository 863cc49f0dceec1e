r"""Exact numbers: read without sympy, compared as fractions.

Handles integers with thousands separators, decimals, `a/b`, `\frac{a}{b}`, mixed numbers,
scientific notation, a percent sign and a trailing unit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from mathenv.grading.normalize import braced

# A decimal stands for an exact gold (1/3) when it is this close, relative to the gold.
ROUNDED_TOLERANCE = Fraction(1, 10**6)
# A gold written as an integer or decimal can be written exactly: only the noise of binary
# floating point is forgiven. With 1e-6, 16386.21 would pass for 16386.20.
FLOAT_NOISE = Fraction(1, 10**9)
_MAX_WITH_UNIT = 120  # characters: the unit patterns take quadratic time
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
_PERCENT = re.compile(r"\s*(?:%|\\text\{\s*percent\s*\}|percent|pct)$", re.IGNORECASE)
_WRAPPED_UNIT = re.compile(
    r"\s*\\(?:text|textnormal|textrm|mbox|mathrm|rm|operatorname)\s*\{([^{}]*)\}"
    r"\s*(?:\^\s*\{?\s*(-?[0-9])\s*\}?)?$"
)
_DEGREES = re.compile(r"\s*\^\\circ$")
# Words that change the value, or that name one of two possible answers, are not units.
_NOT_A_UNIT = re.compile(
    r"hundred|thousand|million|billion|trillion|dozen|percent|half|third|quarter|base|"
    r"\b[ap]\.?\s?m\b|\band\b|\bor\b|\bi\b|\be\b",
    re.IGNORECASE,
)
_UNIT_WORDS = (
    "square|cubic|sq|units?|degrees?|dollars?|cents?|inch(?:es)?|feet|foot|ft|yards?|miles?|"
    "meters?|metres?|centimeters?|kilometers?|cm|mm|km|kg|grams?|pounds?|lbs?|ounces?|liters?|"
    "gallons?|seconds?|minutes?|hours?|days?|weeks?|months?|years?|mph|per|people|students?|"
    "points?|ways?|apples?|eggs?|books?|women|men|boys|girls|children|euros?|yuan"
)
_BARE_UNIT = re.compile(
    rf"\s*(?:(?:{_UNIT_WORDS})(?:\s*\^\s*\{{?[0-9]\}}?)?(?:\s+|$))+$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class ExactNumber:
    """A number as it was written. `percent`: a percent sign follows; `value` leaves it out."""

    value: Fraction
    percent: bool = False
    decimal: bool = False  # written with a decimal point or in scientific notation
    ratio: bool = False  # written as a fraction
    unit_power: str = ""  # the exponent after a unit in \\text{}, as in cm^2


def parse_number(text: str) -> ExactNumber | None:
    """Read a normalised answer as one number, or return None."""
    if text.isdigit() and text.isascii():
        return ExactNumber(Fraction(int(text)))
    bare = _PERCENT.sub("", text)
    if bare != text:
        number = _parse_unsigned(bare)
        return None if number is None else replace(number, percent=True)
    number = _parse_unsigned(strip_unit(text))
    wrapped = _WRAPPED_UNIT.search(text) if number is not None and "\\" in text else None
    if number is None or wrapped is None or not wrapped.group(2):
        return number
    return replace(number, unit_power=wrapped.group(2))


def strip_unit(text: str) -> str:
    r"""Remove a trailing unit: `\text{...}`, degrees, or a word from the unit list."""
    if len(text) > _MAX_WITH_UNIT:
        return text
    wrapped = _WRAPPED_UNIT.search(text)
    if wrapped:
        return text if _NOT_A_UNIT.search(wrapped.group(1)) else text[: wrapped.start()]
    text = _DEGREES.sub("", text)
    if text[-1:].isalnum() or text.endswith("}"):
        text = _BARE_UNIT.sub("", text) or text
    return text


def _parse_unsigned(text: str) -> ExactNumber | None:
    text = text.strip()
    if text.startswith("(") and text.endswith(")") and "," not in text:
        text = text[1:-1]
    if "/" in text or "\\frac" in text:
        return _ratio(braced(text))
    match = _DECIMAL.fullmatch(text)
    if match is None or not any(c.isdigit() for c in match["digits"]):
        return None
    scale = int(match["power"] or match["e"] or 0)
    if abs(scale) > MAX_SCALE:
        return None
    value = _exact(match["digits"]) * Fraction(10) ** scale
    written_exactly = "." not in match["digits"].rstrip(".") and not match["e"]
    return ExactNumber(-value if match["sign"] == "-" else value, decimal=not written_exactly)


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
    return ExactNumber(-value if match["sign"] == "-" else value, ratio=True)


def _exact(digits: str) -> Fraction:
    digits = digits.replace(",", "").replace(" ", "")
    return Fraction(digits[:-1] if digits.endswith(".") else digits)


def numbers_equal(gold: ExactNumber, answer: ExactNumber) -> bool:
    """Decide whether two numbers agree.

    Percent: with a sign on one side only, p and p/100 are both accepted; on both sides or
    on none the values must agree. Decimals: see `ROUNDED_TOLERANCE` and `FLOAT_NOISE`.
    Units are not compared, but cm^2 is not cm^3.
    """
    if gold.unit_power and answer.unit_power and gold.unit_power != answer.unit_power:
        return False
    if _close(gold, answer, answer.value):
        return True
    if gold.percent and not answer.percent:
        return _close(gold, answer, answer.value * 100)
    if answer.percent and not gold.percent:
        return _close(gold, answer, answer.value / 100)
    return False


def _close(gold: ExactNumber, answer: ExactNumber, value: Fraction) -> bool:
    if gold.value == value:
        return True
    if not (answer.decimal or gold.decimal):
        return False
    if gold.value.denominator == 1 and value.denominator == 1:
        return False  # two different integers, however they are written
    tolerance = ROUNDED_TOLERANCE if gold.ratio else FLOAT_NOISE
    return abs(gold.value - value) <= tolerance * abs(gold.value)
