r"""Wrong answers from right ones: a digit, letter, index, exponent, function or sign is changed.

What a grader accepts of these it accepts wrongly, but for the few changes that keep the meaning,
such as the sign in `(-3)^2`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator

_WORDS = re.compile(
    r"\\(?:text|textbf|textrm|mbox|mathrm|begin|end|operatorname)\s*\{[^{}]*\}|\\[a-zA-Z]+|"
    r"[a-zA-Z]{2,}"
)
_DIGIT = re.compile(r"[0-9]")
_LETTER = re.compile(r"[a-zA-Z]")
_INDEX = re.compile(r"(?<=_)[0-9a-zA-Z]|(?<=_\{)[0-9a-zA-Z](?=\})")
_EXPONENT = re.compile(r"(?<=\^)[0-9a-zA-Z]|(?<=\^\{)[0-9a-zA-Z](?=\})")
_FUNCTION = re.compile(
    r"\\(sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|ln|log|arcsin|arccos|arctan)(?![a-z])"
)
_SIGN = re.compile(r"(?<![\\^_{,(\[=])\s*([+-])(?!\s*\\infty)")
_OTHER_FUNCTION = {
    **{"sin": "cos", "cos": "sin", "tan": "cot", "cot": "tan", "sec": "csc", "csc": "sec"},
    **{"sinh": "sin", "cosh": "cos", "tanh": "tan", "ln": "log", "log": "ln"},
    **{"arcsin": "arccos", "arccos": "arcsin", "arctan": "arcsin"},
}


def _another(characters: str) -> Callable[[str, random.Random], str]:
    def change(old: str, rng: random.Random) -> str:
        return rng.choice([char for char in characters if char != old])

    return change


def _script(old: str, rng: random.Random) -> str:
    return _another("23456789")(old, rng) if old.isdigit() else _another("abknpqxz")(old, rng)


def _function(old: str, _rng: random.Random) -> str:
    return "\\" + _OTHER_FUNCTION[old.removeprefix("\\")]


def _sign(old: str, _rng: random.Random) -> str:
    return old.replace("+", "-") if "+" in old else old.replace("-", "+")


# Each kind: what is changed, how, and whether letters within words are left alone.
_KINDS: dict[str, tuple[re.Pattern[str], Callable[[str, random.Random], str], bool]] = {
    "digit": (_DIGIT, _another("0123456789"), False),
    "case": (_LETTER, lambda old, _rng: old.swapcase(), True),
    "index": (_INDEX, _script, True),
    "exponent": (_EXPONENT, _script, True),
    "function": (_FUNCTION, _function, False),
    "sign": (_SIGN, _sign, False),
}


def mutations(answer: str, seed: int = 0, each: int = 2) -> Iterator[tuple[str, str]]:
    """Yield (kind, changed answer): up to `each` places for each kind, chosen by the seed."""
    rng = random.Random(f"{seed} {answer}")
    words = [match.span() for match in _WORDS.finditer(answer)]
    for kind, (pattern, change, outside) in _KINDS.items():
        places = [
            match.span()
            for match in pattern.finditer(answer)
            if not (outside and any(a <= match.start() < b for a, b in words))
        ]
        for start, end in rng.sample(places, min(each, len(places))):
            yield kind, answer[:start] + change(answer[start:end], rng) + answer[end:]


def mutated(answers: Iterable[str], seed: int = 0, each: int = 2) -> Iterator[tuple[str, str, str]]:
    """Yield (kind, answer, changed answer) for all answers."""
    for answer in answers:
        for kind, wrong in mutations(answer, seed, each):
            yield kind, answer, wrong
