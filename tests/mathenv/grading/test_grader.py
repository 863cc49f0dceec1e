import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathenv.errors import ConfigError
from mathenv.grading import GradePolicy, PolicyGrader, grade, grade_answer, grade_many
from mathenv.types import GradeStatus


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("So \\boxed{7}.", "7"),
        ("First \\boxed{1}, no: \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("<think>\\boxed{3}</think> It is \\fbox{4}.", "4"),
        ("<think>\\boxed{3}</think> I cannot say.", None),
        ("\\boxed{5} <think> or \\boxed{6}", "5"),
        ("```python\nprint('\\\\boxed{9}')\n```", None),
        ("\\boxed{}", None),
        ("no box", None),
    ],
)
def test_extraction(response, answer):
    result = grade("0", response)
    assert result.answer == answer
    assert (result.status is GradeStatus.NO_ANSWER) == (answer is None)


@pytest.mark.parametrize("gold", ["", "  ", "\\boxed{}", "\\boxed{ }", "$$"])
def test_an_empty_reference_is_never_matched(gold):
    for response in ("\\boxed{}", "\\boxed{5}", f"\\boxed{{{gold}}}"):
        result = grade(gold, response)
        assert result.status is GradeStatus.GOLD_ERROR
        assert not result.counts


@pytest.mark.parametrize(
    ("gold", "answer", "tier", "equal"),
    [
        ("\\text{Evelyn}", "Evelyn", "text", True),
        ("\\text{Evelyn}", "\\textbf{briana}", "text", False),
        ("\\text{(C)}", "C", "choice", True),
        ("C", "(D)", "choice", False),
        ("B", "B. the second one", "choice", True),
        ("20:34", "08:34 \\text{P.M.}", "clock", True),
        ("12:00", "1:00", "clock", False),
        ("1200_7", "1200_{7}", "string", True),
        ("1200_7", "1200_8", "base", False),
        ("4210_{7}", "4210_7", "string", True),
        ("(3, \\frac{\\pi}{2})", "\\left( 3, \\tfrac\\pi2 \\right)", "string", True),
    ],
)
def test_cheap_tiers(gold, answer, tier, equal):
    result = grade_answer(gold, answer)
    assert (result.tier, result.correct) == (tier, equal)


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("(x+1)^2", "x^2+2x+1"),
        ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
        ("x < 1", "1 > x"),
        ("[0.5,1)", "[\\frac12, 1)"),
        ("\\{1,2,3\\}", "3, 2, 1"),
        ("1 \\pm \\sqrt{19}", "1+\\sqrt{19}, 1-\\sqrt{19}"),
        ("x=5", "5"),
        ("2**(1/4)", "\\sqrt{\\sqrt{2}}"),
        (
            "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}",
            "\\begin{bmatrix} \\frac{2}{2} \\\\ 2 \\end{bmatrix}",
        ),
    ],
)
def test_symbolic_equality(gold, answer):
    result = grade_answer(gold, answer)
    assert result.correct, result


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("\\frac{1}{2004!}", "\\frac{1}{2006!}"),  # math-verify: equal
        ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}"),  # math-verify: equal
        ("\\frac{2^{2005}+1}{3 \\cdot 2^{2006}}", "\\frac{1}{3 \\cdot 2^{2006}}"),
        ("-2x+1", "-2x+2"),
        ("-2", "-2,-2"),  # equal as sets
        ("2, 3x", "2, 2, 3x"),
        ("16t", "16"),  # t is no unit
        ("[0,1)", "(0,1)"),
        ("12 x_7 + 5_7", "12 x_7 + 5_8"),
        ("1 - \\frac{1}{\\mathrm{e}}", "1 + \\frac{1}{\\mathrm{e}}"),
    ],
)
def test_known_false_positives_are_rejected(gold, answer):
    assert not grade_answer(gold, answer).correct


