"""Agreement with published and own verdicts, and whole data sets where they exist."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from mathenv.errors import DataError
from mathenv.grading import MATH_VERIFY, find_policy, grade_answer
from mathenv.grading.agreement import Agreement, Case, fitting_policy, read_cases
from mathenv.grading.validate import perturbed, self_match, self_mismatches
from mathenv.problems import load_problems
from mathenv.types import GradeStatus, Problem

HERE = Path(__file__).parent
SHARED = HERE.parents[3] / "shared"
CASES = SHARED / "cases" / "grader_cases.jsonl"
DATA = SHARED / "data"
OWN_CASES = [
    json.loads(line)
    for name in ("class_cases.jsonl", "more_cases.jsonl")
    for line in (HERE / name).read_text(encoding="utf-8").splitlines()
]
CLASSES = sorted({case["class"] for case in OWN_CASES})
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
needs_cases = pytest.mark.skipif(not CASES.exists(), reason="shared grader cases are not here")
needs_data = pytest.mark.skipif(not DATA.exists(), reason="shared data are not here")


@pytest.mark.parametrize("name", CLASSES)
def test_own_cases(name):
    wrong = [
        (case["gold"], case["answer"], case["equal"])
        for case in OWN_CASES
        if case["class"] == name
        and grade_answer(case["gold"], case["answer"]).correct is not case["equal"]
    ]
    assert wrong == []


def test_golds_equal_themselves():
    problems = [Problem(id=str(i), question="?", answer=a) for i, a in enumerate(MATH_GOLDS)]
    assert self_mismatches(problems) == []


def test_self_mismatches_names_bad_golds():
    good, bad = (Problem(id=i, question="?", answer=a) for i, a in (("g", "5"), ("b", "  ")))
    (mismatch,) = self_mismatches([good, bad])
    assert mismatch.problem is bad
    assert mismatch.grade.status is GradeStatus.GOLD_ERROR


@needs_cases
def test_agreement_with_published_verdicts():
    agreement = Agreement()
    for case in read_cases(CASES):
        if case.scope == "boxed_or_bare":
            ours = case.graded(case.policy)
            agreement.add(case, ours, ours)
    plain, _ = agreement.groups["boxed_or_bare", "", "strict"]
    assert plain.cases > 200
    assert plain.false_positives == []
    assert plain.agreement >= 0.98, plain.false_negatives
    reasons = json.loads((HERE / "disagreements.json").read_text(encoding="utf-8"))
    assert {case.id for case, _ in agreement.disagreements} <= set(reasons)


@needs_cases
def test_math_verify_alone_accepts_what_it_is_known_to_accept():
    known = {"g0568", "g0569"}  # 1/2004! for 1/2006!, 1/2^99 for 1/2^98
    cases = [case for case in read_cases(CASES) if case.id in known]
    assert [case.graded(MATH_VERIFY).correct for case in cases] == [True, True]
    assert [case.graded(case.policy).correct for case in cases] == [False, False]


def test_bad_cases_are_named(tmp_path):
    file = tmp_path / "cases.jsonl"
    file.write_text('{"gold": "1", "prediction": "1", "expected_equal": true}\n{"gold": "1"}\n')
    with pytest.raises(DataError, match=r"cases\.jsonl:2"):
        list(read_cases(file))


def test_a_case_is_graded_under_the_policy_it_depends_on():
    case = Case("1", "2.74", "2,74", True, "boxed_or_bare", tag="decimal_comma")
    assert fitting_policy(case).decimal_comma
    assert case.graded(case.policy).correct
    assert not case.graded(find_policy("strict")).correct


def _answers(*files):
    rows = (
        json.loads(line)
        for name in files
        for line in (DATA / name).read_text(encoding="utf-8").splitlines()
    )
    return sorted({row["answer"] for row in rows})


SMALL = [f"{name}/test.jsonl" for name in ("svamp", "asdiv", "mawps", "aime24", "aime25", "amc23")]


@needs_data
@pytest.mark.parametrize("file", [*SMALL, "gsm_hard/test.jsonl", "gsm8k/test.jsonl"])
def test_every_answer_of_the_word_problem_sets_equals_itself(file):
    answers = _answers(file)
    assert len(answers) >= 25
    assert [a for a in answers if not self_match(a).correct] == []


def _shared_problems():
    return [
        problem
        for name in ("gsm8k", "math")
        for split in ("train", "test")
        for problem in load_problems(name, split, data=DATA / name)
    ]


@needs_data
def test_every_gsm8k_and_math_answer_equals_itself():
    problems = _shared_problems()
    assert len(problems) > 20_000
    assert self_mismatches(problems) == []


@needs_data
def test_a_sample_of_answers_with_one_wrong_digit_is_not_accepted():
    pairs = list(perturbed(_answers("math/test.jsonl")))
    sample = random.Random(0).sample(pairs, 150)
    assert [pair for pair in sample if grade_answer(*pair).correct] == []


@needs_data
@pytest.mark.slow
def test_no_math_test_answer_with_one_wrong_digit_is_accepted():
    for seed in (0, 1):
        pairs = perturbed(_answers("math/test.jsonl"), seed)
        assert [pair for pair in pairs if grade_answer(*pair).correct] == []


def _recorded(name, policy="strict"):
    """Return how often the verdict equals the recorded score, and the pairs that differ."""
    rows = map(json.loads, (DATA / name).read_text(encoding="utf-8").splitlines())
    counts, seen = Counter(), {}
    for row in rows:
        pair = row["gold"], row["final_pred"]
        if row["score"] is None or len(pair[1]) > 40:
            continue  # long texts are tracebacks and loops: `mathenv grade` covers them
        if pair not in seen:
            seen[pair] = grade_answer(*pair, policy).correct
        same = seen[pair] == bool(row["score"])
        counts["same" if same else pair] += 1
    return counts


@needs_data
def test_recorded_scores_of_tora():
    counts = _recorded("trajectories_tora.jsonl")
    different = [pair for pair in counts if pair != "same"]
    # The record did not read thousands separators: 1,875 was not 1875.
    assert all(gold.replace(",", "") == answer for gold, answer in different)
    assert counts["same"] / counts.total() > 0.99


@needs_data
def test_recorded_scores_of_mathcoder():
    # The record used an absolute tolerance of 0.01 and compared what follows the last `=`.
    counts = _recorded("replay_mathcoder.jsonl", "strict,absolute_tolerance=0.01")
    different = {pair for pair in counts if pair != "same"}
    assert different <= {
        ("20x+23y+26z-69=0", "0"),
        ("5x-7y+11z+4=0", "0"),
        ("45.0", "{(b)}"),
        ("\\frac{3}{50}", "\\frac{1}{16}"),
    }
    assert counts["same"] / counts.total() >= 0.995
