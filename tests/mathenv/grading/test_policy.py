import pickle
from dataclasses import FrozenInstanceError, replace

import pytest

from mathenv.errors import ConfigError
from mathenv.grading import PAPER, POLICIES, STRICT, GradePolicy, find_policy, grade, grade_answer
from mathenv.types import GradeStatus

# policy, gold, answer, verdict under it, verdict under `strict`
CHOICES = [
    ("strict,tolerance=1e-3", "1/3", "0.3334", True, False),
    ("strict,tolerance=1e-3", "\\sqrt{3}", "1.732", True, False),
    ("strict,tolerance=1e-3", "40\\pi", "125.66", True, False),
    ("strict,tolerance=1e-3", "5", "5.001", False, False),
    ("strict,float_noise=1e-3", "5.001", "5", True, False),
    ("strict,exact_tolerance=1e-4", "100000", "100001", True, False),
    ("strict,absolute_tolerance=0.01", "15.62", "15.63", True, False),
    ("strict,absolute_tolerance=0.01", "\\sqrt{13}", "3.61", True, False),
    ("strict,round_to_gold=true", "33.3", "\\frac{100}{3}", True, False),
    ("strict,round_to_gold=true", "33.3", "33.4", False, False),
    ("strict,round_to_gold=true", "33", "33.3", False, False),
    ("strict,percent=hundredth", "50\\%", "50", False, True),
    ("strict,percent=hundredth", "50\\%", "0.5", True, True),
    ("strict,percent=exact", "50\\%", "0.5", False, True),
    ("strict,percent=exact", "50\\%", "50.0\\%", True, True),
    ("strict,percent=factor", "50", "0.5", True, False),
    ("strict,percent=factor", "5", "500", True, False),
    ("strict,percent=factor", "\\frac{1}{2}", "50", False, False),
    ("strict,units=agree", "10\\text{ red marbles}", "10 marbles", False, True),
    ("strict,units=agree", "10\\text{ cm}", "10", True, True),
    ("strict,units=require", "10\\text{ cm}", "10", False, True),
    ("strict,units=require", "10\\text{ cm}", "10 cm", True, True),
    ("strict,order=ordered", "1,2,3", "3,2,1", False, True),
    ("strict,order=unordered", "(1,2,3)", "(3,2,1)", True, False),
    ("strict,brackets=ignore", "(1,2)", "[1,2]", True, False),
    ("strict,brackets=ignore", "(1,2)", "1,2", True, False),
    ("strict,require_reduced=true", "1/2", "2/4", False, True),
    ("strict,require_reduced=true", "1/2", "\\frac12", True, True),
    ("strict,require_reduced=true", "649", "3245/5", False, True),
    ("strict,require_reduced=true", "2", "\\sqrt{4}", False, True),
    ("strict,require_reduced=true", "2", "1+1", False, True),
    ("strict,decimal_comma=true", "2.74", "2,74", True, False),
    ("strict,decimal_comma=true", "2.74", "2,75", False, False),
    ("strict,symbols=any", "x=5", "y=5", True, False),
    ("paper", "5", "500", True, False),
    ("paper", "0.7", "70", True, False),
    ("paper", "\\frac{6}{7}", "0.8571", True, False),
    ("paper", "\\frac{6}{7}", "0.86", False, False),
    ("paper", "10000", "10001", True, False),
    ("paper", "(1,2)", "[1,2]", True, False),
    ("paper", "1,2", "2,1", False, True),
    ("math_verify", "1200_7", "1200_8", True, False),
    ("math_verify", "\\frac{1}{2004!}", "\\frac{1}{2006!}", True, False),
    ("math_verify", "(x+1)^2", "x^2+2x+1", True, True),
]


@pytest.mark.parametrize(("policy", "gold", "answer", "equal", "strictly"), CHOICES)
def test_each_choice_changes_what_it_says(policy, gold, answer, equal, strictly):
    result = grade_answer(gold, answer, policy)
    assert result.correct is equal, result
    assert grade_answer(gold, answer).correct is strictly


def test_boxes():
    response = "\\boxed{1} and \\boxed{2}"
    assert grade("2", response).correct
    assert not grade("1,2", response).correct
    assert grade("1,2", response, "strict,boxes=all").correct
    assert not grade("2", response, "strict,boxes=all").correct


@pytest.mark.parametrize(
    ("fallback", "response", "answer"),
    [
        ("none", "The answer is 42.", None),
        ("text", "The answer is 42.", "42"),
        ("text", "so $x = 3$ and therefore $x + 1 = 4$.", "x + 1 = 4"),
        ("text", "We get 3, then 1,234 eggs", "1,234"),
        ("text", "nothing here", None),
        ("number", "```output\n17\n```\nWe are done.", "17"),
        ("number", "```output\n17\n```\nThe answer is 18", "18"),
        ("number", "It is $x$, so 5 of 6", "6"),
        ("number", "Guess: 5, but \\boxed{7}", "7"),
        ("number", "<think>5</think> none", None),
    ],
)
def test_fallback(fallback, response, answer):
    assert grade("0", response, f"strict,fallback={fallback}").answer == answer


def test_several_golds_any_may_be_matched():
    assert grade(["7", "8"], "\\boxed{8}").correct
    assert not grade(["7", "8"], "\\boxed{9}").correct
    assert grade(["", "8"], "\\boxed{8}").correct
    assert grade(["", "8"], "\\boxed{9}").status is GradeStatus.INCORRECT
    for unusable in ([], [""], ["", " "]):
        assert grade(unusable, "\\boxed{9}").status is GradeStatus.GOLD_ERROR


def test_presets_are_named_and_recorded():
    assert list(POLICIES) == ["strict", "paper", "math_verify"]
    assert all(find_policy(name) is policy for name, policy in POLICIES.items())
    assert find_policy(STRICT) is STRICT
    record = PAPER.record()
    assert record["name"] == "paper"
    assert record["percent"] == "factor"
    assert record["digest"] == PAPER.digest
    assert len({policy.digest for policy in POLICIES.values()}) == 3
    assert replace(STRICT, name="other").digest == STRICT.digest
    assert replace(STRICT, tolerance=1e-5).digest != STRICT.digest


def test_the_defaults_are_strict():
    assert replace(GradePolicy(), name="strict") == STRICT
    assert grade("1/3", "\\boxed{0.333}") == grade("1/3", "\\boxed{0.333}", "strict")


def test_a_policy_is_a_frozen_value():
    with pytest.raises(FrozenInstanceError):
        STRICT.tolerance = 1.0
    assert pickle.loads(pickle.dumps(PAPER)) == PAPER
    assert hash(replace(STRICT)) == hash(STRICT)


@pytest.mark.parametrize(
    "text",
    [
        "lenient",
        "strict,speed=1",
        "strict,tolerance=much",
        "strict,boxes=first",
        "strict,tolerance=2",
    ],
)
def test_a_bad_policy_says_what_is_allowed(text):
    with pytest.raises(ConfigError, match=r"use|must be|is no"):
        find_policy(text)