@pytest.mark.parametrize(
    "gold", ["\\frac{3}{", "x^{2", "\\begin{pmatrix}1", "2+", "9" * 300, "\\sqrt", "a}b{"]
)
@pytest.mark.parametrize("answer", ["\\sqrt{x}", "5", "no", "(1,2)", None])
def test_a_bad_reference_is_bad_whatever_the_answer(gold, answer):
    for text in (answer, gold):
        result = grade_answer(gold, text)
        assert result.status is GradeStatus.GOLD_ERROR
        assert not result.counts


@pytest.mark.parametrize("gold", ["odd primes p with p = 3 mod 4", "\\heartsuit", "5 < x ~ y"])
def test_a_reference_that_is_no_formula_is_matched_by_its_text_only(gold):
    assert grade_answer(gold, gold).correct
    for answer in ("5", "\\sqrt{x}", "(1,2)", "no"):
        result = grade_answer(gold, answer)
        assert result.status in (GradeStatus.INCORRECT, GradeStatus.UNPARSED)


@pytest.mark.parametrize("gold", [None, 5, 0.5, b"5", [5], ["5", None], {"5": 1}, object()])
def test_a_reference_of_the_wrong_type_is_a_config_error(gold):
    for call in (grade, grade_answer):
        with pytest.raises(ConfigError, match="reference answer is a string"):
            call(gold, "\\boxed{5}")


@pytest.mark.parametrize("response", [None, 5, b"5", ["5"]])
def test_a_response_of_the_wrong_type_is_a_config_error(response):
    with pytest.raises(ConfigError, match="a response is a string"):
        grade("5", response)


@pytest.mark.parametrize("policy", [None, 5, ["strict"], {"tolerance": 1}, "stricter", b"strict"])
def test_a_policy_of_the_wrong_type_or_name_is_a_config_error(policy):
    for call in (grade, grade_answer):
        with pytest.raises(ConfigError, match="grading policy"):
            call("5", "5", policy)
    with pytest.raises(ConfigError, match="grading policy"):
        PolicyGrader(policy)


@pytest.mark.parametrize(
    "field",
    [
        {"round_to_gold": "yes"},
        {"tolerance": True},
        {"tolerance": float("nan")},
        {"tolerance": "1"},
        {"boxes": ["last"]},
        {"name": 5},
    ],
)
def test_policy_fields_of_the_wrong_type_are_config_errors(field):
    with pytest.raises(ConfigError, match="must be"):
        GradePolicy(**field)


def test_pairs_and_workers_of_the_wrong_kind_are_config_errors():
    with pytest.raises(ConfigError, match="each pair"):
        grade_many([("5", "5", "5")])
    with pytest.raises(ConfigError, match="each pair"):
        grade_many(["55"])
    for workers in (0, -1, "2", 1.5):
        with pytest.raises(ConfigError, match="workers"):
            grade_many([("5", "5")], workers=workers)


def test_an_answer_that_does_not_parse_counts_as_wrong():
    result = grade_answer("\\sqrt{x}", "\\frac{3}{")
    assert result.status is GradeStatus.UNPARSED
    assert result.counts


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=80), st.sampled_from(["5", "\\frac{1}{2}", "\\text{red}", "x+1"]))
def test_no_text_crashes_the_grader(text, gold):
    for result in (grade(gold, text), grade(gold, f"\\boxed{{{text}}}"), grade_answer(gold, text)):
        assert result.correct == (result.status is GradeStatus.CORRECT)
        assert result.status is not GradeStatus.INFRA


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=80))
def test_any_gold_equals_itself_or_is_reported(gold):
    result = grade_answer(gold, gold)
    assert result.correct or result.status in (GradeStatus.GOLD_ERROR, GradeStatus.NO_ANSWER)


def test_ordinary_answers_cost_little_and_start_nothing():
    script = """
import sys
from mathenv.grading import grade
from mathenv.grading.symbolic import shared_comparer
assert grade("72", "It is \\\\boxed{72}.").correct
assert not grade("72", "It is \\\\boxed{73}.").correct
assert grade("\\\\frac{3}{4}", "\\\\boxed{0.75}").correct
assert not {"sympy", "math_verify", "torch"} & set(sys.modules)
assert shared_comparer().pool.started == 0
"""
    subprocess.run([sys.executable, "-c", script], check=True)
