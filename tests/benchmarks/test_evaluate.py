"""`evaluate` gives in memory what `run_bench` gives on disk."""

from dataclasses import replace
from pathlib import Path

import pytest

from agents.base import SamplingParams
from agents.oracle import OracleAgent
from agents.tiny import TinyConfig, make_tiny
from benchmarks.evaluate import evaluate
from benchmarks.results import read_result
from mathenv.errors import ConfigError
from mathenv.problems import words
from mathenv.types import Problem

PROBLEMS = words.load("test", count=6)
SMALL = TinyConfig(hidden=16, layers=1, heads=1, intermediate=16, vocab=300)


def test_an_agent_on_a_suite_in_memory_and_in_a_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    agent = OracleAgent(words.load("test"))
    seen: list[int] = []
    result = evaluate(agent, "words", limit=6, progress=lambda done, total: seen.append(done))
    assert result.metrics.pass_at_1.value == 1.0
    assert (len(result.trajectories), seen) == (6, [1, 2, 3, 4, 5, 6])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="played in memory"):
        _ = result.folder
    stored = evaluate(agent, "words", limit=6, out="run")
    assert stored.metrics == result.metrics
    assert stored.config == result.config
    read = read_result(Path("run"))
    assert replace(stored, trajectories=()) == read


def test_problems_of_ones_own_and_a_grading_policy() -> None:
    problems = [Problem("a", "A third?", r"\frac{1}{3}"), Problem("b", "Two?", "2")]
    said = OracleAgent([replace(problems[0], answer="0.33333"), problems[1]])
    assert evaluate(said, problems).metrics.pass_at_1.value == 0.5
    assert evaluate(said, problems, grading="paper").metrics.pass_at_1.value == 1.0


def test_a_model_folder_is_loaded_and_sampled_greedily_or_not(tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "model", config=SMALL)
    how = SamplingParams(temperature=0.0, max_turn_tokens=4, max_tokens=200)
    once = evaluate(folder, PROBLEMS[:2], sampling=how)
    assert once.agent == "model"
    assert all(t.tokens is not None for t in once.trajectories)
    assert once.config["agent"]["sampling"]["temperature"] == 0.0
    twice = evaluate(folder, PROBLEMS[:1], 2, sampling=replace(how, temperature=1.0))
    assert len({t.tokens.ids for t in twice.trajectories if t.tokens}) == 2


def test_settings_of_a_model_are_refused_with_an_agent() -> None:
    with pytest.raises(ConfigError, match="settings for a model"):
        evaluate(OracleAgent(PROBLEMS), PROBLEMS, sampling=SamplingParams())
    with pytest.raises(ConfigError, match="split chooses among"):
        evaluate(OracleAgent(PROBLEMS), PROBLEMS, split="train")
