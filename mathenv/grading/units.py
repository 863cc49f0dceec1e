r"""Units at the end of an answer: `\text{...}`, degrees, and bare words after a number."""

from __future__ import annotations

import re
from fractions import Fraction

from mathenv.grading.letters import names
from mathenv.grading.policy import GradePolicy

_MAX_CHARS = 120  # no unit is as long

WRAPPED_UNIT = re.compile(
    r"\s*(?:\\(?:text|textnormal|textrm|textit|textbf|mbox|mathrm|mathit|rm|operatorname)\s*)"
    r"\{([^{}]*)\}\s*(?:\^\s*\{?\s*(-?[0-9])\s*\}?)?$"
)
UNIT_POWER = re.compile(r"(?<=[a-zA-Z}])\s*\^\s*\{?\s*(-?[0-9])\s*\}?$")
# `95{minutes}` is what some normalisers leave of `95\text{minutes}`.
_BRACED_UNIT = re.compile(r"(?<=[0-9])\s*\{\s*([a-zA-Z][a-zA-Z ]*)\}\s*(?:\^\s*\{?[0-9]\}?)?$")
_POWER_WORDS = re.compile(r"\b(?:(sq|square)|(cu|cubic))\b\s*")
_MEGA = re.compile(r"(?<![a-zA-Z])M(J|W|N|V|eV|Hz|Pa)(?![a-zA-Z])")  # MJ is not mJ
_DEGREES = re.compile(r"\s*\^\\circ$")
# Words that change the value, or that name one of two possible answers, are not units.
_NOT_A_UNIT = re.compile(
    r"hundred|thousand|[a-z]illions?\b|dozen|percent|half|halves|thirds?\b|quarter|fourths?\b|"
    r"fifths?\b|sixths?\b|sevenths?\b|eighths?\b|ninths?\b|tenths?\b|elevenths?\b|twelfths?\b|"
    r"teenths?\b|tieths?\b|\b(?:lakhs?|lacs?|crores?|myriads?|tens|ones|scores?|fold|twice|double|"
    r"triple|quadruple|squares|cubes|remainder|below|short|left over|owed|fewer|except|minus|least|"
    r"most|exactly not|wrong|false|no)\b|base|"
    r"\b[ap]\.?\s?m\b|\b(?:and|or|i|e|to|mod|modulo|plus|minus|times|over|by|squared|cubed|choose|"
    r"factorial|root|pi|infinity|negative|if|for|when|where|less|more|than|not|sin|cos|tan|cot|sec|"
    r"csc|log|ln|exp|sqrt|arcsin|arccos|arctan|score|gross)\b",
    re.IGNORECASE,
)
# Known units may stand right behind the number or closing brace (`10cm`).
_KNOWN_UNITS = (
    "square|cubic|sq|cu|units?|degrees?|radians?|dollars?|cents?|euros?|yuan|USD|inch(?:es)?|feet|"
    "foot|ft|yards?|yd|miles?|mi|met(?:er|re)s?|(?:centi|milli|kilo|deci)met(?:er|re)s?|cm|mm|km|"
    "nm|dm|(?:kilo|milli)?grams?|kg|mg|pounds?|lbs?|ounces?|oz|tons?|tonnes?|(?:milli)?lit(?:er|re)s?|"
    "ml|mL|gallons?|quarts?|pints?|cups?|m/s|km/h|ft/s|mi/h|m/min|mph|kph|seconds?|secs?|minutes?|"
    "mins?|mol|mmol|kJ|MJ|Pa|kPa|Hz|kHz|MHz|GHz|eV|kW|MW|kN|kV|USD|EUR|hours?|hrs?|days?|weeks?|months?|years?|per|people|students?|points?|pts?|ways?|men|"
    "women|boys|girls|eggs?|cars?|bags?|pens?|cats?|dogs?|cows?|bees?|ants?|toys?|hats?|pies?|"
    "jars?|tins?|cans?|keys?|rows?|sets?|ages?"
)
# Any other word must be separate and have four letters: `3 abc` is a product. A model writes the
# text: each word and each blank must match in one way only, or k words are tried in 2^k ways.
# So blanks are possessive, and a word that is a known unit is never read as another word.
_BARE_UNIT = re.compile(
    rf"(?<=[0-9}}.])\s*+(?:(?:(?<![a-zA-Z])(?:{_KNOWN_UNITS})(?![a-zA-Z])"
    rf"|(?<=[\s/])(?!(?:{_KNOWN_UNITS})(?![a-zA-Z'-]))[a-zA-Z][a-zA-Z'-]{{3,}}+)"
    rf"(?:\s*\^\s*\{{?[0-9]\}}?|[²³])?\s*+(?:/\s*+)?)+\.?$"
)


def split_unit(text: str) -> tuple[str, str]:
    """Return the text without its unit, and the unit's words in lower case ("" for none)."""
    if len(text) > _MAX_CHARS or not (text[-1:].isalpha() or text[-1:] in "}²³.^0123456789"):
        return text, ""
    for pattern in (WRAPPED_UNIT, _BRACED_UNIT):
        match = pattern.search(text)
        if match:
            if _NOT_A_UNIT.search(match.group(1)) or not text[: match.start()].strip():
                return text, ""
            return text[: match.start()], _canonical(match.group())
    bare = _DEGREES.sub("", text)
    if bare != text:
        return bare, "degree"
    match = _BARE_UNIT.search(text)
    if match is None or not match.group().strip(" .") or _NOT_A_UNIT.search(match.group()):
        return text, ""
    return text[: match.start()], _canonical(match.group())


