"""The collector: exact counts, the same bytes, and no failure taken for a wrong answer."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agents.base import Action, SamplingParams, WeightedAgent
from agents.llm import LLMAgent
from agents.oracle import OracleAgent, ScriptedEpisode
from agents.policy import EngineOptions, load_policy
from agents.rollout import CollectConfig, acollect, collect, failed_path
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
            settings = CollectConfig(**{"concurrency": 8, "backoff_seconds": 0.001, **config})
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


def test_half_a_cell_is_not_run_where_length_cut_it(gather):
    """Its closing fence may be missing because the model did not come to it."""
    cut = Action("```python\nprint(1)", FinishReason.LENGTH)
    (trajectory,) = gather(Script(cut))
    assert trajectory.stop_reason is StopReason.TOKEN_LIMIT
    assert trajectory.turns[0].code is None
    (trajectory,) = gather(Script(Action(cut.text), r"\boxed{42}"), file="whole.jsonl")
    assert [turn.observation for turn in trajectory.turns] == ["1", ""]


def test_the_protocol_reaches_the_environment(gather):
    turns = ("~~~python\nx = 1\n~~~", "```bash\nls\n```", r"\boxed{42}")
    (trajectory,) = gather(Script(*turns))
    assert [turn.observation for turn in trajectory.turns][::2] == ["", ""]
    assert trajectory.turns[1].execution.status is ExecutionStatus.UNREAD
    assert trajectory.reward == 1.0
    (trajectory,) = gather(Script(*turns), say_empty=True, file="told.jsonl")
    assert "printed nothing" in trajectory.turns[0].observation
    (trajectory,) = gather(Script(*turns), protocol="paper", file="paper.jsonl")
    assert trajectory.stop_reason is StopReason.NO_ACTION


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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, 0) for field in ("horizon", "concurrency", "threads", "slots")),
        *(
            (field, -1)
            for field in ("turn_seconds", "trajectory_seconds", "retries", "backoff_seconds")
        ),
        *((field, float("nan")) for field in ("turn_seconds", "backoff_seconds")),
    ],
)
def test_settings_that_cannot_be_are_refused(field, value):
    with pytest.raises(ConfigError, match=r"at least [01]|more than 0"):
        CollectConfig(**{field: value})


CHILD = """
import asyncio, random, sys, time
from contextlib import ExitStack, asynccontextmanager
from agents.base import Action, WeightedAgent
from agents.rollout import CollectConfig, collect
from mathenv.errors import ConfigError
from mathenv.problems import words
from mathenv.protocol import code_block
from mathenv.store import TrajectoryStore

problems = words.load("train", count=250)
answers = {p.question: p.answer for p in problems}

class Quick:
    '''Answers after a random while; one episode in sixteen runs a cell first.'''
    def __init__(self, name):
        self.name = name

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        yield QuickEpisode(question, seed)

class QuickEpisode:
    def __init__(self, question, seed):
        self.question, self.cells = question, int(seed % 16 == 0)

    async def act(self, observation):
        await asyncio.sleep(random.random() / 50)
        self.cells -= 1
        answer = answers[self.question]
        if self.cells == 0:
            return Action(code_block(f"print({answer!r})"))
        return Action(rf"\\boxed{{{answer}}}")

    def tokens(self):
        return None

for attempt in range(2000):
    try:
        store = TrajectoryStore(sys.argv[1])
        break
    except ConfigError:  # helpers of the killed process are still going away
        time.sleep(0.05)
