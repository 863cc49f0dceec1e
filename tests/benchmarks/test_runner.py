import json
from pathlib import Path

import pytest

from agents.scripted import OracleAgent, ReplayAgent
from benchmarks.runner import run_bench
from benchmarks.suites import Suite, find_suite
from mathenv.errors import ConfigError
from mathenv.store import read_trajectories


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Four problems of two levels, one with a reference solution of two cells."""
    rows = [
        {"question": "2 + 2?", "answer": "4", "level": "easy"},
        {"question": "Half?", "answer": r"\frac{1}{2}", "level": "hard"},
        {"question": "7 * 3?", "answer": "21", "level": "easy", "solution": ["x = 7", "x * 3"]},
        {"question": "A pair?", "answer": "(1, 2)", "level": "hard"},
    ]
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return find_suite(str(file))


def test_oracle_scores_everything_and_writes_the_results(suite: Suite, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    result = run_bench(
        suite,
        OracleAgent,
        tmp_path / "out",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert result.metrics.pass_at_1.value == 1.0
    assert result.metrics.excluded == 0
    assert result.mismatches == ()
    assert sorted(seen) == [(1, 4), (2, 4), (3, 4), (4, 4)]
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["metrics"]["pass_at_1"]["n"] == 4
    assert written["metrics"]["by_level"]["easy"]["value"] == 1.0
    assert written["environment"]["versions"]["mathenv"]
    assert written["environment"]["interpreter"]["python"]
    page = (tmp_path / "out" / "results.md").read_text()
    assert "| own | oracle | 4 | 100.0% | 51.0 to 100.0 | 0 |" in page


def test_a_second_run_plays_nothing_again(suite: Suite, tmp_path: Path) -> None:
    first = run_bench(suite, OracleAgent, tmp_path / "out")
    lines = (tmp_path / "out" / "trajectories.jsonl").read_bytes()
    calls: list[int] = []
    second = run_bench(
        suite, OracleAgent, tmp_path / "out", progress=lambda done, total: calls.append(done)
    )
    assert calls == []
    assert (tmp_path / "out" / "trajectories.jsonl").read_bytes() == lines
    assert second.metrics == first.metrics


def test_replay_gives_the_same_trajectories(suite: Suite, tmp_path: Path) -> None:
    run_bench(suite, OracleAgent, tmp_path / "out")
    stored = list(read_trajectories(tmp_path / "out"))
    run_bench(suite, ReplayAgent(stored), tmp_path / "replay")
    again = {t.problem.id: t for t in read_trajectories(tmp_path / "replay")}
    assert {k: t.turns for k, t in again.items()} == {t.problem.id: t.turns for t in stored}


def test_another_configuration_is_refused(suite: Suite, tmp_path: Path) -> None:
    run_bench(suite, OracleAgent, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"seed was 0, now 1.*--out"):
        run_bench(suite, OracleAgent, tmp_path / "out", seed=1)
    with pytest.raises(ConfigError, match="problems was 4, now 2"):
        run_bench(suite, OracleAgent, tmp_path / "out", limit=2)


def test_changed_rows_are_noticed(suite: Suite, tmp_path: Path) -> None:
    run_bench(suite, OracleAgent, tmp_path / "out")
    file = Path(suite.source)
    file.write_text(file.read_text().replace('"21"', '"22"'))
    with pytest.raises(ConfigError, match="problems_sha256"):
        run_bench(suite, OracleAgent, tmp_path / "out")


def test_foreign_trajectories_are_not_mixed_in(suite: Suite, tmp_path: Path) -> None:
    run_bench(suite, OracleAgent, tmp_path / "out")
    (tmp_path / "out" / "config.json").unlink()
    with pytest.raises(ConfigError, match="unknown origin"):
        run_bench(suite, OracleAgent, tmp_path / "out")


def test_reference_answers_that_fail_are_listed(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    # A reference answer that is empty to the grader.
    rows = [{"question": "a?", "answer": "4"}, {"question": "b?", "answer": "$$"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run_bench(find_suite(str(file)), OracleAgent, tmp_path / "out")
    assert [m.problem.question for m in result.mismatches] == ["b?"]
    assert result.metrics.excluded == 1
    assert result.metrics.pass_at_1.n == 1
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["status"] for row in written["self_mismatches"]] == ["gold_error"]
    assert "do not grade as equal to themselves" in (tmp_path / "out" / "results.md").read_text()


def test_samples_must_be_positive(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one sample"):
        run_bench(suite, OracleAgent, tmp_path / "out", samples=0)
