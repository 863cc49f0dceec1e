import json
from pathlib import Path

import pytest

from benchmarks.suites import SUITES, find_suite, find_suites
from mathenv.errors import ConfigError


def _rows(path: Path, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", [n for n, suite in SUITES.items() if suite.generated])
def test_generated_suites_need_no_data(name: str, tmp_path: Path) -> None:
    problems = find_suite(name).load(data=tmp_path, limit=7)
    assert len(problems) == 7
    assert {p.split for p in problems} == {"test"}
    assert problems == find_suite(name).load(limit=7)


def test_data_may_hold_a_folder_per_suite(tmp_path: Path) -> None:
    row = {"question": "6*7?", "answer": "#### 42"}
    for folder in (tmp_path / "gsm8k", tmp_path / "math"):
        folder.mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps(row) + "\n")
    assert find_suite("gsm8k").load(data=tmp_path)[0].answer == "42"
    assert find_suite("gsm8k").load(data=tmp_path / "gsm8k")[0].answer == "42"


def test_own_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _rows(tmp_path / "mine" / "validation.jsonl", 3)
    assert len(find_suite(str(file)).load()) == 3
    assert find_suite(str(file)).name == "validation"
    assert len(find_suite(str(file.parent), "validation").load()) == 3
    monkeypatch.chdir(tmp_path)
    assert len(find_suite("mine", "validation").load()) == 3


def test_errors_name_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gsm8k, math, words"):
        find_suite("gsm9k")
    with pytest.raises(ConfigError, match="does not exist"):
        find_suite(str(tmp_path / "missing.jsonl")).load()
    with pytest.raises(ConfigError, match="no suite"):
        find_suites(" , ")
    with pytest.raises(ConfigError, match="one name"):
        find_suites("words,words")
    assert [s.name for s in find_suites("words, words_ood")] == ["words", "words_ood"]
