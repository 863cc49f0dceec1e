"""Every source reads the published layout, from a file and through `datasets`, and our copies."""

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mathenv.errors import ConfigError, DataError
from mathenv.problems import (
    aime24,
    aime25,
    amc23,
    asdiv,
    gsm_hard,
    has_label_issue,
    load_problems,
    math500,
    mawps,
    svamp,
)
from mathenv.problems.values import contest, plain_number

SHARED = Path(__file__).parents[4] / "shared" / "data"
AOPS = "https://artofproblemsolving.com/wiki/index.php/"

# name: (module, a row as published, (id, question, answer, subject, level))
PUBLISHED = {
    "svamp": (
        svamp,
        {
            "ID": "chal-1",
            "Body": "A jar holds 9 nuts",
            "Question": "How many are left after 4?",
            "Equation": "( 9.0 - 4.0 )",
            "Answer": "5.0",
            "Type": "Subtraction",
        },
        ("svamp/chal-1", "A jar holds 9 nuts. How many are left after 4?", "5", "Subtraction", ""),
    ),
    "asdiv": (
        asdiv,
        {
            "body": "Ann has 7 red and 2 green pens.",
            "question": "How many pens has she?",
            "solution_type": "Addition",
            "answer": "9 (pens)",
            "formula": "7+2=9",
        },
        (
            "asdiv/0",
            "Ann has 7 red and 2 green pens. How many pens has she?",
            "9",
            "Addition",
            "",
        ),
    ),
    "gsm_hard": (
        gsm_hard,
        {"input": "Half of 5?", "code": "def solution():\n    return 2.5", "target": 2.5},
        ("gsm_hard/0", "Half of 5?", "2.5", "", ""),
    ),
    "math500": (
        math500,
        {
            "problem": "Two?",
            "solution": "$\\boxed{2}$",
            "answer": "2",
            "subject": "Algebra",
            "level": 3,
            "unique_id": "test/algebra/7.json",
        },
        ("math500/test/algebra/7", "Two?", "2", "Algebra", "Level 3"),
    ),
    "aime24": (
        aime24,
        {
            "id": 60,
            "problem": "Three?",
            "solution": "\\boxed{003}",
            "url": f"{AOPS}2024_AIME_II_Problems/Problem_1",
        },
        ("aime24/60", "Three?", "3", "AIME II", ""),
    ),
    "aime25": (
        aime25,
        {"id": "0", "problem": "Four?", "answer": "4"},
        ("aime25/0", "Four?", "4", "", ""),
    ),
    "amc23": (
        amc23,
        {
            "id": 0,
            "question": "Five?",
            "answer": 5.0,
            "url": f"{AOPS}2023_AMC_12B_Problems/Problem_2",
        },
        ("amc23/0", "Five?", "5", "AMC 12B", ""),
    ),
}
COUNTS = {
    "svamp": 1000,
    "asdiv": 2215,
    "gsm_hard": 1319,
    "math500": 500,
    "aime24": 30,
    "aime25": 30,
    "amc23": 40,
    "mawps": 2065,
}


