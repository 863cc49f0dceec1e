import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mathenv.errors import ConfigError, DataError
from mathenv.problems import load_problems
from mathenv.problems.gsm8k import evaluate, solution_cells

SHARED = Path(__file__).parents[4] / "shared" / "data" / "gsm8k"
ROWS = [
    {
        "question": "Weng earns $12 an hour. How much does she earn in 50 minutes?",
        "answer": "She earns 12/60 = $<<12/60=0.2>>0.2 a minute.\n"
        "So 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10",
    },
    {"question": "How many grams are a kilogram and 80 g?", "answer": "Just add.\n#### 1,080"},
]
PRINT = re.compile(r"print\((?:round\()?[0-9+\-*/(). ]+(?:, [0-9]\))?\)*")


def printed(cell):
    """Run an arithmetic print: the pattern admits digits and operators only."""
    assert PRINT.fullmatch(cell), cell
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(cell, "cell", "exec"), {"__builtins__": {"print": print, "round": round}})
    return output.getvalue().strip()


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    """A folder laid out like the hub repository openai/gsm8k."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "gsm8k"
    (folder / "main").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: main\n  data_files:\n"
        "  - split: train\n    path: main/train-*\n  - split: test\n    path: main/test-*\n---\n"
    )
    for split in ("train", "test"):
        table = pyarrow.Table.from_pylist(ROWS)
        pyarrow.parquet.write_table(table, folder / "main" / f"{split}-00000-of-00001.parquet")
    return folder


def check(problems):
    first, second = problems
    assert first.question == ROWS[0]["question"]
    assert (first.answer, second.answer) == ("10", "1080")
    assert first.solution == ("print(12/60)", "print(round(0.2*50))")
    assert second.solution == ()
    assert first.metadata["solution"] == ROWS[0]["answer"]
    assert (first.source, first.split) == ("gsm8k", "test")


def test_published_rows_from_a_file_and_a_folder(tmp_path):
    path = write_jsonl(tmp_path / "test.jsonl", ROWS)
    check(load_problems("gsm8k", data=path))
    check(load_problems("gsm8k", "test", data=str(tmp_path)))
    assert [p.id for p in load_problems("gsm8k", data=path)] == ["gsm8k/test/0", "gsm8k/test/1"]


def test_the_hub_layout_is_read_through_datasets(hub_folder):
    check(load_problems("gsm8k", "test", data=hub_folder))
    with pytest.raises(ConfigError, match="validation"):
        load_problems("gsm8k", "validation", data=hub_folder)


def test_the_hub_id_takes_the_same_path(hub_folder, monkeypatch):
    monkeypatch.setattr("mathenv.problems.gsm8k.HUB_ID", str(hub_folder))
    check(load_problems("gsm8k", "test"))


def test_without_a_connection_the_error_names_the_way_out():
    script = """
import sys
from mathenv.errors import ConfigError
from mathenv.problems import load_problems
try:
    load_problems("gsm8k")
except ConfigError as error:
    assert "data=" in str(error) and "openai/gsm8k" in str(error), error
else:
    sys.exit("no error")
"""
    pytest.importorskip("datasets")
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent", "PATH": ""}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment, timeout=120)


def test_without_datasets_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[data\]".*data='):
        load_problems("gsm8k")


def test_rows_with_problem_and_answer(tmp_path):
    row = {"id": "a/1", "problem": "2+3?", "answer": "5", "solution": "<<2+3=5>>\n#### 5"}
    (problem,) = load_problems("gsm8k", data=write_jsonl(tmp_path / "test.jsonl", [row]))
    assert (problem.id, problem.answer, problem.solution) == ("a/1", "5", ("print(2+3)",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "2+3?"}, r"test.jsonl:1: no column 'answer'"),
        ({"question": "2+3?", "answer": "#### "}, r"test.jsonl:1: nothing follows"),
        ({"question": " ", "answer": "5"}, r"test.jsonl:1: column 'question' is empty"),
        ({"question": "2+3?", "answer": None}, r"test.jsonl:1: no column 'answer'"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load_problems("gsm8k", data=write_jsonl(tmp_path / "test.jsonl", [row]))


@pytest.mark.parametrize(
    ("solution", "answer", "cells"),
    [
        ("<<48/2=24>>, <<48+24=72>>", "72", ("print(48/2)", "print(48+24)")),
        ("<<1,000*3=3,000>>", "3000", ("print(1000*3)",)),
        ("<<50*20%=10>>", "10", ("print(round(50*(20/100)))",)),
        ("<<7/2=3.5>>", "3.5", ("print(round(7/2, 1))",)),
        ("<<.5*3=1.5>>", "1.5", ("print(round(.5*3, 1))",)),
        ("<<010+1=11>>", "11", ("print(10+1)",)),
        ("<<10/3=3.33>>", "3.33", ()),  # rounded: not exactly what it says
        ("<<2+3=5>>", "6", ()),  # another answer
        ("<<2+3=5>> <<x=5>>", "5", ()),
        ("<<2+3>>", "5", ()),
        ("<<1/0=5>>", "5", ()),
        ("<<2**9=512>>", "512", ()),
        ("no annotation", "5", ()),
    ],
)
def test_solution_cells(solution, answer, cells):
    assert solution_cells(solution, answer) == cells
    if cells:
        assert printed(cells[-1]) == answer


@pytest.mark.parametrize("text", ["", "2+", "x", "__import__('os')", "(1,2)", "9" * 300, "2//3"])
def test_evaluate_takes_arithmetic_only(text):
    with pytest.raises(ValueError, match="not plain arithmetic"):
        evaluate(text)


@pytest.mark.skipif(not SHARED.exists(), reason="shared data are not here")
def test_the_whole_data_set():
    problems = load_problems("gsm8k", "train", data=SHARED)
    assert len(problems) == 7473
    assert len({p.id for p in problems}) == 7473
    solved = [p for p in problems if p.solution]
    assert len(solved) > 6500
    for problem in solved[:1000]:
        assert printed(problem.solution[-1]) == problem.answer
