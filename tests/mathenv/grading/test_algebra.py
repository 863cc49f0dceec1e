import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathenv.grading.algebra import compare_algebra
from mathenv.grading.expression import read_formula
from mathenv.grading.policy import PAPER


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("(x+1)^2", "x^2+2x+1"),
        ("\\frac{x^2-1}{x-1}", "x+1"),
        ("\\frac{1}{3}+\\frac16", "\\frac12"),
        ("2^{10}", "1024"),
        ("\\frac{9}{4}\\pi", "\\frac94\\pi"),
        ("x_1x_2", "x_{2}x_{1}"),
        ("x^{-1}", "\\frac{1}{x}"),
        ("\\sqrt{16}y", "4y"),
        ("0.5x", "\\frac{x}{2}"),
        ("-(a-b)", "b-a"),
    ],
)
def test_equal(gold, answer):
    assert compare_algebra(gold, answer) is True


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("(x+1)^2", "x^2+2x+2"),
        ("\\frac{\\sqrt2}{2}", "\\frac{1}{\\sqrt3}"),
        ("2^n", "2^{n+1}"),
        ("40\\pi", "41\\pi"),
        ("40\\pi", "125.6"),
        ("\\frac{1}{3}", "\\frac{1}{3}+\\frac{1}{10^{12}}"),
    ],
)
def test_different(gold, answer):
    assert compare_algebra(gold, answer) is False


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\sqrt{x^2}", "x"),  # differ where x is negative
        ("1/2x", "\\frac{x}{2}"),  # two readings
        ("f(x)", "f(y)"),
        ("\\sin x", "\\sin y"),
        ("16t", "16"),  # perhaps a unit
        ("i^2", "-1"),  # perhaps the imaginary unit
        ("1+2i", "i(2-i)"),
        ("40\\pi", "125.6637061"),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),  # equal in floating point is no proof
        ("cats", "tacs"),
        ("3^{2025}", "2^{2025}"),  # too large
        ("\\frac{1}{x-x}", "1"),
        ("(" * 500, "1"),
        ("", ""),
    ],
)
def test_left_to_others(gold, answer):
    assert compare_algebra(gold, answer) is None


def test_a_loose_policy_is_not_overruled():
    assert compare_algebra("\\sqrt{3}", "\\frac{97}{56}") is False
    assert compare_algebra("\\sqrt{3}", "\\frac{97}{56}", PAPER) is None


TERMS = st.recursive(
    st.integers(0, 99).map(str) | st.sampled_from(["x", "y", "\\pi", "a_1"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "\\cdot "]), inner).map(
            lambda p: f"({p[0]}{p[1]}{p[2]})"
        ),
        st.tuples(inner, inner).map(lambda p: f"\\frac{{{p[0]}}}{{{p[1]}}}"),
        inner.map(lambda t: f"({t})^2"),
        inner.map(lambda t: f"\\sqrt{{{t}}}"),
    ),
    max_leaves=8,
)


@given(TERMS)
def test_no_expression_differs_from_itself(text):
    assert read_formula(text) is not None
    assert compare_algebra(text, text) is not False
    assert compare_algebra(text, f"({text})+0") is not False
    assert compare_algebra(text, f"{text}+1") is not True


@given(TERMS, TERMS)
def test_verdicts_are_symmetric(first, second):
    assert compare_algebra(first, second) == compare_algebra(second, first)


@given(st.text(max_size=60))
def test_no_text_raises(text):
    assert compare_algebra(text, "x+1") in (None, False, True)
