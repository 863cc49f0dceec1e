"""Failed episodes: kept apart, tried again, and a reason to stop only where they are news."""

from pathlib import Path

import pytest

from agents.episode_log import EpisodeLog, failed_path, read_collected
from mathenv.errors import InfraError
from mathenv.store import TrajectoryStore, read_trajectories
from mathenv.types import Grade, GradeStatus, Problem, StopReason, Trajectory


def episode(number: int, failed: str = "", agent: str = "a") -> Trajectory:
    """Return a finished episode, or one that failed with this reason."""
    return Trajectory(
        problem=Problem(f"p{number}", "?", "4"),
        agent=agent,
        sample=0,
        seed=0,
        turns=(),
        stop_reason=StopReason.INFRA if failed else StopReason.ANSWERED,
        grade=Grade(
            not failed, GradeStatus.INFRA if failed else GradeStatus.CORRECT, detail=failed
        ),
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "t.jsonl"


def play(file: Path, *episodes: Trajectory) -> int:
    """File the episodes in one call of a collector; return how many failed."""
    with TrajectoryStore(file) as store:
        with EpisodeLog(store, {t.key for t in episodes}) as log:
            for one in episodes:
                log.add(one)
        return log.check()


def finished(*numbers: int) -> list[Trajectory]:
    return [episode(n) for n in numbers]


def failed(*numbers: int, reason: str = "down") -> list[Trajectory]:
    return [episode(n, reason) for n in numbers]


def keys(trajectories: list[Trajectory]) -> list[str]:
    return [t.key for t in trajectories]


def test_what_fails_again_never_makes_a_finished_run_fail(file):
    for rest in (39, 1):
        store = file.with_name(f"{rest}.jsonl")
        assert play(store, *finished(*range(rest)), *failed(99)) == 1
        for _ in range(3):
            assert play(store, *failed(99)) == 1
    half = file.with_name("half.jsonl")
    assert play(half, *finished(*range(30)), *failed(*range(30, 60))) == 30
    assert play(half, *failed(*range(30, 60))) == 30


@pytest.mark.parametrize(("known", "new"), [(0, 1), (30, 10), (24, 12), (1000, 20)])
def test_where_most_new_episodes_fail_the_run_stops(file, known, new):
    """However many there are from earlier calls."""
    play(file, *finished(*range(known)))
    with pytest.raises(InfraError, match=rf"{new} of {new} episodes .* with: down"):
        play(file, *failed(*range(known, known + new)))


def test_a_few_new_ones_after_many_may_all_fail(file):
    """A killed run leaves those in flight, above all what hangs."""
    play(file, *finished(*range(200)))
    assert play(file, *failed(200, 201, 202)) == 3


def test_failures_of_earlier_calls_do_not_hide_new_ones(file):
    play(file, *finished(*range(100)), *failed(*range(100, 130)))
    retried, new = failed(*range(100, 130)), failed(*range(130, 150))
    with pytest.raises(InfraError, match="20 of 20 episodes"):
        play(file, *retried, *new)
    assert play(file, *finished(*range(100, 150))) == 0


def test_a_machine_that_is_still_sick_stops_the_run_as_early_again(file):
    with pytest.raises(InfraError, match="20 of 20 episodes"):
        play(file, *failed(*range(50)))
    with pytest.raises(InfraError, match="20 of 20 episodes"):
        play(file, *failed(*range(50)))
    assert len(list(read_trajectories(failed_path(file)))) == 20


def test_the_last_reason_is_kept(file):
    play(file, *finished(0, 1, 2), *failed(3, 4, reason="first"))
    play(file, *failed(3, reason="second"), *finished(4))
    assert [t.grade.detail for t in read_trajectories(failed_path(file))] == ["second"]


def test_a_kill_while_failed_ones_are_tried_again_forgets_nothing(file):
    play(file, *finished(*range(9)), *failed(10, 11, 12))
    with TrajectoryStore(file) as store:  # and killed before its log was closed
        log = EpisodeLog(store, {"p10#a#0", "p11#a#0", "p12#a#0"})
        log.add(episode(10))
        log.add(episode(11, "again"))
        assert "p10#a#0" in log
        assert "p11#a#0" in log
        assert "p12#a#0" not in log
    assert keys(read_collected(file)) == keys([*finished(*range(9), 10), *failed(11, 12)])
    assert play(file, *failed(11, 12)) == 2, "they are still known as failed before"
    assert sorted(keys(list(read_trajectories(failed_path(file))))) == ["p11#a#0", "p12#a#0"]