def described(problem):
    return (problem.id, problem.question, problem.answer, problem.subject, problem.level)


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def hub_folder(folder, row, splits):
    """A folder laid out like a hub repository with one configuration."""
    (folder / "data").mkdir(parents=True)
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in splits:
        table = pyarrow.Table.from_pylist([row])
        pyarrow.parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
        lines += [f"  - split: {split}", f"    path: data/{split}-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_rows_from_a_file(name, tmp_path):
    _, row, expected = PUBLISHED[name]
    path = write_jsonl(tmp_path / "test.jsonl", [row])
    for data in (path, tmp_path):
        (problem,) = load_problems(name, data=data)
        assert described(problem) == expected
        assert (problem.source, problem.split) == (name, "test")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_hub_layout_is_read_through_datasets(name, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    module, row, expected = PUBLISHED[name]
    distinct = {k: v for k, v in row.items() if k not in ("ID", "id")}
    folder = hub_folder(tmp_path / name, row if name != "svamp" else distinct, ["train", "test"])
    if "validation" in module.SPLITS["test"]:
        folder = hub_folder(tmp_path / "other", row, ["validation"])
    monkeypatch.setattr(module, "HUB_ID", str(folder))
    if name == "svamp":  # both of the repository's splits make up ours
        with pytest.raises(DataError, match="two problems have the id"):
            load_problems(name)
        folder = hub_folder(tmp_path / "ids", row, ["train"])
        table = pyarrow.Table.from_pylist([{**row, "ID": "chal-2"}])
        pyarrow.parquet.write_table(table, folder / "data" / "test-00000-of-00001.parquet")
        (folder / "README.md").unlink()
        monkeypatch.setattr(module, "HUB_ID", str(folder))
        assert [p.id for p in load_problems(name)] == ["svamp/chal-1", "svamp/chal-2"]
        return
    (problem,) = load_problems(name)
    assert described(problem) == expected


def test_a_split_that_the_repository_has_not(tmp_path):
    with pytest.raises(ConfigError, match="has the splits test, not 'train'"):
        load_problems("svamp", "train", data=tmp_path)


def test_mawps_is_its_four_parts(tmp_path):
    for number, part in enumerate(mawps.PARTS):
        write_jsonl(tmp_path / f"{part}.jsonl", [{"input": f"{part}?", "target": number + 0.5}])
    problems = load_problems("mawps", data=tmp_path)
    assert [p.subject for p in problems] == list(mawps.PARTS)
    assert [p.id for p in problems] == [f"mawps/{part}/0" for part in mawps.PARTS]
    assert problems[1].answer == "1.5"
    assert load_problems("mawps", "singleop", data=tmp_path) == problems[1:2]
    (tmp_path / "addsub.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"neither test.jsonl nor addsub.jsonl"):
        load_problems("mawps", data=tmp_path)
    with pytest.raises(ConfigError, match="mawps has the splits test, singleeq"):
        load_problems("mawps", "train", data=tmp_path)


def test_mawps_files_are_read_by_datasets(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(mawps, "FILES", str(tmp_path))
    for part in mawps.PARTS:
        write_jsonl(tmp_path / f"{part}.jsonl", [{"input": f"{part}?", "target": 3.0}])
    assert [p.answer for p in load_problems("mawps")] == ["3"] * 4


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ("9 (apples)", "9"),
        ("-(1/3)", "-1/3"),
        ("5:6", "5:6"),
        ("Ann", "Ann"),
        ("1,200 (m)", "1200"),
    ],
)
def test_asdiv_answers(raw, answer, tmp_path):
    row = {"body": "A.", "question": "B?", "answer": raw}
    path = write_jsonl(tmp_path / "test.jsonl", [row, {**row, "answer": "5; 3"}])
    assert [p.answer for p in load_problems("asdiv", data=path)] == [answer]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("145.0", "145"),
        ("033", "33"),
        ("-0", "0"),
        ("1,000", "1000"),
        ("0.30000000000000004", "0.3"),
        ("1806106.8000000003", "1806106.8"),
        ("55938720.00000001", "55938720"),
        ("388147.4117647059", "388147.4117647059"),
        ("14053029.666666666", "14053029.666666666"),
        ("2.0107e-06", "0.0000020107"),
        ("1e22", "10000000000000000000000"),
        ("nan", "nan"),
        ("3/4", "3/4"),
        ("12:30", "12:30"),
    ],
)
def test_numbers_without_float_noise(text, written):
    assert plain_number(text) == written


def test_contests():
    assert contest(f"{AOPS}2024_AIME_I_Problems/Problem_12") == "AIME I"
    assert contest("https://example.org") == ""


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_without_an_answer_is_named(name, tmp_path):
    row = {**PUBLISHED[name][1], "answer": None, "Answer": None, "target": None, "solution": None}
    path = write_jsonl(tmp_path / "test.jsonl", [PUBLISHED[name][1], row])
    with pytest.raises(DataError, match=r"test\.jsonl:2: no column"):
        load_problems(name, data=path)


@pytest.mark.skipif(not SHARED.exists(), reason="shared data are not here")
@pytest.mark.parametrize("name", COUNTS)
def test_the_whole_data_set(name):
    problems = load_problems(name, data=SHARED / name)
    assert len({p.id for p in problems}) == COUNTS[name]
    assert all(p.question and p.answer for p in problems)
    parts = Counter(p.subject for p in problems)
    if name == "mawps":
        assert parts == {"singleeq": 508, "singleop": 562, "addsub": 395, "multiarith": 600}
    if name == "aime24":
        assert parts == {"AIME I": 15, "AIME II": 15}


@pytest.mark.skipif(not SHARED.exists(), reason="shared data are not here")
def test_the_two_gsm_hard_files_agree():
    first = load_problems("gsm_hard", data=SHARED / "gsm_hard" / "test.jsonl")
    second = load_problems("gsm_hard", data=SHARED / "gsm_hard" / "v2.jsonl")
    assert [p.answer for p in first] == [p.answer for p in second]


def test_negative_gsm_hard_answers_are_flagged(tmp_path):
    rows = [
        {"input": "How many eggs?", "target": -3.0},
        {"input": "How many eggs?", "target": 3.0},
        {"input": "How many degrees was it?", "target": -3.0},
    ]
    path = write_jsonl(tmp_path / "test.jsonl", rows)
    flags = [has_label_issue(p) for p in load_problems("gsm_hard", data=path)]
    assert flags == [True, False, False]
