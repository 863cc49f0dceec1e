r"""Answers that are words, choice letters, clock times or numerals in a base."""

from __future__ import annotations

import math
import re

from mathenv.grading.exact import parse_number
from mathenv.grading.letters import looks_like_a_word
from mathenv.grading.normalize import key
from mathenv.grading.policy import STRICT, GradePolicy

_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|textnormal|mbox|mathrm|mathbf|rm|bf)\s*\{([^{}]*)\}"
)
_WORDS = re.compile(r"[A-Za-z][A-Za-z'’.\- ]*")
_CHOICE = re.compile(r"\(?([A-Z])\)?[.:]?")
_CHOICE_WITH_TEXT = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.:)])\s.*", re.DOTALL)
_CLOCK = re.compile(
    r"([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE
)
_BASED = re.compile(r"(-?[0-9A-Za-z.]*[0-9A-Za-z])_\{?\s*([0-9]{1,2})\s*\}?")
_COMMAND = re.compile(r"\\[a-zA-Z]+")
_PROSE_WORD = re.compile(r"(?<![a-zA-Z])[a-zA-Z]{4,}|(?<![a-zA-Z])Eq(?=\()")
# Functions, and words that may stand beside a value.
_NOT_PROSE = re.compile(
    "sqrt|cbrt|frac|sinh|cosh|tanh|arc(?:sin|cos|tan)|a(?:sin|cos|tan)|floor|ceil|rational|"
    "infinity|choose|matrix|cases|array|begin|aligned|binom|percent|approx(?:imately)?|about|"
    "roughly|around|equals|answer|value|result|total|final|exactly|only|thus|hence|therefore|"
    "hundred|thousand|million|billion|trillion|dozen|half|third|quarter|squared|cubed",
    re.IGNORECASE,
)
_LONG_WORD = re.compile(r"(?<![a-zA-Z\\])[a-zA-Z]{4,}")
_ARTICLE = re.compile(r"(?:an?|the)\s+(?=[a-zA-Z]{3,}$)", re.IGNORECASE)
_SENTENCE = 6  # words of four letters and more: no spelling of a value needs as many


def compare_words(gold: str, answer: str, policy: GradePolicy = STRICT) -> bool | None:
    r"""Compare two answers as words, ignoring case. None where they may be mathematics.

    Decisive against the answer only if the gold says that it is text (`\text{...}`), since
    bare letters may also be a product of symbols.
    """
    if "\\" in gold + answer and _same_unwrapped(gold, answer):
        return True
    gold_words, answer_words = _words(gold), _words(answer)
    if gold_words is None:
        return None
    wrapped = "\\" in gold
    if answer_words is None:
        return None
    if gold_words == answer_words:
        return True
    if gold_words.isupper() and answer_words.isupper() and len(gold_words) > 1:
        return False  # names of points, segments, directions: NE is not EN
    named = any(map(_holds_words, (gold_words, answer_words)))
    if not wrapped and not named:
        return None  # kx-a
    if _folded(gold_words) == _folded(answer_words):  # Yes and yes; not R and r, ABC and abc
        return len(gold_words) > 3 or (len(gold_words) > 1 and wrapped) or gold_words[1:].islower()
    return False


def _same_unwrapped(gold: str, answer: str) -> bool:
    r"""Say whether `\text{July 4}` and `July 4` are the same text, with a word in it."""
    texts = {" ".join(_WRAPPER.sub(r" \1 ", text).split()) for text in (gold, answer)}
    return len(texts) == 1 and _LONG_WORD.search(texts.pop()) is not None


def _holds_words(text: str) -> bool:
    return any(map(looks_like_a_word, re.findall("[A-Za-z]+", text)))


def _folded(words: str) -> str:
    """Fold the case of words, not of single letters: `odd n` is not `odd N`."""
    return " ".join(word.casefold() if len(word) > 1 else word for word in words.split())


