"""The oracle and the replay, played through the real interpreter and grader."""

import asyncio

import pytest

from agents.base import Action, WeightedAgent
from agents.oracle import OracleAgent, ReplayAgent, ScriptedEpisode
from agents.rollout import CollectConfig, collect
from mathenv.errors import DataError
from mathenv.problems import words
from mathenv.store import TrajectoryStore, read_trajectories
from mathenv.types import FinishReason, Grade, GradeStatus, Problem, StopReason, Trajectory, Turn

CONFIG = CollectConfig(concurrency=8)


def acts(agent, question, observations, *, sample=0):
    async def run():
        async with agent.episode(question, sample=sample, seed=0) as episode:
            return [await episode.act(text) for text in [question, *observations]]

    return asyncio.run(run())


@pytest.fixture(scope="module")
def solved(interpreter, tmp_path_factory) -> list[Trajectory]:
    problems = words.load("train", count=40)
    file = tmp_path_factory.mktemp("oracle") / "t.jsonl"
    with TrajectoryStore(file) as store:
        agent = WeightedAgent(OracleAgent(problems))
        assert collect([agent], problems, store, CONFIG, interpreter=interpreter) == 0
    return list(read_trajectories(file))


def test_the_oracle_solves_every_words_problem(solved):
    assert len(solved) == 40
    assert [t.reward for t in solved] == [1.0] * 40
    assert {t.stop_reason for t in solved} == {StopReason.ANSWERED}
    assert max(len(t.turns) for t in solved) >= 3  # names carry over from cell to cell


def test_a_replay_repeats_actions_and_observations(solved, interpreter, tmp_path):
    problems = [t.problem for t in solved]
    with TrajectoryStore(tmp_path / "t.jsonl") as store:
        agent = WeightedAgent(ReplayAgent(solved))
        collect([agent], problems, store, CONFIG, interpreter=interpreter)
    replayed = {t.problem.id: t for t in read_trajectories(tmp_path / "t.jsonl")}
    for trajectory in solved:
        again = replayed[trajectory.problem.id]
        assert again.agent == "replay"
        assert (again.turns, again.grade) == (trajectory.turns, trajectory.grade)


def test_the_oracle_prints_the_answer_where_there_is_no_solution(interpreter, tmp_path):
    problem = Problem("p", "Half of one?", r"\frac{1}{2}")
    with TrajectoryStore(tmp_path / "t.jsonl") as store:
        collect(
            [WeightedAgent(OracleAgent([problem]))],
            [problem],
            store,
            CONFIG,
            interpreter=interpreter,
        )
    (trajectory,) = read_trajectories(tmp_path / "t.jsonl")
    assert trajectory.turns[-1].action == r"\boxed{\frac{1}{2}}"
    assert trajectory.reward == 1.0


def test_the_oracle_boxes_what_was_observed_not_what_it_knows():
    agent = OracleAgent([Problem("p", "Q", "42", solution=("6 * 7",))])
    _, answer, end = acts(agent, "Q", [" 41\n", ""])
    assert answer == Action(r"\boxed{41}")
    assert end is None


def test_a_replay_keeps_samples_apart_and_how_turns_ended():
    grade = Grade(False, GradeStatus.NO_ANSWER)
    stored = [
        Trajectory(
            Problem("p", "Q", "42"),
            "someone",
            sample,
            0,
            (Turn(f"turn of {sample}", finish=FinishReason.LENGTH),),
            StopReason.NO_ACTION,
            grade,
        )
        for sample in range(2)
    ]
    agent = ReplayAgent(stored, name="again")
    assert agent.name == "again"
    first, end = acts(agent, "Q", [""], sample=1)
    assert first == Action("turn of 1", FinishReason.LENGTH)
    assert end is None


def test_unknown_questions_are_errors():
    with pytest.raises(DataError, match="was not given this problem"):
        acts(OracleAgent([]), "Q", [])
    with pytest.raises(DataError, match="no stored trajectory is sample 3"):
        acts(ReplayAgent([]), "Q", [], sample=3)


def test_a_script_has_no_tokens():
    assert ScriptedEpisode([]).tokens() is None