def units_agree(gold: str, answer: str, policy: GradePolicy) -> bool:
    """Compare two units as `split_unit` gives them, under `policy.units`."""
    if policy.units == "strip" or gold == answer:
        return True
    return policy.units == "agree" and not (gold and answer)


def _canonical(unit: str) -> str:
    """Return the letters of a unit without markup, plural and case."""
    unit = re.sub(r"\\[a-z]+", " ", _MEGA.sub(r"mega \1", unit).lower())
    words = re.findall(r"[a-z]+", unit)
    return " ".join(word.rstrip("s") if len(word) > 2 else word for word in words)


# Units that are converted: the kind of each, and its size in the smallest unit of the kind.
_SIZES: dict[str, dict[str, Fraction | int]] = {
    "time": {"second": 1, "minute": 60, "hour": 3600, "day": 86_400, "week": 604_800},
    "length": {"mm": 1, "cm": 10, "dm": 100, "m": 1000, "km": 1_000_000},
    "imperial length": {"inch": 1, "foot": 12, "yard": 36, "mile": 63_360},
    "mass": {"mg": 1, "g": 1000, "kg": 1_000_000},
    "imperial mass": {"ounce": 1, "pound": 16},
    "volume": {"ml": 1, "l": 1000},
    "money": {"cent": 1, "dollar": 100},
    "angle": {"degree": 1},
    "radian": {"radian": 1},
}
_OTHER_NAMES = {
    **{"sec": "second", "min": "minute", "hr": "hour", "inche": "inch", "feet": "foot"},
    **{"ft": "foot", "yd": "yard", "mi": "mile", "oz": "ounce", "lb": "pound", "s": "second"},
    **{"kilometer": "km", "meter": "m", "centimeter": "cm", "millimeter": "mm", "decimeter": "dm"},
    **{"kilometre": "km", "metre": "m", "centimetre": "cm", "millimetre": "mm"},
    **{"gram": "g", "kilogram": "kg", "milligram": "mg", "liter": "l", "litre": "l"},
    **{"milliliter": "ml", "millilitre": "ml", "in": "inch", "h": "hour", "rad": "radian"},
}
MEASURES: dict[str, tuple[str, Fraction]] = {
    name: (kind, Fraction(size)) for kind, sizes in _SIZES.items() for name, size in sizes.items()
}
MEASURES |= {other: MEASURES[name] for other, name in _OTHER_NAMES.items()}


# Other units of measure, which are not converted but told apart: names in lower case.
_LONG_NAMES = {
    **{"newton": "n", "joule": "j", "watt": "w", "volt": "v", "pascal": "pa", "hertz": "hz"},
    **{"ampere": "a", "amp": "a", "kelvin": "k", "coulomb": "c", "farad": "f", "mole": "mol"},
    **{"ohm": "omega", "celsius": "c", "fahrenheit": "f", "molar": "molar", "tesla": "t"},
}
_PREFIXES = ("", "k", "m", "g", "u", "n", "p", "c", "d")
_MEASURED = frozenset(
    {prefix + unit for prefix in _PREFIXES for unit in names("w n j v ev hz pa c f k a mol")}
    | set(names("knot per mega nm um ms us ns euro yen yuan omega komega t molar atm torr db"))
)
_COMPOUND = {"mph": "mile hour", "kph": "km hour", "kmh": "km hour", "fps": "foot second"}


def labels_conflict(gold: str, answer: str) -> bool:
    """Say whether two labels name different things: real roots and complex roots, m/s and km/h.

    Not where one only says more (`red marbles`, `marbles`), or where a unit of measure is on one
    side only.
    """
    first, second = _words(gold), _words(answer)
    if not first or not second:
        return False
    known = [
        all(word in MEASURES or word in _MEASURED for word in side) for side in (first, second)
    ]
    if all(known):
        return _measures(first) != _measures(second)
    one, other = set(first), set(second)
    if any(known) or (one | other) & MEASURES.keys() or min(map(len, one | other)) < 3:
        return False
    return not (one <= other or other <= one)


def unit_conflict(gold: str, answer: str) -> bool:
    """Say whether two texts end in units that name different things, cm^2 and cm^3 included."""
    first, second = split_unit(gold)[1], split_unit(answer)[1]
    if not first or not second:
        return False
    (first, square), (second, other) = split_power(first), split_power(second)
    powers = [UNIT_POWER.search(text) for text in (gold, answer)]
    raised = [match[1] if match else "" for match in powers]
    if (square or raised[0]) != (other or raised[1]):
        return True
    return labels_conflict(first, second)


def _words(label: str) -> list[str]:
    words = " ".join(_COMPOUND.get(word, word) for word in label.split()).split()
    return [_LONG_NAMES.get(word, word) for word in words]


def _measures(words: list[str]) -> list[object]:
    return [MEASURES.get(word, word) for word in words if word != "per"]


def conversion(gold: str, answer: str) -> Fraction | None:
    """Return how many of the gold's unit one of the answer's is; None for words of other kinds.

    0 for units of different kinds: no number of seconds is a metre.
    """
    first, second = MEASURES.get(gold), MEASURES.get(answer)
    if first is None or second is None:
        return None
    return second[1] / first[1] if first[0] == second[0] else Fraction(0)


def split_power(unit: str) -> tuple[str, str]:
    """Return a unit without `square` or `cubic`, and the exponent that the word stands for."""
    match = _POWER_WORDS.search(unit)
    if match is None or _POWER_WORDS.sub("", unit).strip() in ("", "unit"):
        return unit, ""
    return _POWER_WORDS.sub("", unit).strip(), "2" if match[1] else "3"
