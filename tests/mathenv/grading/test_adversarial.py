"""Repetitions made to slow the patterns down that run in the caller, not in a killable worker."""

import itertools
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathenv.grading import extract_answer, find_policy, grade, grade_answer
from mathenv.grading.exact import parse_number
from mathenv.grading.expression import read_formula
from mathenv.grading.limits import MAX_CHARS, too_big
from mathenv.grading.normalize import normalize
from mathenv.types import GradeStatus

GOLDS = ("5", "17x", "(1,2)", "1/2")
SECONDS = 1.0  # of this thread: much more than any takes
FALLBACKS = [find_policy(name) for name in ("paper", "strict,fallback=text,boxes=all")]

# Known to have been slow, or to have raised.
UNITS = ["5 " + "ft " * 38 + "q", "5 " + "feet " * 23 + "q", "5 " + "a---ft " * 16 + "q"]
HUGE = ["9" * 256 + ",999" * 36, "9$" * 350, "1" * 250 + " " * 1700 + "x!"]
RESPONSES = ["```output" + "\n" * 40_000, "\\[" * 20_000, "\\(\\[" * 10_000, "answer" + " " * 9_999]
RESPONSES += [
    "answer is x" + " " * 19_000,
    "\\boxed{1}" + "a" * 100_000 + "\\boxed{2}",
    "\\boxed " * 9_999,
]

_TOKENS = r"""
, . / ^ _ - = : ! $ $$ % & ( ) [ ] { } \ \\ \{ \} \[ \( \! \, {,} 1 999 ,999 e1 ** ½ π x a
ft feet meters abc-ft and or answer is sqrt( Rational( \frac \frac{ \sqrt \text{ \pm \in \cup
\begin{ \boxed{ \angle \phantom ``` ```output
"""
TOKENS = st.sampled_from([" ", "\n", "\u00a0", " 999", "\\text{ or }", *_TOKENS.split()])
PARTS = st.tuples(st.lists(TOKENS, min_size=1, max_size=4).map("".join), st.integers(1, 2000))
TEXTS = st.lists(PARTS, min_size=1, max_size=3).map(
    lambda parts: "".join((text * count)[:1000] for text, count in parts)[:MAX_CHARS]
)


def _soon(call, *arguments):
    started = time.thread_time()
    result = call(*arguments)
    spent = time.thread_time() - started
    assert spent < SECONDS, f"{call.__name__}: {spent:.1f} s"
    return result


@pytest.mark.parametrize("answer", UNITS + HUGE)
@pytest.mark.parametrize("gold", GOLDS)
def test_answers_known_to_be_slow(gold, answer):
    result = _soon(grade, gold, f"\\boxed{{{answer}}}")
    assert not result.correct
    assert result.status is not GradeStatus.INFRA


@pytest.mark.parametrize("response", RESPONSES)
def test_responses_known_to_be_slow(response):
    for policy in FALLBACKS:
        _soon(extract_answer, response, policy)
        assert not _soon(grade, "5", response, policy).correct


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS)
def test_no_repetition_is_slow_or_raises(text):
    for read in (too_big, normalize, parse_number, read_formula):
        _soon(read, text)
    for policy in FALLBACKS:
        _soon(extract_answer, text * 20, policy)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(TEXTS, st.sampled_from(GOLDS))
def test_no_repetition_is_slow_to_grade(text, gold):
    for result in (_soon(grade, gold, f"\\boxed{{{text}}}"), _soon(grade_answer, gold, text)):
        assert result.status is not GradeStatus.INFRA


@given(st.text("0123456789,", max_size=400))
def test_digits_and_commas_never_raise(text):
    read_formula(text)
    parse_number(text)


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("\\[ a \\[ b \\]", "a \\[ b"),
        ("$$$x$", "x"),
        ("$$ y $$ and \\( z", "y"),
        ("\\(a\\) \\[ b", "a"),
        ("$1$ and $$2$$", "2"),
    ],
)
def test_the_last_formula(text, formula):
    assert extract_answer(text, find_policy("strict,fallback=text")) == formula


def test_units_are_read_as_before():
    for blank, power in itertools.product((" ", "", " / ", "/"), ("", "^2", " ^{2}", "²")):
        number = parse_number(f"5 square{power}{blank} feet")
        assert (number is not None and number.unit != "") is True, (blank, power)
