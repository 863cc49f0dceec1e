"""The trail of a grade: which rule looked at what, and which one decided."""

import json
from pathlib import Path

import pytest

from mathenv.grading import grade
from mathenv.grading.agreement import fitting_policy, read_cases
from mathenv.store import from_json, to_json
from mathenv.types import Grade, GradeStatus, Problem, StopReason, Trajectory

HERE = Path(__file__).parent
SHARED = HERE.parents[3] / "shared" / "cases"


def _decided(gold, answer, policy="strict"):
    explained = grade(gold, f"\\boxed{{{answer}}}", policy, explain=True)
    return explained, [step for step in explained.trail if step.decided]


@pytest.mark.parametrize(
    ("gold", "answer", "rule", "said"),
    [
        ("\\frac12", "\\frac{1}{2}", "string", "equal"),
        ("\\frac12", "0.5", "number", "equal"),
        ("1200_7", "1200_8", "base", "different"),
        ("3:05", "3:50", "clock", "different"),
        ("(C)", "D", "choice", "different"),
        ("\\text{Evelyn}", "Briana", "text", "different"),
        ("5", "five dogs", "prose", "different"),
        ("(x+1)^2", "x^2+2x+1", "algebra", "equal"),
        ("y > 2", "x > 2", "variables", "different: the variables differ"),
        ("x \\equiv 2 \\pmod 5", "x \\equiv 7 \\pmod 5", "congruences", "equal"),
        ("a+b = 7", "7", "statements", "different: an equation is expected"),
        ("2 hours 30 minutes", "150 minutes, 1 hour", "quantities", "different: by the sum"),
        ("A(1,2)", "B(1,2)", "points", "different: the points have different names"),
        ("x \\neq 3", "(-\\infty,3) \\cup (4,\\infty)", "sets of reals", "different"),
        ("(1,2)", "(1,2,3)", "structure", "different: 2 values expected, 3 given"),
        ("(\\ln 2, 1)", "(\\ln(4)/2, 1)", "structure", "equal"),
        ("\\sin^2 x", "1-\\cos^2 x", "symbolic", "equal: by value"),
        ("\\sin x", "\\cos x", "symbolic", "different: by value"),
        ("x < 2", "(-\\infty,2)", "other spelling", "equal"),
        ("", "5", "gold", "gold_error: empty reference answer"),
        ("5", " ", "extract", "no_answer"),
        ("5", "9" * 300, "limits", "limit: over the"),
    ],
)
def test_the_rule_that_decided_is_named(gold, answer, rule, said):
    _, steps = _decided(gold, answer)
    assert steps[0].rule == rule
    assert steps[0].said.startswith(said)


def test_math_verify_is_one_step():
    explained, steps = _decided("5", "5", "math_verify")
    assert list(explained.trail) == steps
    assert [step.rule for step in steps] == ["math_verify"]


def test_a_rule_that_hands_over_and_the_one_it_hands_to_are_both_marked():
    explained, steps = _decided("x = \\frac12", "0.5")
    assert [(s.rule, s.gold, s.answer, s.depth) for s in steps] == [
        ("statements", "x = \\frac12", "0.5", 0),
        ("number", "\\frac12", "0.5", 1),
    ]
    passed = [step.rule for step in explained.trail if step.said == "not mine"]
    assert passed[:2] == ["string", "number"]
    assert str(explained).splitlines()[-1] == "correct, decided by number"


def test_parts_stand_below_the_rule_that_took_them_apart():
    explained, _ = _decided("\\{1, 2\\}", "\\{2, 3\\}")
    parts = [(s.gold, s.answer) for s in explained.trail if s.depth == 1 and s.rule == "number"]
    assert parts == [("1", "2"), ("1", "3"), ("2", "3")]


def test_each_reference_has_its_steps():
    explained, steps = _decided(["", "6", "7"], "7")
    assert [(s.rule, s.gold) for s in steps] == [("gold", ""), ("number", "6"), ("string", "7")]
    assert explained.correct


def test_an_explained_grade_is_stored_as_a_grade():
    explained, _ = _decided("5", "5.0")
    problem = Problem(id="p", question="?", answer="5")
    row = to_json(Trajectory(problem, "agent", 0, 0, (), StopReason.ANSWERED, explained))
    assert from_json(row).grade == Grade(True, GradeStatus.CORRECT, "5.0", "number")


def _own_pairs():
    for name in ("class_cases.jsonl", "more_cases.jsonl"):
        for line in (HERE / name).read_text(encoding="utf-8").splitlines():
            case = json.loads(line)
            yield case["gold"], f"\\boxed{{{case['answer']}}}", "strict"


def _shared_pairs():
    for name in ("grader_cases.jsonl", "grader_cases_round2.jsonl"):
        for case in read_cases(SHARED / name) if SHARED.exists() else ():
            yield case.gold, case.prediction, fitting_policy(case)


def test_explaining_changes_no_verdict():
    for gold, response, policy in (*_own_pairs(), *_shared_pairs()):
        plain, explained = (grade(gold, response, policy, explain=e) for e in (False, True))
        ours, theirs = ((g.status, g.answer, g.tier, g.detail) for g in (plain, explained))
        if plain.status is GradeStatus.TIMEOUT:
            continue  # depends on the machine
        assert ours == theirs, (gold, response)
        assert any(step.decided for step in explained.trail)
