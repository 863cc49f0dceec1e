from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathenv.grading import grade_answer
from mathenv.grading.exact import parse_number
from mathenv.grading.normalize import key, normalize
from mathenv.types import GradeStatus

NOT_ZERO = st.integers().filter(bool)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        ("-8,192", -8192),
        ("1 000", 1000),
        ("1\\,234.5", Fraction("1234.5")),
        ("10{,}000", 10000),
        ("11,\\! 111,\\! 111", 11111111),
        (".4", Fraction(2, 5)),
        ("5.", 5),
        ("2/(-3)", Fraction(-2, 3)),
        ("\\dfrac{-10}{9}", Fraction(-10, 9)),
        ("-\\frac12", Fraction(-1, 2)),
        ("1 1/2", Fraction(3, 2)),
        ("-2\\frac58", Fraction(-21, 8)),
        ("1.5 \\times 10^{3}", 1500),
        ("1e-3", Fraction(1, 1000)),
        ("\\$15,\\!000", 15000),
        ("125\\textnormal{ miles}", 125),
        ("64 square feet", 64),
        ("90^\\circ", 90),
    ],
)
def test_reads_exact_values(text, value):
    number = parse_number(normalize(text))
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize(
    "text", ["32, 349", "1,23", "1,2345", "(1,2)", "x", "5x", "1/0", "4 \\text{ millions}", "", "-"]
)
def test_does_not_read_what_is_no_number(text):
    assert parse_number(normalize(text)) is None


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("99999999999", "100000000000", False),
        ("1000000", "1000001.0", False),  # relative difference 1e-6, both integers
        ("16386.20", "16386.21", False),  # relative difference 6e-7
        ("0.3", "0.30000000000000004", True),
        ("1/12", "0.0833333333333333", True),
        ("1/3", "0.333", False),
        ("0.0000001", "0.0000002", False),
        ("50\\%", "0.5", True),
        ("50\\%", "50", True),
        ("50", "0.5", False),
        ("50\\%", "0.5\\%", False),
        ("0.335", "33.5 percent", True),
        ("15\\mbox{ cm}^2", "15\\text{ cm}^{2}", True),
        ("15\\mbox{ cm}^2", "15\\mbox{ cm}^3", False),
        ("0.56 = 56\\%", "3.56 = 56\\%", False),
        ("3/4", "6/8", True),
    ],
)
def test_number_policy(gold, answer, equal):
    grade = grade_answer(gold, answer)
    assert grade.correct is equal
    assert grade.tier == "number"


def test_blanks_between_digits_matter_in_string_keys():
    assert key(normalize("1 1/2")) != key(normalize("11/2"))
    assert key(normalize("\\left( 1 , 2 \\right)")) == key(normalize("(1,2)"))


@given(st.integers())
def test_every_integer_equals_itself_in_any_grouping(value):
    for spelling in (str(value), f"{value:,}", f"${value}$", f"{value}.0"):
        assert grade_answer(str(value), spelling).correct


@given(st.integers(), NOT_ZERO)
def test_a_different_integer_is_never_correct(value, offset):
    for spelling in (str(value + offset), f"{value + offset:,}", f"{value + offset}.0"):
        grade = grade_answer(str(value), spelling)
        assert grade.status is GradeStatus.INCORRECT


@given(st.fractions(max_denominator=10**6), st.integers(1, 50))
def test_fractions_equal_themselves_unreduced_too(value, factor):
    top, bottom = value.numerator * factor, value.denominator * factor
    sign = "-" if top < 0 else ""
    for spelling in (f"{top}/{bottom}", f"{sign}\\frac{{{abs(top)}}}{{{bottom}}}"):
        assert grade_answer(f"\\frac{{{value.numerator}}}{{{value.denominator}}}", spelling).correct


@given(st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-(10**9)))
def test_decimals_equal_themselves_and_their_fraction(value):
    exact = Fraction(value)
    for spelling in (f"{value:f}", f"{value:,f}", f"{exact.numerator}/{exact.denominator}"):
        assert grade_answer(f"{value:f}", spelling).correct


def test_a_word_of_magnitude_scales_the_number():
    for text in ("4 \\text{ million}", "4 million", "4.0 million"):
        assert parse_number(normalize(text)).value == 4_000_000