members = [WeightedAgent(Quick("current"), 5), WeightedAgent(Quick("previous"), 3)]
collect(members, problems, store, CollectConfig(concurrency=32))
"""


def lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0


def whole_lines(file: Path) -> list[str]:
    text = file.read_text() if file.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_kills_neither_lose_nor_repeat_a_trajectory(tmp_path, interpreter):
    """2,000 trajectories; SIGKILL at random moments, the first before anything is written."""
    file = tmp_path / "t.jsonl"
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", CHILD, str(file)]
    rng = random.Random(5)
    kept: list[str] = []
    for kill_at in [0, *sorted(rng.sample(range(1, 1900), 9)), None]:
        child = subprocess.Popen(command, env=environment, cwd=tmp_path)
        while kill_at is not None and lines(file) < kill_at and child.poll() is None:
            time.sleep(0.003)
        if kill_at is not None:
            time.sleep(rng.random() / 20)
            assert child.poll() is None, "it ended before it could be killed"
            child.send_signal(signal.SIGKILL)
        assert child.wait(120) == (0 if kill_at is None else -signal.SIGKILL)
        whole = whole_lines(file)
        assert whole[: len(kept)] == kept, "nothing finished was lost or written again"
        kept = whole
    counts = Counter((t.problem.id, t.agent, t.sample) for t in read_trajectories(file))
    ids = [p.id for p in words.load("train", count=250)]
    mixture = [("current", n) for n in range(5)] + [("previous", n) for n in range(3)]
    assert counts == {(p, name, n): 1 for p in ids for name, n in mixture}
    assert len(counts) == 2000
    assert all(t.reward == 1.0 for t in read_trajectories(file))


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
        with load_policy(
            taught, params, name="taught", engine=EngineOptions(max_batch=batch)
        ) as agent:
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


# Mixtures, slots and order.


class Watched:
    """The real engine, noting each request and how many are under way."""

    def __init__(self, model, slots=None):
        self._model, self.name = model, model.name
        self.requests, self.running, self.most, self.open = [], 0, 0, 0
        if slots is not None:
            self.slots = slots

    @asynccontextmanager
    async def session(self):
        self.open += 1
        async with self._model.session() as session:
            yield WatchedSession(self, session)
        self.open -= 1

    def close(self):
        pass


class WatchedSession:
    def __init__(self, owner, session):
        self._owner, self._session = owner, session

    async def complete(self, request):
        owner = self._owner
        owner.requests.append(request)
        owner.running += 1
        owner.most = max(owner.most, owner.running)
        try:
            return await self._session.complete(request)
        finally:
            owner.running -= 1


def test_the_papers_mixture_of_20_and_10_and_any_other(tmp_path, taught, interpreter):
    """Weights, temperatures and limits are each agent's own; every sample has its own seed."""
    settings = {
        "current": (20, SamplingParams(max_turn_tokens=12, max_tokens=150)),
        "previous": (10, SamplingParams(temperature=0.7, max_turn_tokens=8, max_tokens=150)),
        "oldest": (3, SamplingParams(temperature=0.0, max_turn_tokens=5, max_tokens=150)),
    }
    with load_policy(taught, name="taught") as policy, TrajectoryStore(tmp_path) as store:
        engines = {name: Watched(policy.model) for name in settings}
        members = [
            WeightedAgent(LLMAgent(engines[name], policy.renderer, params, name=name), samples)
            for name, (samples, params) in settings.items()
        ]
        collect(members, PROBLEMS[:2], store, CollectConfig(horizon=2), interpreter=interpreter)
    found = list(read_trajectories(tmp_path))
    counts = Counter((t.problem.id, t.agent) for t in found)
    assert counts == {(p.id, name): n for p in PROBLEMS[:2] for name, (n, _) in settings.items()}
    seeds = [request.seed for engine in engines.values() for request in engine.requests]
    assert len(set(seeds)) == len(seeds) >= 66
    for name, (_, params) in settings.items():
        assert {r.temperature for r in engines[name].requests} == {params.temperature}
        assert max(r.max_new_tokens for r in engines[name].requests) == params.max_turn_tokens
        records = [t.tokens for t in found if t.agent == name]
        assert max(len(record.ids) for record in records) <= params.max_tokens


