"""What cannot be graded never becomes reward 0: from the grader to pairs and accuracy."""

import pytest

from benchmarks.metrics import summarize
from learners.preferences import PairRules, Selection, by_problem
from mathenv.env import MathToolEnv
from mathenv.grading import grader_for
from mathenv.types import Grade, GradeStatus, Problem, StopReason, Trajectory, Turn

BAD_GOLD = Problem(id="bad", question="?", answer="\\frac{3}{")
GOOD = Problem(id="good", question="?", answer="x+1")


def _episode(problem, action, grader):
    env = MathToolEnv([problem], grader=grader)
    try:
        env.reset(seed=0)
        _, reward, _, _, info = env.step(action)
        assert env.stop_reason is not None
        assert env.grade is not None
        trajectory = Trajectory(problem, "test", 0, 0, (Turn(action),), env.stop_reason, env.grade)
    finally:
        env.close()
    return trajectory, reward, info


def _broken(gold, response):
    return Grade(False, GradeStatus.INFRA, detail="the worker is gone")


@pytest.mark.parametrize(("problem", "grader"), [(BAD_GOLD, grader_for("strict")), (GOOD, _broken)])
def test_the_episode_is_excluded(problem, grader):
    trajectory, _, info = _episode(problem, "\\boxed{\\sqrt{y}}", grader)
    assert trajectory.stop_reason is StopReason.INFRA
    assert not trajectory.counts
    assert info["valid"] is False
    assert info["grade_status"] in ("gold_error", "infra")


def test_accuracy_and_pairs_leave_it_out_and_count_it():
    excluded, _, _ = _episode(BAD_GOLD, "\\boxed{\\sqrt{y}}", grader_for("strict"))
    right, reward, info = _episode(GOOD, "\\boxed{1+x}", grader_for("strict"))
    assert (reward, info["valid"]) == (1.0, True)
    metrics = summarize([right, excluded])
    assert metrics.pass_at_1.value == 1.0
    assert (metrics.episodes, metrics.excluded) == (2, 1)
    assert metrics.exclusions == {"gold_error": 1}
    report = Selection()
    groups = by_problem([right, excluded], PairRules(), report)
    assert [t.key for group in groups.values() for t in group] == [right.key]
    assert report.excluded_infra == 1
