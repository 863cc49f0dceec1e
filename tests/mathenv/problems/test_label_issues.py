import json
from importlib.resources import files
from pathlib import Path

import pytest

from mathenv.problems import flag_label_issue, has_label_issue, load_problems
from mathenv.problems.label_issues import FILE, question_hash
from mathenv.types import Problem

SHARED = Path(__file__).parents[4] / "shared" / "data"
LISTED = json.loads(files("mathenv.problems").joinpath(FILE).read_text())
APPLES = (
    "Rachel's tree had 4 apples. She picked 2 apples from her tree. "
    "Thereafter 3 new apples grew on the tree. How many apples are there on the tree now?"
)


def test_a_row_is_known_by_question_and_label():
    wrong = flag_label_issue(Problem("x", APPLES.replace(". ", ".\n "), "1"))
    assert "gives 5" in wrong.metadata["label_issue"]
    assert "arkilpatel/SVAMP" in wrong.metadata["label_issue_source"]
    assert not has_label_issue(flag_label_issue(Problem("x", APPLES, "5")))
    assert not has_label_issue(flag_label_issue(Problem("x", "1 + 1?", "2")))


def test_what_the_row_says_stays(tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [
        {"question": APPLES, "answer": "1", "label_issue": "mine"},
        {"question": APPLES + " ", "answer": "1"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own, listed = load_problems(path)
    assert own.metadata["label_issue"] == "mine"
    assert has_label_issue(listed)


def test_the_list_is_well_formed():
    assert len({(row["question_sha256"], row["answer"]) for row in LISTED}) == len(LISTED)
    assert all(row["issue"] and row["source"] for row in LISTED)


@pytest.mark.skipif(not SHARED.exists(), reason="shared data are not here")
def test_every_listed_row_is_found_in_the_data():
    rows = {
        problem.id: problem
        for name, split in [
            ("gsm8k", "train"),
            ("gsm8k", "test"),
            ("math", "train"),
            ("math", "test"),
            ("svamp", "test"),
            ("mawps", "test"),
        ]
        for problem in load_problems(name, split, data=SHARED / name)
    }
    for row in LISTED:
        problem = rows[row["id"]]
        assert question_hash(problem.question) == row["question_sha256"]
        assert problem.answer == row["answer"]
        assert problem.metadata["label_issue"] == row["issue"]
    assert sum(map(has_label_issue, rows.values())) == len(LISTED)
    # The corrections that NeMo-Skills publishes.
    assert sum("NeMo-Skills" in row["source"] for row in LISTED) == 11
