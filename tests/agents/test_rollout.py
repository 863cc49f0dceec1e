"""The collector: exact counts, the same bytes, and no failure taken for a wrong answer."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agents.base import Action, SamplingParams, WeightedAgent
from agents.policy import load_policy
from agents.rollout import CollectConfig, collect, failed_path
from agents.scripted import OracleAgent, ScriptedEpisode
from mathenv.errors import ConfigError, DataError, InfraError
from mathenv.problems import words
from mathenv.protocol import code_block
from mathenv.store import TrajectoryStore, read_trajectories, to_json
from mathenv.types import (
    ExecutionResult,
    ExecutionStatus,
    FinishReason,
    GradeStatus,
    Problem,
    SpanKind,
    StopReason,
)

PROBLEMS = words.load("train", count=6)
ONE = Problem("p", "What is 6 times 7?", "42")


class Script:
    """An agent that plays the same actions for every question."""

    def __init__(self, *actions: Action | str, name: str = "script", delays: bool = False) -> None:
        self.name = name
        self._actions = [a if isinstance(a, Action) else Action(a) for a in actions]
        self._delays = delays

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        if self._delays:
            await asyncio.sleep(seed % 7 / 500)
        yield ScriptedEpisode(self._actions)


class Failing:
    """An agent whose engine fails in the turn numbered `turn` of the samples in `samples`."""

    name = "failing"

    def __init__(self, samples, *, turn=0):
        self.samples, self.turn = samples, turn

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        failing = self.turn if sample in self.samples else None
        yield FailingEpisode([Action(code_block("print(1)")), Action(r"\boxed{42}")], failing)


class FailingEpisode(ScriptedEpisode):
    def __init__(self, actions, failing):
        super().__init__(actions)
        self._failing = failing

    async def act(self, observation):
        if self._turn == self._failing:
            raise InfraError("the engine is down")
        return await super().act(observation)


class BrokenInterpreter:
    """Every cell ends with a failure of the machinery."""

    description = {"host": "broken"}  # noqa: RUF012

    def session(self, *, seed=0):
        return self

    def run(self, code):
        return ExecutionResult(ExecutionStatus.INFRA, "the sandbox is down")

    def close(self):
        pass


@pytest.fixture
def gather(tmp_path, interpreter):
    """Collect into a file of its own and return its trajectories."""

    def run(
        agent, problems=(ONE,), *, samples=1, file="t.jsonl", interpreter=interpreter, **config
    ):
        with TrajectoryStore(tmp_path / file) as store:
            settings = CollectConfig(**{"concurrency": 8, **config})
            collect(
                [WeightedAgent(agent, samples)], problems, store, settings, interpreter=interpreter
            )
        return list(read_trajectories(tmp_path / file))

    return run


def as_bytes(trajectories):
    """One text per trajectory, ordered, without the one field that is wall time."""

    def strip(value):
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k != "seconds"}
        return [strip(v) for v in value] if isinstance(value, list) else value

    return sorted(json.dumps(strip(to_json(t))) for t in trajectories)


# How episodes end.


def test_an_answer(gather):
    (trajectory,) = gather(Script(code_block("6 * 7"), r"\boxed{42}"))
    assert trajectory.key == "p#script#0"
    assert trajectory.stop_reason is StopReason.ANSWERED
    assert trajectory.reward == 1.0
    assert [t.observation for t in trajectory.turns] == ["42", ""]
    assert trajectory.tokens is None


def test_the_horizon(gather):
    (trajectory,) = gather(Script(*[code_block("1")] * 5), horizon=3)
    assert trajectory.stop_reason is StopReason.HORIZON
    assert len(trajectory.turns) == 3
    assert trajectory.turns[-1].execution is None
    assert (trajectory.grade.status, trajectory.reward) == (GradeStatus.NO_ANSWER, 0.0)


def test_neither_code_nor_answer(gather):
    (trajectory,) = gather(Script("Let me think."))
    assert trajectory.stop_reason is StopReason.NO_ACTION
    assert trajectory.counts


def test_a_turn_cut_by_length_is_a_token_limit(gather):
    (trajectory,) = gather(Script(Action("```python\nprint(", FinishReason.LENGTH)))
    assert trajectory.stop_reason is StopReason.TOKEN_LIMIT
    assert trajectory.turns[0].finish is FinishReason.LENGTH
    assert trajectory.counts


def test_an_agent_without_room_for_a_turn_is_a_token_limit(gather):
    (trajectory,) = gather(Script(Action(code_block("5"), FinishReason.STOP_STRING)))
    assert trajectory.stop_reason is StopReason.TOKEN_LIMIT
    assert [t.observation for t in trajectory.turns] == ["5"]
    assert trajectory.grade.status is GradeStatus.NO_ANSWER


def test_every_turn_keeps_how_it_ended(gather):
    finishes = [FinishReason.LENGTH, FinishReason.STOP_STRING, FinishReason.STOP]
    actions = [code_block("1"), code_block("2"), r"\boxed{42}"]
    script = Script(*map(Action, actions, finishes))
    (trajectory,) = gather(script)
    assert [turn.finish for turn in trajectory.turns] == finishes


# Counts.


def test_samples_of_a_mixture_are_counted_and_resumed(tmp_path, interpreter):
    members = [WeightedAgent(Script("a", name="a"), 3), WeightedAgent(Script("b", name="b"), 2)]
    seen = []
    with TrajectoryStore(tmp_path) as store:
        for count in (2, 6):  # more problems the second time
            collect(
                members,
                PROBLEMS[:count],
                store,
                CollectConfig(concurrency=4),
                interpreter=interpreter,
                progress=lambda _, done, total: seen.append((done, total)),
            )
        assert len(store) == 30
        collect(members, PROBLEMS, store, CollectConfig(), progress=lambda *_: seen.append(None))
    assert seen == [(n, 10) for n in range(1, 11)] + [(n, 30) for n in range(11, 31)]
    counts = Counter((t.problem.id, t.agent) for t in read_trajectories(tmp_path))
    assert counts == {(p.id, name): n for p in PROBLEMS for name, n in (("a", 3), ("b", 2))}


def test_one_name_for_two_is_refused(tmp_path):
    with TrajectoryStore(tmp_path) as store:
        agents = [WeightedAgent(Script("a")), WeightedAgent(Script("b"))]
        with pytest.raises(ConfigError, match="different names"):
            collect(agents, [ONE], store, CollectConfig())
        with pytest.raises(ConfigError, match="different ids"):
            collect(agents[:1], [ONE, ONE], store, CollectConfig())
        assert len(store) == 0


@pytest.mark.parametrize("field", ["horizon", "concurrency", "threads"])
def test_settings_that_cannot_be_are_refused(field):
    with pytest.raises(ConfigError, match="at least 1"):
        CollectConfig(**{field: 0})


CHILD = """
import sys, time
from agents.base import WeightedAgent
from agents.rollout import CollectConfig, collect
from agents.scripted import OracleAgent
from mathenv.errors import ConfigError
from mathenv.problems import words
from mathenv.store import TrajectoryStore

