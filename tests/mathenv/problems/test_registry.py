import importlib.metadata
import subprocess
import sys

import pytest

from mathenv.errors import ConfigError, DataError
from mathenv.problems import base, load_problems, problem_sources, register_problems
from mathenv.types import Problem

PROBLEMS = tuple(Problem(id=str(n), question=f"{n}?", answer=str(n)) for n in range(20))


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(base, "_SOURCES", dict(base._SOURCES))


def test_known_sources():
    assert {"gsm8k", "math", "words"} <= set(problem_sources())
    with pytest.raises(ConfigError, match=r"unknown problem source 'gsm9k' .*use one of .*gsm8k"):
        load_problems("gsm9k")


def test_registering_a_source(registry):
    calls = []

    @register_problems("mine")
    def load(split, *, data=None, limit=None, seed=0):
        calls.append((split, data, limit, seed))
        return PROBLEMS

    assert load_problems("mine", "dev", limit=3, seed=5, data="somewhere")
    assert [(split, str(data), *rest) for split, data, *rest in calls] == [
        ("dev", "somewhere", 3, 5)
    ]
    assert register_problems("mine")(load) is load  # the same function again is fine
    with pytest.raises(ConfigError, match="already registered"):
        register_problems("mine")(lambda split, *, data, limit, seed: PROBLEMS)


def test_entry_points(tmp_path):
    """An installed distribution adds a source by metadata alone."""
    info = tmp_path / "thirdparty-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thirdparty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mathenv.problems]\ntheirs = thirdparty:load\n")
    (tmp_path / "thirdparty.py").write_text(
        "from mathenv.types import Problem\n"
        "def load(split, *, data=None, limit=None, seed=0):\n"
        "    return [Problem(id='t', question='?', answer=split)]\n"
    )
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from mathenv.problems import load_problems, problem_sources\n"
        "assert 'theirs' in problem_sources()\n"
        "(problem,) = load_problems('theirs', 'dev')\n"
        "assert problem.answer == 'dev'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    assert base.ENTRY_POINT_GROUP == "mathenv.problems"
    assert importlib.metadata.entry_points(group="mathenv.problems", name="theirs") == ()


def test_a_sequence_is_taken_as_it_is():
    assert load_problems(PROBLEMS) == PROBLEMS
    assert load_problems(list(PROBLEMS[:1])) == PROBLEMS[:1]
    with pytest.raises(ConfigError, match="expected Problem values, found dict"):
        load_problems([{"question": "?"}])
    with pytest.raises(DataError, match="no problem in split 'test'"):
        load_problems([])
    with pytest.raises(DataError, match="two problems have the id '0'"):
        load_problems([PROBLEMS[0], PROBLEMS[0]])


def test_limit_draws_with_the_seed_and_keeps_order():
    draws = [load_problems(PROBLEMS, limit=5, seed=seed) for seed in range(4)]
    assert any(draw != draws[0] for draw in draws)
    for draw in draws:
        assert len(draw) == 5
        assert [int(p.id) for p in draw] == sorted(int(p.id) for p in draw)
    assert load_problems(PROBLEMS, limit=5, seed=1) == load_problems(PROBLEMS, limit=5, seed=1)
    assert load_problems(PROBLEMS, limit=99) == PROBLEMS
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        load_problems(PROBLEMS, limit=0)


def test_words_are_generated():
    problems = load_problems("words", "train", limit=7, seed=3)
    assert len(problems) == 7
    assert problems == load_problems("words", "train", limit=7, seed=3)
    with pytest.raises(ConfigError, match="leave out data="):
        load_problems("words", data="somewhere")


def test_importing_problems_loads_no_heavy_package():
    script = (
        "import sys, mathenv.problems\n"
        "assert not {'datasets', 'torch', 'pyarrow', 'sympy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
