"""Problem files as people have them: formats, byte order marks, columns of other names."""

import gzip
import json
import random
import sys

import pytest

from mathenv.env import MathToolEnv
from mathenv.errors import ConfigError, DataError
from mathenv.problems import load_problems
from mathenv.problems.files import SUFFIXES, file_stem, file_suffix, read_file

ROWS = [
    {"question": "What is 6 * 7?", "answer": "42", "level": "1"},
    {"question": 'Say "a, b"\nand ½', "answer": "\\frac{1}{2}", "level": "2"},
]
BOM = b"\xef\xbb\xbf"


def _csv(rows, mark=","):
    def cell(text: str) -> str:
        return '"' + text.replace('"', '""') + '"'

    lines = [list(rows[0]), *([row[name] for name in rows[0]] for row in rows)]
    return "".join(mark.join(map(cell, line)) + "\r\n" for line in lines)


TEXTS = {
    "mine.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
    "mine.ndjson": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS),
    "mine.json": json.dumps(ROWS, indent=1),
    "lines.json": "\n".join(json.dumps(row) for row in ROWS),
    "mine.csv": _csv(ROWS),
    "semicolons.csv": _csv(ROWS, ";"),
    "tabs.csv": _csv(ROWS, "\t"),
    "MINE.CSV": _csv(ROWS),
    "mine.tsv": _csv(ROWS, "\t"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("mark", [b"", BOM])
@pytest.mark.parametrize("name", TEXTS)
def test_every_format_gives_the_same_problems(tmp_path, name, mark, zipped):
    content = mark + TEXTS[name].encode()
    path = tmp_path / (f"{name}.gz" if zipped else name)
    path.write_bytes(gzip.compress(content) if zipped else content)
    problems = load_problems(str(path))
    assert [(p.question, p.answer, p.level) for p in problems] == [
        (row["question"], row["answer"], row["level"]) for row in ROWS
    ]
    stem = name.split(".")[0]
    assert [p.id for p in problems] == [f"{stem}/0", f"{stem}/1"]
    assert problems[0].source == stem


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = {
        "Problem": [row["question"] for row in ROWS],
        "answer": [42, 7],
        "solution": [["6 * 7"], []],
        "seen": pyarrow.array([0, 86400], pyarrow.date32()),
        "share": [float("nan"), 0.5],
    }
    parquet.write_table(pyarrow.table(table), tmp_path / "mine.parquet", row_group_size=1)
    first, second = load_problems(tmp_path / "mine.parquet")
    assert (first.question, first.answer, first.solution) == (ROWS[0]["question"], "42", ("6 * 7",))
    assert first.metadata["share"] is None
    assert (second.id, second.answer, second.metadata["share"]) == ("mine/1", "7", 0.5)
    assert isinstance(second.metadata["seen"], str)
    (tmp_path / "mine.parquet").write_bytes(b"PAR1 is not enough")
    with pytest.raises(DataError, match=r"mine\.parquet: cannot be read as Parquet"):
        load_problems(tmp_path / "mine.parquet")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "mine.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs the package pyarrow, which the extra `data`"):
        load_problems(tmp_path / "mine.parquet")


@pytest.mark.parametrize(
    ("fields", "question", "answer"),
    [
        ({"problem": "q", "solution": "So \\boxed{1}, no, \\boxed{\\pi}."}, "q", "\\pi"),
        ({"problem": "q", "solution": "It is \\boxed 5."}, "q", "5"),
        ({"problem": "q", "solution": "42"}, "q", "42"),
        ({"question": "q", "answer": "6 * 7 = <<6*7=42>>42\n#### 1,042"}, "q", "1042"),
        ({"problem": "q", "solution": "We add.\n#### 12"}, "q", "12"),
        ({"prompt": "q", "target": 3.5}, "q", "3.5"),
        ({"input": "q", "label": "3"}, "q", "3"),
        ({"prompt": "q", "final_answer": "3", "solution": "\\boxed{4}"}, "q", "3"),
        ({"problem": "q", "expected_answer": "3", "target": "4"}, "q", "3"),
        ({"problem": "q", "answer": "3", "solution": "\\boxed{4}"}, "q", "3"),
        ({"question": "q", "problem": "r", "answer": "3"}, "q", "3"),
        ({"Question": "q", "ANSWER": "3"}, "q", "3"),
        ({" Problem": "q", "Final_Answer ": "3"}, "q", "3"),
        ({"question": "q", "answer": None, "ground_truth": "3"}, "q", "3"),
        ({"question": "q", "solution": ["1 + 2"], "answer": 3}, "q", "3"),
        (
            {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
             "reward_model": {"style": "rule", "ground_truth": "34"}},
            "q",
            "34",
        ),
    ],
)  # fmt: skip
def test_columns_of_the_usual_names(tmp_path, fields, question, answer):
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(fields))
    (problem,) = load_problems(path)
    assert (problem.question, problem.answer) == (question, answer)


def test_gsm8k_rows_bring_their_programs(tmp_path):
    path = tmp_path / "mine.jsonl"
    text = "Half: 48/2 = <<48/2=24>>24\nSum: 48+24 = <<48+24=72>>72\n#### 72"
    path.write_text(json.dumps({"question": "q", "answer": text}))
    (problem,) = load_problems(path)
    assert problem.solution == ("print(48/2)", "print(48+24)")
    assert problem.metadata == {"solution": text}


