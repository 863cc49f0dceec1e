import json
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agents.base import Action, SamplingParams
from agents.chat import ChatAgent
from agents.oracle import OracleAgent, ReplayAgent
from benchmarks.agent_options import AgentOptions
from benchmarks.commands.bench import Bench
from benchmarks.runner import greedy, regraded, run_bench
from benchmarks.suites import Suite, find_suite
from mathenv.errors import ConfigError, InfraError
from mathenv.store import read_trajectories
from mathenv.types import Grade, GradeStatus, StopReason, Turn


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Four problems of two levels, one with a reference solution of two cells."""
    rows = [
        {"question": "2 + 2?", "answer": "4", "level": "easy", "subject": "whole"},
        {"question": "Half?", "answer": r"\frac{1}{2}", "level": "hard"},
        {"question": "7 * 3?", "answer": "21", "level": "easy", "subject": "whole"}
        | {"solution": ["x = 7", "x * 3"]},
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
    assert written["metrics"]["by_subject"]["whole"]["n"] == 2
    assert written["environment"]["packages"]["mathenv"]
    assert written["policy"]["name"] == "strict"
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


def test_a_run_from_before_there_was_a_protocol_was_the_papers(
    suite: Suite, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = run_bench(suite, OracleAgent, out, protocol="paper")
    assert first.config["protocol"] == "paper"
    config = json.loads((out / "config.json").read_text())
    del config["protocol"], config["say_empty"]
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"protocol was paper, now lenient"):
        run_bench(suite, OracleAgent, out)
    with pytest.raises(ConfigError, match=r"say_empty was False, now True"):
        run_bench(suite, OracleAgent, out, protocol="paper", say_empty=True)
    assert run_bench(suite, OracleAgent, out, protocol="paper").metrics == first.metrics


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
    assert [(m.id, m.answer) for m in result.mismatches] == [("bad/1", "$$")]
    assert result.metrics.excluded == 1
    assert result.metrics.pass_at_1.n == 1
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["status"] for row in written["mismatches"]] == ["gold_error"]
    assert written["metrics"]["exclusions"] == {"gold_error": 1}
    assert "do not grade as equal to themselves" in (tmp_path / "out" / "results.md").read_text()


def test_samples_must_be_positive(suite: Suite, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one sample"):
        run_bench(suite, OracleAgent, tmp_path / "out", samples=0)


class Hundredfold:
    """Says 100 times the answer, in words without a box."""

    def __init__(self, problems) -> None:
        self._answers = {p.question: p.answer for p in problems}

    @property
    def name(self) -> str:
        return "hundredfold"

    @asynccontextmanager
    async def episode(self, question: str, *, sample: int, seed: int):
        yield self

    async def act(self, observation: str) -> Action:
        return Action(f"The answer is {100 * int(self._answers[observation])}.")

    def tokens(self) -> None:
        return None


def test_another_policy_scores_the_same_run_again(tmp_path: Path) -> None:
    """The paper's grader takes what follows "answer is" and forgives the factor 100."""
    file = tmp_path / "own.jsonl"
    rows = [{"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = find_suite(str(file))
    strict = run_bench(suite, Hundredfold, tmp_path / "out")
    assert strict.metrics.pass_at_1.value == 0.0
    played: list[int] = []
    paper = run_bench(
        suite,
        Hundredfold,
        tmp_path / "out",
        policy="paper",
        progress=lambda done, total: played.append(done),
    )
    assert (paper.metrics.pass_at_1.value, played) == (1.0, [])
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["policy"]["name"] == "paper"
    assert "grading policy: paper" in (tmp_path / "out" / "results.md").read_text()
    # The store keeps the strict verdict, from which any policy starts again.
    assert run_bench(suite, Hundredfold, tmp_path / "out") == replace(
        strict, seconds=pytest.approx(0, abs=1e9)
    )


class Unsteady:
    """The oracle, on an engine that is down for some questions."""

    name = "unsteady"

    def __init__(self, problems, down) -> None:
        self._oracle, self.down, self.asked = OracleAgent(problems), down, 0

    @asynccontextmanager
    async def episode(self, question: str, *, sample: int, seed: int):
        self.asked += 1
        if question in self.down:
            raise InfraError("the engine is down")
        async with self._oracle.episode(question, sample=sample, seed=seed) as episode:
            yield episode


def test_an_episode_that_keeps_failing_does_not_stop_a_finished_run(suite, tmp_path) -> None:
    agent = Unsteady(suite.load(), {"Half?"})
    first = run_bench(suite, agent, tmp_path / "out")
    assert (first.metrics.excluded, first.metrics.pass_at_1.n) == (1, 3)
    agent.asked = 0
    assert run_bench(suite, agent, tmp_path / "out").metrics == first.metrics
    assert agent.asked == 3, "tried again, with two retries"
    paper = run_bench(suite, agent, tmp_path / "out", policy="paper")
    assert (agent.asked, paper.metrics.excluded) == (3, 1), "scored without playing"
    agent.down = set()
    mended = run_bench(suite, agent, tmp_path / "out", policy="paper")
    assert (mended.metrics.excluded, mended.metrics.pass_at_1.n) == (0, 4)


def test_failures_of_the_machinery_stay_out_under_every_policy(make_trajectory) -> None:
    broken = Grade(False, GradeStatus.INFRA, None, "", "the sandbox went away")
    run = replace(
        make_trajectory("a", False, infra=True),
        turns=(Turn(r"\boxed{4}"),),
        stop_reason=StopReason.INFRA,
        grade=broken,
    )
    for policy in ("strict", "paper", "math_verify"):
        (again,) = regraded([run], policy)
        assert not again.counts


def test_a_greedy_variant_shares_the_model() -> None:
    class Nobody:
        name = "nobody"

        async def reply(self, request):
            raise AssertionError("nobody is asked")

        def close(self) -> None: ...

    agent = ChatAgent(Nobody(), SamplingParams(temperature=1.0, max_turn_tokens=8), name="chat")
    once = greedy(agent)
    assert isinstance(once, ChatAgent)
    assert once.model is agent.model
    assert (once.sampling.temperature, agent.sampling.temperature) == (0.0, 1.0)
    assert (once.name, once.sampling.max_turn_tokens) == ("chat", 8)
    assert greedy(OracleAgent([])) is None


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"n": 4}, "--n 4"),
        ({"horizon": 4}, "--horizon 4"),
        ({"policy": "strict"}, "--policy strict"),
        ({"who": AgentOptions(temperature=0.7)}, "--temperature 0.7"),
    ],
)
def test_the_papers_setting_is_not_half_the_papers(flags, named: str) -> None:
    with pytest.raises(ConfigError, match=f"setting paper is one greedy sample.*leave out {named}"):
        Bench("words", setting="paper", **flags).run()


def test_the_papers_setting(tmp_path: Path, capsys) -> None:
    Bench("words", setting="paper", limit=2, out=tmp_path).run()
    written = json.loads((tmp_path / "words-oracle" / "results.json").read_text())
    assert (written["policy"]["name"], written["config"]["horizon"]) == ("paper", 6)
    assert written["config"]["samples"] == 1


def test_published_numbers_and_sizes_stand_beside(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "svamp"
    folder.mkdir(parents=True)
    row = {"id": "chal-1", "problem": "2 + 2?", "answer": "4", "type": "Addition"}
    (folder / "test.jsonl").write_text(json.dumps(row) + "\n")
    run_bench(find_suite("svamp"), OracleAgent, tmp_path / "out", data=tmp_path / "data")
    page = (tmp_path / "out" / "results.md").read_text()
    assert (
        "| PaL, Codex | 79.4% | few-shot, program, mean of 3 runs | arXiv 2211.10435, table 1 |"
        in page
    )
    assert "- problems: 1 of 1000 published" in page
    assert (tmp_path / "out" / "results.tex").read_text().startswith(r"\begin{tabular}")