def test_samples_of_a_problem_are_started_together(tmp_path):
    """So that an engine with a prefix cache computes their prompt once."""
    opened = []

    class Noting(Script):
        @asynccontextmanager
        async def episode(self, question, *, sample, seed):
            opened.append((question, self.name, sample))
            await asyncio.sleep(seed % 5 / 1000)
            yield ScriptedEpisode([Action(r"\boxed{1}")])

    shared = object()
    members = [WeightedAgent(Noting(name="a"), 3), WeightedAgent(Noting(name="b"), 2)]
    for member in members:
        member.agent.model = shared  # one engine: one queue
    with TrajectoryStore(tmp_path) as store:
        collect(members, PROBLEMS, store, CollectConfig(concurrency=4))
    group = [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    assert opened == [(p.question, *member) for p in PROBLEMS for member in group]


class Overlapping:
    """An agent that counts the calls under way, over all agents with the same `meter`."""

    def __init__(self, name, meter):
        self.name, self.meter = name, meter

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        yield self

    async def act(self, observation):
        self.meter[self.name] += 1
        self.meter["most"] = max(self.meter["most"], self.meter[self.name])
        self.meter["together"] |= all(self.meter[name] for name in "ab")
        await asyncio.sleep(0.002)
        self.meter[self.name] -= 1
        return Action(r"\boxed{42}")

    def tokens(self):
        return None


def test_slots_bound_each_engine_and_engines_work_side_by_side(tmp_path):
    meter = {"a": 0, "b": 0, "most": 0, "together": False}
    members = [WeightedAgent(Overlapping(name, meter), 40) for name in "ab"]
    with TrajectoryStore(tmp_path) as store:
        collect(members, [ONE], store, CollectConfig(concurrency=16, slots=5))
        assert len(store) == 80
    assert meter["most"] == 5
    assert meter["together"]


def test_an_engine_says_how_many_requests_it_takes(tmp_path, taught, interpreter):
    params = SamplingParams(max_turn_tokens=4)
    with load_policy(taught, name="taught") as policy:
        for given, config, most in ((3, {}, 3), (3, {"slots": 2}, 2), (50, {"concurrency": 4}, 4)):
            engine = Watched(OneByOne(policy.model, together=most), slots=given)
            agent = LLMAgent(engine, policy.renderer, params)
            with TrajectoryStore(tmp_path / f"{given}{most}") as store:
                settings = CollectConfig(horizon=1, **config)
                collect([WeightedAgent(agent, 8)], [ONE], store, settings, interpreter=interpreter)
            assert engine.most == most


class OneByOne:
    """Answers each request on its own, as engines with continuous batching do, but the first
    only when `together` requests wait for an answer: how fast episodes start does not matter."""

    def __init__(self, model, together):
        self._model, self.name = model, model.name
        self._missing, self._all_here = together, asyncio.Event()

    @asynccontextmanager
    async def session(self):
        yield self

    async def complete(self, request):
        self._missing -= 1
        if not self._missing:
            self._all_here.set()
        async with asyncio.timeout(60):
            await self._all_here.wait()
        await asyncio.sleep(0.001)
        return self._model.generate([request])[0]


def test_two_engines_that_wait_for_all_episodes_do_not_disturb_each_other(
    tmp_path, taught, interpreter
):
    """Side by side they sample what each samples alone, and no bound on slots stops them."""
    params = SamplingParams(max_turn_tokens=12)

    def run(names, folder):
        with ExitStack() as stack, TrajectoryStore(tmp_path / folder) as store:
            agents = [stack.enter_context(load_policy(taught, params, name=name)) for name in names]
            collect(
                [WeightedAgent(agent, 4) for agent in agents],
                PROBLEMS[:2],
                store,
                CollectConfig(concurrency=3, slots=1, horizon=2),
                interpreter=interpreter,
            )
        return as_bytes(read_trajectories(tmp_path / folder))

    assert run("ab", "both") == sorted(run("a", "first") + run("b", "second"))


# From a running event loop.


def test_collect_works_where_a_loop_runs_already(tmp_path):
    """As in a notebook, whose cells run inside its loop."""

    async def notebook(store):
        return collect([WeightedAgent(Script(r"\boxed{42}"), 5)], [ONE], store, CollectConfig())

    with TrajectoryStore(tmp_path) as store:
        assert asyncio.run(notebook(store)) == 0
        assert len(store) == 5


def test_errors_and_ctrl_c_come_through_from_a_running_loop(tmp_path):
    async def notebook(agent, store):
        return collect([WeightedAgent(agent, 50)], [ONE], store, CollectConfig(concurrency=1))

    class Stopping(Script):
        @asynccontextmanager
        async def episode(self, question, *, sample, seed):
            if sample == 7:
                os.kill(os.getpid(), signal.SIGINT)  # handled in the main thread
                await asyncio.sleep(30)
            yield ScriptedEpisode([Action(r"\boxed{42}")])

    with TrajectoryStore(tmp_path) as store:
        with pytest.raises(DataError):
            asyncio.run(notebook(OracleAgent([]), store))
        # Not under `asyncio.run`, which has a handler of its own for the main thread.
        loop = asyncio.new_event_loop()
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(notebook(Stopping(), store))
        loop.close()
        assert len(store) == 7, "what was finished is kept"


def test_acollect_leaves_the_loop_free_and_keeps_what_is_finished_when_cancelled(tmp_path):
    class Last(Script):
        @asynccontextmanager
        async def episode(self, question, *, sample, seed):
            if sample == 3:
                await asyncio.Event().wait()
            yield ScriptedEpisode([Action(r"\boxed{42}")])

    async def main(store):
        enough = asyncio.Event()
        work = asyncio.create_task(
            acollect(
                [WeightedAgent(Last(), 4)],
                [ONE],
                store,
                CollectConfig(),
                progress=lambda _, done, __: done == 3 and enough.set(),
            )
        )
        await enough.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert await acollect([WeightedAgent(Script("x"))], [ONE], store, CollectConfig()) == 0

    with TrajectoryStore(tmp_path) as store:
        asyncio.run(main(store))
        assert sorted(store.keys()) == ["p#script#0", *(f"p#script#{n}" for n in (1, 2))]


# Deadlines and retries.


class Unsteady:
    """Turns raise `errors` one after another, or wait for ever; then they answer."""

    def __init__(self, *errors, turns=(r"\boxed{42}",), opening=()):
        self.name = "unsteady"
        self.errors, self.turns, self.opening = list(errors), turns, list(opening)
        self.asked = 0

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        if self.opening and (error := self.opening.pop(0)):
            raise error
        yield UnsteadyEpisode(self)


class UnsteadyEpisode(ScriptedEpisode):
    def __init__(self, owner):
        super().__init__([Action(text) for text in owner.turns])
        self._owner = owner

    async def act(self, observation):
        self._owner.asked += 1
        if self._owner.errors and (error := self._owner.errors.pop(0)):
            if error == "hang":
                await asyncio.Event().wait()
            raise error
        return await super().act(observation)


@pytest.mark.parametrize(
    "error", [InfraError("busy"), ConnectionResetError("gone"), TimeoutError()], ids=repr
)
def test_a_failed_request_is_sent_again(gather, error):
    """The episode is begun anew: nothing of the failed one is left in the record."""
    agent = Unsteady(error, None, error, turns=[code_block("6 * 7"), r"\boxed{42}"])
    (trajectory,) = gather(agent, retries=2)
    assert trajectory.reward == 1.0
    assert [turn.observation for turn in trajectory.turns] == ["42", ""]
    assert agent.asked == 1 + 2 + 2


def test_a_failed_request_of_a_model_leaves_no_trace(tmp_path, gather, taught):
    """The same tokens as without the failure, none of them twice."""

    class Stumbling(Watched):
        failing = 2

        @asynccontextmanager
        async def session(self):
            async with super().session() as session:
                yield StumblingSession(self, session)

    class StumblingSession(WatchedSession):
        async def complete(self, request):
            if self._owner.failing and len(request.ids) > 40:
                self._owner.failing -= 1
                raise InfraError("busy")
            return await self._session.complete(request)

    params = SamplingParams(max_turn_tokens=40, max_tokens=400)
    with load_policy(taught, params, name="taught") as policy:
        stumbling = LLMAgent(Stumbling(policy.model), policy.renderer, params)
        once = gather(stumbling, PROBLEMS[:3], samples=2, concurrency=1)
        assert stumbling.model.failing == 0
        assert once == gather(policy, PROBLEMS[:3], samples=2, concurrency=1, file="u.jsonl")


def test_opening_an_episode_is_tried_again_too(gather):
    agent = Unsteady(opening=[InfraError("no route"), OSError("no route"), None])
    assert gather(agent, retries=2)[0].reward == 1.0


def failures(tmp_path):
    return [t.grade.detail for t in read_trajectories(failed_path(tmp_path / "t.jsonl"))]


@pytest.mark.parametrize("place", ["turn", "opening"])
def test_a_request_that_fails_for_good_never_ends_the_run(tmp_path, gather, place):
    class Some(Unsteady):
        @asynccontextmanager
        async def episode(self, question, *, sample, seed):
            errors = [ValueError("odd")] if sample % 3 == 0 else []
            self.errors, self.opening = (errors, []) if place == "turn" else ([], errors)
            async with super().episode(question, sample=sample, seed=seed) as episode:
                yield episode

    found = gather(Some(), samples=40, retries=2, concurrency=1)
    assert len(found) == 26
    assert all(t.reward == 1.0 for t in found)
    assert len(failures(tmp_path)) == 14
    assert all(text.startswith("ValueError: odd (") for text in failures(tmp_path))


def test_a_turn_over_its_deadline_is_infra(tmp_path, gather):
    agent = Unsteady(None, "hang", turns=[code_block("6 * 7"), r"\boxed{42}"])
    with pytest.raises(InfraError, match="1 of 1"):
        gather(agent, turn_seconds=0.3)
    (failed,) = read_trajectories(failed_path(tmp_path / "t.jsonl"))
    assert failed.grade.detail == "no answer within 0.3 s (turn_seconds)"
    assert failed.stop_reason is StopReason.INFRA
    assert [turn.observation for turn in failed.turns] == ["42"], "what there was is kept"
    assert agent.asked == 2, "a slow answer is not asked for again"


def test_an_episode_over_its_deadline_is_infra_and_its_cell_comes_to_its_end(tmp_path, gather):
    agent = Script(code_block("import time; time.sleep(0.6); print(7)"), r"\boxed{42}")
    with pytest.raises(InfraError, match="1 of 1"):
        gather(agent, trajectory_seconds=0.3)
    (failed,) = read_trajectories(failed_path(tmp_path / "t.jsonl"))
    assert failed.grade.detail == ("the episode was not over after 0.3 s (trajectory_seconds)")
    assert not failed.counts


def test_waiting_for_a_slot_does_not_count_against_the_turn(gather):
    class Slow(Script):
        @asynccontextmanager
        async def episode(self, question, *, sample, seed):
            yield SlowEpisode([Action(r"\boxed{42}")])

    class SlowEpisode(ScriptedEpisode):
        async def act(self, observation):
            await asyncio.sleep(0.1)
            return await super().act(observation)

    # One after another they take longer than a turn may.
    assert len(gather(Slow(), samples=20, slots=1, turn_seconds=1.5)) == 20


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
        config = CollectConfig(backoff_seconds=0.001)
        assert collect(members, [ONE], store, config, interpreter=interpreter) == 1
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
