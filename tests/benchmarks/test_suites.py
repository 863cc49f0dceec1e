import json
from pathlib import Path

import pytest

from benchmarks.suites import SUITES, find_suite, find_suites
from mathenv.errors import ConfigError

SHARED = Path(__file__).parents[3] / "shared" / "data"


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
    with pytest.raises(ConfigError, match=r"use gsm8k, math, math500, svamp, .*words_ood"):
        find_suite("gsm9k")
    with pytest.raises(ConfigError, match="does not exist"):
        find_suite(str(tmp_path / "missing.jsonl")).load()
    with pytest.raises(ConfigError, match="no suite"):
        find_suites(" , ")
    with pytest.raises(ConfigError, match="one name"):
        find_suites("words,words")
    assert [s.name for s in find_suites("words, words_ood")] == ["words", "words_ood"]


def test_every_suite_of_the_field_is_here() -> None:
    wanted = "gsm8k math math500 svamp asdiv mawps gsm_hard aime24 aime25 amc23 words words_ood"
    assert set(wanted.split()) == set(SUITES)


@pytest.mark.parametrize("name", SUITES)
def test_every_suite_says_where_it_comes_from(name: str) -> None:
    suite = SUITES[name]
    assert suite.name == name
    assert suite.about
    assert suite.licence
    assert suite.size > 0
    assert bool(suite.hub) is not suite.generated
    for number in suite.published:
        assert 0 < number.score <= 100
        assert number.setting
        assert number.source.startswith(("arXiv ", "README of github.com/"))
    assert len({(n.system, n.setting, n.split) for n in suite.published}) == len(suite.published)


def test_the_paper_is_there_to_compare_with() -> None:
    """Table 1 of arXiv 2409.02392, a few cells read from it independently."""
    gsm8k = {n.system: n.score for n in SUITES["gsm8k"].published if "2409.02392" in n.source}
    math = {n.system: n.score for n in SUITES["math"].published if "2409.02392" in n.source}
    assert gsm8k.keys() == math.keys()
    assert len(gsm8k) == 27
    assert (gsm8k["Gemma-1.1-it-7B, SFT"], math["Gemma-1.1-it-7B, SFT"]) == (77.5, 46.1)
    best = "Gemma-1.1-it-7B, M-DPO iteration 3"
    assert (gsm8k[best], math[best]) == (83.9, 51.2)
    assert math["Gemma-2-it-9B, iterative M-KTO"] == 54.5


@pytest.mark.parametrize(
    ("suite", "source", "cells"),
    [
        ("gsm8k", "2309.17452", {"ToRA-70B": 84.3, "ToRA-Code-34B": 80.7}),
        ("math", "2309.17452", {"ToRA-70B": 49.7, "ToRA-Code-34B": 50.8}),
        ("gsm_hard", "2309.17452", {"ToRA-70B": 67.2, "ToRA-Code-34B": 63.7}),
        ("svamp", "2309.17452", {"ToRA-70B": 82.7, "ToRA-Code-34B": 80.5}),
        ("asdiv", "2309.17452", {"ToRA-70B": 86.8, "ToRA-Code-34B": 84.2}),
        ("mawps", "2309.17452", {"ToRA-70B": 93.8, "ToRA-Code-34B": 93.3}),
        ("math", "2409.12122", {"Qwen2.5-Math-7B-Instruct": 85.2}),
        ("aime24", "DeepSeek-R1", {"DeepSeek-R1": 79.8, "DeepSeek-R1-Distill-Qwen-7B": 55.5}),
        ("math500", "DeepSeek-R1", {"DeepSeek-R1": 97.3, "DeepSeek-R1-Distill-Qwen-7B": 92.8}),
        ("aime25", "open-thoughts", {"OpenThinker2-7B": 33.3, "OpenR1-Qwen-7B": 34.7}),
        ("amc23", "open-thoughts", {"OpenThinker2-7B": 89.5, "OpenR1-Qwen-7B": 88.5}),
    ],
)
def test_published_numbers_are_those_of_their_sources(suite: str, source: str, cells) -> None:
    """Cells read a second time in the papers' tables and the repositories' READMEs."""
    found = {n.system: n.score for n in SUITES[suite].published if source in n.source}
    assert cells.items() <= found.items()


def test_contests_are_counted_in_whole_problems() -> None:
    """Greedy scores of Qwen2.5-Math stand in its table 5 as problems solved."""
    for name in ("aime24", "amc23"):
        suite = SUITES[name]
        greedy = [n.score for n in suite.published if "2409.12122" in n.source]
        assert len(greedy) == 3
        for score in greedy:
            solved = score * suite.size / 100
            assert abs(solved - round(solved)) < 0.05


def test_a_part_of_mawps_keeps_its_own_numbers() -> None:
    part = find_suite("mawps", "addsub")
    assert part.split == "addsub"
    assert [(n.system, n.score) for n in part.published] == [("PaL, Codex", 92.5)]
    assert find_suite("mawps", "test") == SUITES["mawps"]


@pytest.mark.skipif(not SHARED.exists(), reason="shared data are not here")
@pytest.mark.parametrize("name", [n for n, suite in SUITES.items() if not suite.generated])
def test_the_published_size(name: str) -> None:
    assert len(find_suite(name).load(data=SHARED)) == SUITES[name].size