problems = words.load("train", count=40)
for attempt in range(200):
    try:
        store = TrajectoryStore(sys.argv[1])
        break
    except ConfigError:  # helpers of the killed process are still going away
        time.sleep(0.05)
collect([WeightedAgent(OracleAgent(problems), 2)], problems, store, CollectConfig(concurrency=4))
"""


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.slow
def test_kills_neither_lose_nor_repeat_a_trajectory(tmp_path, interpreter):
    file = tmp_path / "t.jsonl"
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", CHILD, str(file)]
    kept: list[str] = []
    for kill_at in (5, 25, 50, None):
        child = subprocess.Popen(command, env=environment, cwd=tmp_path)
        while kill_at is not None and lines(file) < kill_at and child.poll() is None:
            time.sleep(0.005)
        if kill_at is not None:
            assert child.poll() is None, "it ended before it could be killed"
            child.send_signal(signal.SIGKILL)
        code = child.wait(60)
        assert code == (0 if kill_at is None else -signal.SIGKILL)
        whole = file.read_text().splitlines(keepends=True)
        whole = [line for line in whole if line.endswith("\n")]
        assert whole[: len(kept)] == kept  # nothing finished was lost or written again
        kept = whole
    trajectories = list(read_trajectories(file))
    keys = Counter(t.key for t in trajectories)
    assert len(trajectories) == len(keys) == 80
    assert all(t.reward == 1.0 for t in trajectories)


# Determinism.


def test_scripts_give_the_same_bytes_whatever_the_timing(gather):
    problems = PROBLEMS
    runs = [
        gather(
            OracleAgent(problems) if number == 0 else _Slow(problems),
            problems,
            samples=2,
            file=f"{number}.jsonl",
            concurrency=concurrency,
            threads=threads,
        )
        for number, (concurrency, threads) in enumerate([(1, 1), (3, 2), (12, 4)])
    ]
    assert as_bytes(runs[0]) == as_bytes(runs[1]) == as_bytes(runs[2])


class _Slow(OracleAgent):
    """The oracle, with episodes that are opened after different times."""

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        await asyncio.sleep(seed % 11 / 1000)
        async with super().episode(question, sample=sample, seed=seed) as episode:
            yield episode


def test_a_model_gives_the_same_bytes_whatever_the_threads(gather, taught):
    params = SamplingParams(max_turn_tokens=40, max_tokens=400, temperature=1.2)
    runs = []
    for number, threads in enumerate((1, 4, 2)):
        with load_policy(taught, params, name="taught") as agent:
            file, count = f"{number}.jsonl", {"concurrency": 7, "threads": threads}
            runs.append(gather(agent, PROBLEMS[:5], samples=4, file=file, **count))
    assert as_bytes(runs[0]) == as_bytes(runs[1]) == as_bytes(runs[2])
    assert len({t.tokens.ids[t.tokens.prompt_length :] for t in runs[0]}) > 5
    assert sum(len(t.turns) > 1 for t in runs[0]) > 5


def test_concurrency_and_batch_size_change_no_more_than_last_bits(gather, taught):
    params = SamplingParams(max_turn_tokens=40, max_tokens=400)
    runs = []
    for number, (concurrency, batch) in enumerate(((1, 128), (8, 3), (20, 128))):
        with load_policy(taught, params, name="taught", max_batch=batch) as agent:
            file = f"{number}.jsonl"
            found = gather(agent, PROBLEMS[:5], samples=2, file=file, concurrency=concurrency)
            runs.append({t.key: t for t in found})
    for key, trajectory in runs[0].items():
        for other in (runs[1][key], runs[2][key]):
            assert other.tokens.ids == trajectory.tokens.ids
            assert other.tokens.spans == trajectory.tokens.spans
            assert other.turns == trajectory.turns
            assert other.tokens.logprobs == pytest.approx(trajectory.tokens.logprobs, abs=2e-4)


def test_members_with_the_same_weights_sample_different_episodes(tmp_path, taught, interpreter):
    params = SamplingParams(temperature=2.0, max_turn_tokens=20)
    with TrajectoryStore(tmp_path) as store:
        for name in ("current", "previous"):
            with load_policy(taught, params, name=name) as agent:
                members = [WeightedAgent(agent, 3)]
                collect(members, PROBLEMS[:2], store, CollectConfig(), interpreter=interpreter)
    ids = [t.tokens.ids for t in read_trajectories(tmp_path)]
    assert len(set(ids)) == len(ids) == 12


def test_recorded_tokens_are_the_actions(gather, taught):
    params = SamplingParams(max_turn_tokens=30, max_tokens=260, temperature=1.5)
    with load_policy(taught, params, name="taught") as agent:
        trajectories = gather(agent, PROBLEMS, samples=3, horizon=3)
        renderer = agent.renderer
    for trajectory in trajectories:
        record = trajectory.tokens
        assert record is not None
        assert len(record.logprobs) == sum(record.action_mask)
        assert len(record.ids) <= 260
        assert record.fingerprint == renderer.fingerprint
        sampled = [s for s in record.spans if s.kind is SpanKind.SAMPLED]
        assert [s.turn for s in sampled] == list(range(len(trajectory.turns)))
        for span, turn in zip(sampled, trajectory.turns, strict=True):
            ids = record.ids[span.start : span.end]
            assert renderer.action_text(ids) == turn.action
            assert (ids[-1] in renderer.stop_ids) == (turn.finish is FinishReason.STOP)


# Failures of the machinery.


def test_a_failed_episode_is_kept_apart_and_tried_again(tmp_path, gather, interpreter):
    agent = Failing(samples={1, 3}, turn=1)
    found = gather(agent, samples=6)
    assert sorted(t.sample for t in found) == [0, 2, 4, 5]
    assert all(t.counts for t in found)
    failed = list(read_trajectories(failed_path(tmp_path / "t.jsonl")))
    assert sorted(t.sample for t in failed) == [1, 3]
    for trajectory in failed:
        assert trajectory.stop_reason is StopReason.INFRA
        assert trajectory.grade.status is GradeStatus.INFRA
        assert trajectory.grade.detail == "the engine is down"
        assert len(trajectory.turns) == 1
        assert not trajectory.counts
    agent.samples = {3}
    assert sorted(t.sample for t in gather(agent, samples=6)) == [0, 1, 2, 4, 5]
    assert [t.sample for t in read_trajectories(failed_path(tmp_path / "t.jsonl"))] == [3]
    agent.samples = set()
    found = gather(agent, samples=6)
    assert sorted(t.sample for t in found) == list(range(6))
    assert {t.reward for t in found} == {1.0}
    assert not failed_path(tmp_path / "t.jsonl").exists()


def test_failures_of_others_are_not_forgotten(tmp_path, gather):
    gather(Failing(samples={0}), samples=3)
    gather(Script("x"))
    assert [t.key for t in read_trajectories(failed_path(tmp_path / "t.jsonl"))] == ["p#failing#0"]


def test_collect_returns_how_many_failed(tmp_path, interpreter):
    with TrajectoryStore(tmp_path) as store:
        members = [WeightedAgent(Failing(samples={2}), 4)]
        assert collect(members, [ONE], store, CollectConfig(), interpreter=interpreter) == 1
        assert len(store) == 3


def test_a_sick_machine_stops_the_collector_early(tmp_path):
    problems = [replace(ONE, id=f"p{n}") for n in range(200)]
    with TrajectoryStore(tmp_path / "t.jsonl") as store:
        members = [WeightedAgent(Script(code_block("1"), r"\boxed{42}"))]
        with pytest.raises(InfraError, match=r"20 of 20 episodes .*the interpreter failed"):
            collect(
                members,
                problems,
                store,
                CollectConfig(concurrency=4),
                interpreter=BrokenInterpreter(),
            )
        assert len(store) == 0
    failed = list(read_trajectories(failed_path(tmp_path / "t.jsonl")))
    assert 20 <= len(failed) <= 24
    assert {t.turns[-1].execution.status for t in failed} == {ExecutionStatus.INFRA}


def test_a_short_run_that_mostly_fails_is_an_error_too(gather):
    with pytest.raises(InfraError, match=r"2 of 3 episodes .*the engine is down"):
        gather(Failing(samples={0, 1}), samples=3)


def test_a_broken_engine_is_an_infra_error(gather, taught):
    with load_policy(taught, name="taught") as agent:
        agent.model.close()  # as good as any way to break it
        with pytest.raises(InfraError, match="taught"):
            gather(agent, PROBLEMS, samples=2)


def test_a_reference_that_cannot_be_graded_is_excluded_but_not_tried_again(tmp_path, gather):
    (trajectory,) = gather(Script(r"\boxed{42}"), [replace(ONE, answer="")])
    assert trajectory.grade.status is GradeStatus.GOLD_ERROR
    assert not trajectory.counts
    assert not failed_path(tmp_path / "t.jsonl").exists()


def test_errors_reach_the_caller_as_themselves(gather):
    with pytest.raises(DataError, match="was not given this problem"):
        gather(OracleAgent([]), PROBLEMS)


def test_an_error_waits_for_cells_that_run(tmp_path, interpreter):
    """Sessions are closed by whoever is done with them, never under a running cell."""

    class Watched:
        description = interpreter.description

        def __init__(self):
            self.running = 0
            self.closed_while_running = False

        def session(self, *, seed=0):
            return WatchedSession(self, interpreter.session(seed=seed))

    class WatchedSession:
        def __init__(self, owner, session):
            self.owner, self.session, self.busy = owner, session, False

        def run(self, code):
            self.busy = True
            try:
                return self.session.run(code)
            finally:
                self.busy = False

        def close(self):
            self.owner.closed_while_running |= self.busy
            self.session.close()

    class Quitting(Script):
        @asynccontextmanager
        async def episode(self, question, *, sample, seed):
            if sample == 3:
                await asyncio.sleep(0.15)
                raise DataError("no more")
            async with super().episode(question, sample=sample, seed=seed) as episode:
                yield episode

    watched = Watched()
    cell = code_block("import time; time.sleep(0.6)")
    with TrajectoryStore(tmp_path) as store, pytest.raises(DataError, match="no more"):
        collect(
            [WeightedAgent(Quitting(cell, cell), 4)],
            [ONE],
            store,
            CollectConfig(threads=2),
            interpreter=watched,
        )
    assert not watched.closed_while_running
