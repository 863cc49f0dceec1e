import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from mathenv.errors import ConfigError, DataError
from mathenv.problems import load_problems
from mathenv.problems.hendrycks_math import CONFIGS

SHARED = Path(__file__).parents[4] / "shared" / "data" / "math"
ROW = {
    "problem": "How many vertical asymptotes does $y=\\frac{2}{x^2+x-6}$ have?",
    "level": "Level 3",
    "type": "Algebra",
    "solution": "Not \\boxed{1} but one for each factor: $\\boxed{\\text{two } (2)}$.",
}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_published_rows(tmp_path):
    (problem,) = load_problems("math", data=write(tmp_path / "test.jsonl", ROW))
    assert problem.answer == "\\text{two } (2)"  # the last box
    assert (problem.level, problem.subject) == ("Level 3", "Algebra")
    assert problem.metadata["solution"] == ROW["solution"]
    assert problem.solution == ()


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"answer": "2"}, "2"),
        ({"solution": "So $\\boxed 5$."}, "5"),
        ({"solution": "So $\\fbox{3}$."}, "3"),
    ],
)
def test_other_spellings(tmp_path, changes, answer):
    (problem,) = load_problems("math", data=write(tmp_path / "test.jsonl", ROW | changes))
    assert problem.answer == answer


def test_a_row_without_an_answer_is_named(tmp_path):
    path = write(tmp_path / "test.jsonl", ROW, ROW | {"solution": "It is obvious."})
    with pytest.raises(DataError, match=r"test\.jsonl:2: the solution has no"):
        load_problems("math", data=path)


def test_the_hub_layout_is_read_subject_by_subject(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    lines = ["---", "configs:"]
    for config in CONFIGS:
        (folder / config).mkdir(parents=True)
        table = pyarrow.Table.from_pylist([ROW | {"type": config}, ROW | {"type": config}])
        pyarrow.parquet.write_table(table, folder / config / "test-00000-of-00001.parquet")
        lines += [f"- config_name: {config}", "  data_files:"]
        lines += ["  - split: test", f"    path: {config}/test-*"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    problems = load_problems("math", "test", data=folder)
    assert [p.subject for p in problems] == [c for c in CONFIGS for _ in range(2)]
    assert problems[1].id == "math/test/algebra/1"
    assert len({p.id for p in problems}) == 14


def test_missing_data_is_named(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_problems("math", data=tmp_path / "nowhere")


@pytest.mark.skipif(not SHARED.exists(), reason="shared data are not here")
@pytest.mark.parametrize(("split", "count"), [("train", 7500), ("test", 5000)])
def test_the_whole_data_set(split, count):
    problems = load_problems("math", split, data=SHARED)
    assert len({p.id for p in problems}) == count
    assert all(p.answer and p.subject and p.level for p in problems)
