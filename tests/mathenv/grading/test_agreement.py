"""Agreement with published verdicts and self-match on whole data sets, where they exist."""

import json
import random
from pathlib import Path

import pytest

from mathenv.grading import grade, grade_answer
from mathenv.grading.validate import self_mismatches
from mathenv.problems import load_problems
from mathenv.types import GradeStatus, Problem

SHARED = Path(__file__).parents[4] / "shared"
CASES = SHARED / "cases" / "grader_cases.jsonl"
MATH_GOLDS = [
    "\\frac{3}{56}",
    "3\\sqrt{13}",
    "(6,31,-1)",
    "1 \\pm \\sqrt{19}",
    "204_5",
    "\\{1\\pm\\sqrt{5},-2\\}",
    "f(2) < f(1) < f(4)",
    "\\text{Evelyn}",
    "90^\\circ",
    "15\\mbox{ cm}^2",
    "2007 + \\frac\\pi 2",
    "\\begin{pmatrix} 0 & 3 \\\\ 0 & -1 \\end{pmatrix}",
    "[-1, -\\frac{1}{2}) \\cup (1, \\infty)",
    "10,\\!080",
    "a + b + c",
]


def test_golds_equal_themselves():
    problems = [Problem(id=str(i), question="?", answer=a) for i, a in enumerate(MATH_GOLDS)]
    assert self_mismatches(problems) == []


def test_self_mismatches_names_bad_golds():
    good, bad = (Problem(id=i, question="?", answer=a) for i, a in (("g", "5"), ("b", "  ")))
    (mismatch,) = self_mismatches([good, bad])
    assert mismatch.problem is bad
    assert mismatch.grade.status is GradeStatus.GOLD_ERROR


@pytest.mark.skipif(not CASES.exists(), reason="shared grader cases are not here")
def test_agreement_with_published_verdicts():
    rows = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
    rows = [r for r in rows if r["scope"] == "boxed_or_bare" and not r.get("policy")]
    assert len(rows) > 200
    false_positives, false_negatives = [], []
    for row in rows:
        prediction = row["prediction"] or ""
        judge = grade if row["kind"] == "response" or "boxed" in prediction else grade_answer
        correct = judge(row["gold"], prediction).correct
        if correct and not row["expected_equal"]:
            false_positives.append(row["id"])
        elif not correct and row["expected_equal"]:
            false_negatives.append(row["id"])
    assert false_positives == []
    assert 1 - len(false_negatives) / len(rows) >= 0.98, false_negatives


def _shared_problems():
    return [
        problem
        for name in ("gsm8k", "math")
        for split in ("train", "test")
        for problem in load_problems(name, split, data=SHARED / "data" / name)
    ]


@pytest.mark.skipif(not (SHARED / "data" / "math").exists(), reason="shared data are not here")
def test_every_gsm8k_and_math_answer_equals_itself():
    problems = _shared_problems()
    assert len(problems) > 20_000
    assert self_mismatches(problems) == []


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data" / "math").exists(), reason="shared data are not here")
def test_answers_with_one_wrong_digit_are_not_accepted():
    golds = sorted({p.answer for p in _shared_problems() if any(map(str.isdigit, p.answer))})
    rng = random.Random(0)
    for gold in rng.sample(golds, 400):
        place = rng.choice([i for i, char in enumerate(gold) if char.isdigit()])
        digit = rng.choice([d for d in "0123456789" if d != gold[place]])
        assert not grade_answer(gold, gold[:place] + digit + gold[place + 1 :]).correct
