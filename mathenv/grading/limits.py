"""Caps checked before anything is parsed: above them only strings are compared.

A cap answers in microseconds what would otherwise cost the symbolic worker its whole
CPU limit. Values follow inspect_ai's scorer where it has one; the MATH data set stays far
below all of them (its longest answer has 159 characters).
"""

from __future__ import annotations

import math
import re

MAX_CHARS = 2000
MAX_NESTING = 64
MAX_DIGITS = 256
MAX_CELLS = 256
MAX_EXPONENT = 1_000_000
MAX_FACTORIAL = 10_000

_DIGIT_RUN = re.compile(rf"[0-9]{{{MAX_DIGITS + 1}}}")
_POWER = re.compile(r"\^\s*+(?:[{(]\s*+)?([0-9]++)(?:\s*+\^\s*+(?:[{(]\s*+)?([0-9]++))?")
# One start for each numeral and one way to match its blanks: the text is not normalised yet.
_FACTORIAL = re.compile(r"(?<![0-9])([0-9]++)\s*+(?:[)}]\s*+)?!")
_POWER_FACTORIAL = re.compile(r"[({]\s*[0-9]+\s*\^[^!]{0,20}[)}]\s*!")


def too_big(text: str) -> str:
    """Return the name of the cap that `text` exceeds, or an empty string."""
    if len(text) > MAX_CHARS:
        return "length"
    if text.isalnum() and len(text) <= MAX_DIGITS:
        return ""
    if _DIGIT_RUN.search(text):
        return "digits"
    if _nesting(text) > MAX_NESTING:
        return "nesting"
    if text.count("&") + text.count("\\\\") > MAX_CELLS:
        return "matrix cells"
    if "^" in text and any(_huge_exponent(match) for match in _POWER.finditer(text)):
        return "exponent"
    if "!" in text and _huge_factorial(text):
        return "factorial"
    return ""


def _nesting(text: str) -> int:
    depth = deepest = 0
    for char in text:
        if char in "({[":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")}]":
            depth -= 1
    return deepest


def _huge_exponent(match: re.Match[str]) -> bool:
    exponent, tower = match.group(1), match.group(2)
    size = math.log10(max(int(exponent), 1))
    if tower is not None:
        size *= int(tower)
    return size > math.log10(MAX_EXPONENT)


def _huge_factorial(text: str) -> bool:
    if _POWER_FACTORIAL.search(text):
        return True
    return any(int(match.group(1)) > MAX_FACTORIAL for match in _FACTORIAL.finditer(text))