def test_what_is_not_used_stays(tmp_path):
    path = tmp_path / "mine.jsonl"
    row = {"problem": "q", "solution": "\\boxed{4}", "target": "3", "tag": [1], "Note": "x"}
    path.write_text(json.dumps(row))
    (problem,) = load_problems(path)
    assert problem.metadata == {
        "solution": "\\boxed{4}", "target": "3", "tag": [1], "Note": "x"
    }  # fmt: skip


def test_columns_of_unusual_names(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("Aufgabe,Ergebnis,answer\nq,3,no\n")
    columns = {"question": "Aufgabe", "answer": "Ergebnis"}
    (problem,) = load_problems(path, columns=columns)
    assert (problem.question, problem.answer) == ("q", "3")
    swapped = {"question": "answer", "answer": "Aufgabe"}
    assert load_problems(path, columns=swapped)[0].question == "no"
    with pytest.raises(ConfigError, match=r"no column \['Frage'\]; found \['Aufgabe', 'Ergebnis'"):
        load_problems(path, columns={"question": "Frage"})
    with pytest.raises(ConfigError, match=r"cannot say what holds \['anwser'\]"):
        load_problems(path, columns={"anwser": "Ergebnis"})
    with pytest.raises(ConfigError, match="named sources know theirs"):
        load_problems("words", columns=columns)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "q,a\n1,2\n", r"a\.csv:2: no column 'question' or 'problem'; found \['a', 'q'\]"),
        ("a.csv", "question,a\n1,2\n", r"a\.csv:2: no column 'answer'; found .* final_answer"),
        ("a.csv", "question,answer\n1,2,3\n", r"a\.csv:2: has more or fewer fields"),
        ("a.csv", "question,answer\n1\n", r"a\.csv:2: has more or fewer fields"),
        ("a.csv", 'question,answer\n1,2\n"x\ny,2\n', r"a\.csv:4: not valid CSV"),
        ("a.csv", "question,question\n1,2\n", r"a\.csv:1: two columns have one name"),
        ("a.csv", "question,answer\n1,\n", r"a\.csv:2: column 'answer' is empty"),
        ("a.csv", "question,answer\n", r"a\.csv: holds no problem"),
        ("a.csv", "", r"a\.csv: holds no problem"),
        ("a.json", '[{"question": "q", "answer": "1"}, 5]', r"a\.json\[1\]: expected a JSON"),
        ("a.json", '[{"question": "q",\n}]', r"a\.json:2: not valid JSON"),
        ("a.jsonl", '{"problem": "q", "solution": "We cannot."}', r"a\.jsonl:1: the solution has"),
        ("a.jsonl", '{"question": "q", "answer": "####"}', r"a\.jsonl:1: nothing follows"),
        ("a.jsonl", '{"prompt": [{"role": "user"}], "answer": 1}', r"a\.jsonl:1: column 'prompt'"),
        ("a.jsonl.gz", "plain", r"a\.jsonl\.gz: cannot be read"),
        ("a.csv", b"question,answer\n\xe9,1\n", r"a\.csv: cannot be read: .* save it as UTF-8"),
        ("a.csv", "question,answer\n½,1\n".encode("utf-16"), r"a\.csv: cannot be read"),
    ],
)  # fmt: skip
def test_errors_say_file_line_and_what_is_wanted(tmp_path, name, content, message):
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_problems(tmp_path / name)


def test_a_cut_gzip_file(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    text = "".join(json.dumps({"question": str(random.random()), "answer": "1"}) for _ in range(99))
    path.write_bytes(gzip.compress(text.encode())[:-20])
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: cannot be read"):
        load_problems(path)


def test_a_field_longer_than_the_csv_modules_limit(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f"question,answer\n{'x' * 200_000},1\n")
    assert len(load_problems(path)[0].question) == 200_000


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".csv.gz"])
def test_a_folder_holds_splits_of_any_format(tmp_path, suffix):
    content = TEXTS[f"mine{suffix.removesuffix('.gz')}"].encode()
    path = tmp_path / f"test{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    assert len(load_problems(tmp_path, "test")) == 2
    with pytest.raises(ConfigError, match=rf"has no train\.jsonl; it holds \['test{suffix}'\]"):
        load_problems(tmp_path, "train")
    rows = 'question,answer\n"Half of 2?",#### 1\n'
    (tmp_path / "train.csv").write_text(rows)
    assert load_problems("gsm8k", "train", data=tmp_path)[0].answer == "1"


def test_a_relative_name_is_a_path_by_its_suffix(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.csv").write_bytes(BOM + _csv(ROWS).encode())
    env = MathToolEnv("mine.csv", order="sequential")
    assert env.reset()[0] == "What is 6 * 7?"
    env.close()
    with pytest.raises(ConfigError, match=r"none\.csv does not exist: give a \.jsonl, \.json"):
        load_problems("none.csv")


def test_suffixes():
    assert [file_suffix(f"a{suffix}") for suffix in SUFFIXES] == list(SUFFIXES)
    assert (file_suffix("a.txt"), file_suffix("jsonl")) == ("", "")
    assert [file_stem(p) for p in map(__import__("pathlib").Path, ("a.b.csv.gz", "a.txt"))] == [
        "a.b",
        "a",
    ]


def test_rows_come_one_by_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\nbroken\n')
    rows = read_file(path)
    assert next(rows).fields == {"a": 1}
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        next(rows)
