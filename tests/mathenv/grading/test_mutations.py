"""Answers made wrong in one place: none is accepted, but for those that keep the meaning."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from mathenv.grading import STRICT, grade_answer
from mathenv.grading.exact import parse_number
from mathenv.grading.mutations import mutated, mutations

HERE = Path(__file__).parent
DATA = HERE.parents[3] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="shared data are not here")
KEPT = json.loads((HERE / "equal_mutations.json").read_text(encoding="utf-8"))
SAME = {(gold, changed) for reason in KEPT for gold, changed in reason["pairs"]}


def _lines(path):
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def _own_golds():
    return sorted({row["gold"] for row in _lines(HERE / "class_cases.jsonl")})


def _within_noise(gold, changed):
    """A digit beyond the tenth of a decimal is within the policy's `float_noise`."""
    first, second = parse_number(gold), parse_number(changed)
    if first is None or second is None or not (first.decimal or second.decimal):
        return False
    return abs(first.value - second.value) <= Fraction(STRICT.float_noise) * abs(first.value)


def _accepted(golds, seed):
    return [
        (kind, gold, changed)
        for kind, gold, changed in mutated(golds, seed)
        if (gold, changed) not in SAME
        and not _within_noise(gold, changed)
        and grade_answer(gold, changed).correct
    ]


@pytest.mark.parametrize(
    ("gold", "kinds"),
    [
        ("12", {"digit"}),
        ("x", {"case"}),
        ("a_n", {"case", "index"}),
        ("e^{x}", {"case", "exponent"}),
        ("\\sin 2", {"digit", "function"}),
        ("\\text{Evelyn}", set()),
        ("y-z", {"case", "sign"}),
    ],
)
def test_kinds(gold, kinds):
    made = list(mutations(gold))
    assert {kind for kind, _ in made} == kinds
    assert gold not in [changed for _, changed in made]
    assert made == list(mutations(gold))  # the seed fixes them


def test_those_that_keep_the_meaning_are_accepted():
    assert all(reason["reason"] for reason in KEPT)
    assert [pair for pair in sorted(SAME) if not grade_answer(*pair).correct] == []


@pytest.mark.slow
def test_no_own_reference_changed_in_one_place_is_accepted():
    golds = _own_golds()
    assert len(golds) > 600
    assert _accepted(golds, 0) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_no_own_reference_changed_in_other_places_is_accepted(seed):
    assert _accepted(_own_golds(), seed) == []


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_no_reference_of_any_data_set_changed_in_one_place_is_accepted(seed):
    files = [path for path in sorted(DATA.glob("*/*.jsonl")) if "templates" not in str(path)]
    golds = {str(row["answer"]) for path in files for row in _lines(path) if "answer" in row}
    assert len(golds) > 5000
    assert _accepted(sorted(golds), seed) == []