def compare_prose(gold: str, answer: str, policy: GradePolicy = STRICT) -> bool | None:
    """Refuse sentences and tracebacks, and statements where the reference is a number."""
    if len(answer) < 4 or "=" in answer or "\\approx" in answer:
        return None  # `AB = 5 units` is taken apart later
    words = _PROSE_WORD.findall(_COMMAND.sub(" ", answer))
    if len(words) >= _SENTENCE and not _PROSE_WORD.search(_COMMAND.sub(" ", gold)):
        return False
    if not words or any(map(_NOT_PROSE.fullmatch, words)) or parse_number(gold) is None:
        return None
    return False


def _words(text: str) -> str | None:
    text = _WRAPPER.sub(r"\1", text).strip()
    text = text[1:-1] if text[:1] == "{" and text[-1:] == "}" else text  # \\text was dropped
    choice = _CHOICE.fullmatch(text)
    if choice:
        return choice.group(1)
    text = text.rstrip(".")
    return " ".join(_ARTICLE.sub("", text).split()) if _WORDS.fullmatch(text) else None


def compare_choices(gold: str, answer: str, policy: GradePolicy = STRICT) -> bool | None:
    """Compare a choice letter with `(B)`, `B.` or `B. its text`. None if not a choice."""
    gold_choice = _CHOICE.fullmatch(_WRAPPER.sub(r"\1", gold).strip())
    if gold_choice is None:
        return _compare_choice_with_text(gold, answer)
    answer = _WRAPPER.sub(r"\1", answer).strip()
    match = _CHOICE.fullmatch(answer) or _CHOICE_WITH_TEXT.fullmatch(answer)
    if match is None:
        return None
    if next(letter for letter in match.groups() if letter) == gold_choice.group(1):
        return True
    return None if answer.isalpha() and gold.isalpha() else False


def _compare_choice_with_text(gold: str, answer: str) -> bool | None:
    """Compare a reference such as `(A) 5` with a letter; None for any other pair."""
    gold_choice = _CHOICE_WITH_TEXT.fullmatch(_WRAPPER.sub(r"\1", gold).strip())
    choice = _CHOICE.fullmatch(_WRAPPER.sub(r"\1", answer).strip())
    if gold_choice is None:
        return None
    if choice is None:
        return True if key(gold_choice[0]) == key(_WRAPPER.sub(r"\1", answer).strip()) else None
    return (gold_choice.group(1) or gold_choice.group(2)) == choice.group(1)


def compare_clock_times(gold: str, answer: str, policy: GradePolicy = STRICT) -> bool | None:
    """Compare clock times by value. A missing a.m. or p.m. matches the same digits only.

    None for ratios: 9:10, where the reference has no sign of a time and no common factor.
    """
    gold_time, answer_time = _clock(gold), _clock(answer)
    if gold_time is None or _is_ratio(gold, gold_time):
        return None
    if answer_time is None:
        return False if ":" in answer else None
    return gold_time == answer_time


def _is_ratio(text: str, time: tuple[int, int, int]) -> bool:
    """Say whether a reference is in lowest terms, and not written as times are (3:05, 12:00)."""
    hours, minutes, seconds = time
    if re.search("[a-zA-Z]", text) or ":0" in text:
        return False
    return math.gcd(hours, minutes, seconds) == 1


def _clock(text: str) -> tuple[int, int, int] | None:
    match = _CLOCK.fullmatch(_WRAPPER.sub(r"\1", text).strip())
    if match is None:
        return None
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
    if hours > 24 or minutes > 59 or seconds > 59:
        return None
    if match.group(4):
        hours = hours % 12 + (12 if match.group(4).lower() == "p" else 0)
    return hours, minutes, seconds


def compare_based(gold: str, answer: str, policy: GradePolicy = STRICT) -> bool | None:
    """Compare numerals with a base subscript by digits and base (`1200_7` is not `1200_8`)."""
    gold_match, answer_match = (_BASED.fullmatch(_WRAPPER.sub(r"\1", t)) for t in (gold, answer))
    if gold_match is None or answer_match is None:
        return None
    if not any(char.isdigit() for char in gold_match.group(1)):
        return None  # x_2, AB_1
    return gold_match.groups() == answer_match.groups()
