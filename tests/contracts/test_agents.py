"""What every agent must do, whatever is behind it."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agents.base import Action, Agent, SamplingParams, WeightedAgent
from agents.llm import LLMAgent
from agents.models.hf import load_tokenizer
from agents.models.scripted import replay_model
from agents.models.server import ServerOptions
from agents.oracle import OracleAgent, ReplayAgent
from agents.policy import EngineOptions, load_policy
from agents.rendering import ChatRenderer
from agents.rollout import CollectConfig, collect
from agents.server import connect_chat, connect_policy
from agents.tiny import TinyConfig, make_tiny
from mathenv.interpreter import Limits, LocalInterpreter
from mathenv.problems import words
from mathenv.store import TrajectoryStore, read_trajectories
from mathenv.types import GradeStatus, StopReason, Trajectory

PROBLEMS = words.load("train", count=4)
SAMPLES = 2
Opener = Callable[[], Agent]


@pytest.fixture(scope="module")
def interpreter() -> Iterator[LocalInterpreter]:
    with LocalInterpreter(Limits(memory_bytes=512 << 20)) as interpreter:
        if interpreter.description["tier"] == "rlimits":
            pytest.skip("no sandbox that hides files works on this machine")
        yield interpreter


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    shape = TinyConfig(hidden=32, layers=1, heads=1, intermediate=32)
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", config=shape)


def run(agent: Agent, folder: Path, interpreter, **settings) -> list[Trajectory]:
    with TrajectoryStore(folder) as store:
        config = CollectConfig(**{"concurrency": 3, **settings})
        collect([WeightedAgent(agent, SAMPLES)], PROBLEMS, store, config, interpreter=interpreter)
    return sorted(read_trajectories(folder), key=lambda t: t.key)


@contextmanager
def _oracle(tiny, folder, interpreter, serve):
    yield OracleAgent(PROBLEMS)


@contextmanager
def _replay(tiny, folder, interpreter, serve):
    yield ReplayAgent(run(OracleAgent(PROBLEMS), folder / "first", interpreter))


@contextmanager
def _model(tiny, folder, interpreter, serve):
    with load_policy(tiny, SamplingParams(max_turn_tokens=12), name="tiny") as agent:
        yield agent


@contextmanager
def _greedy(tiny, folder, interpreter, serve):
    params = SamplingParams(temperature=0.0, max_turn_tokens=12)
    with load_policy(tiny, params, name="greedy", engine=EngineOptions(max_batch=2)) as agent:
        yield agent


@contextmanager
def _server(tiny, folder, interpreter, serve):
    params = SamplingParams(max_turn_tokens=12)
    with serve(tiny) as url, connect_policy(tiny, ServerOptions(url), params, name="far") as agent:
        yield agent


@contextmanager
def _chat(tiny, folder, interpreter, serve):
    params = SamplingParams(max_turn_tokens=12)
    with serve(tiny) as url, connect_chat(ServerOptions(url), params, name="chat") as agent:
        yield agent


@contextmanager
def _replayed_tokens(tiny, folder, interpreter, serve):
    """Sampled by the collector under test, then again as the engine's own answers."""
    params = SamplingParams(max_turn_tokens=12)
    with load_policy(tiny, params, name="tiny") as agent:
        records = [t.tokens for t in run(agent, folder / "first", interpreter)]
    yield LLMAgent(replay_model(records), ChatRenderer(load_tokenizer(tiny)), params)


AGENTS = [_oracle, _replay, _model, _greedy, _server, _chat, _replayed_tokens]


@pytest.fixture(params=AGENTS, ids=lambda f: f.__name__.strip("_"))
def agent(request, tiny, tmp_path, interpreter, serve) -> Iterator[Agent]:
    with request.param(tiny, tmp_path, interpreter, serve) as agent:
        yield agent


def first_action(agent: Agent, sample: int, seed: int):
    async def play():
        question = PROBLEMS[0].question
        async with agent.episode(question, sample=sample, seed=seed) as episode:
            return await episode.act(question), episode.tokens()

    return asyncio.run(play())


def test_it_is_an_agent_with_a_name(agent):
    assert isinstance(agent, Agent)
    assert isinstance(agent.name, str)
    assert agent.name == agent.name != ""


def test_its_first_action_is_text_and_repeatable(agent):
    action, tokens = first_action(agent, 0, 5)
    assert isinstance(action, Action)
    assert isinstance(action.text, str)
    assert first_action(agent, 0, 5) == (action, tokens)


def test_episodes_opened_side_by_side_do_not_mix(agent):
    alone = [first_action(agent, sample, 1)[0] for sample in range(SAMPLES)]

    async def play(sample):
        question = PROBLEMS[0].question
        async with agent.episode(question, sample=sample, seed=1) as episode:
            return await episode.act(question)

    async def together():
        return await asyncio.gather(*(play(sample) for sample in range(SAMPLES)))

    assert asyncio.run(together()) == alone


def test_an_episode_may_be_closed_before_it_ends(agent):
    async def leave():
        question = PROBLEMS[0].question
        async with agent.episode(question, sample=0, seed=0):
            pass
        async with agent.episode(question, sample=0, seed=0) as episode:
            return await asyncio.wait_for(episode.act(question), 60)

    assert asyncio.run(leave()) is not None


def test_the_collector_plays_it_to_exact_counts(agent, tmp_path, interpreter):
    trajectories = run(agent, tmp_path / "out", interpreter)
    keys = [f"{p.id}#{agent.name}#{s}" for p in PROBLEMS for s in range(SAMPLES)]
    assert [t.key for t in trajectories] == sorted(keys)
    for trajectory in trajectories:
        assert trajectory.counts
        assert 1 <= len(trajectory.turns) <= 6
        assert isinstance(trajectory.stop_reason, StopReason)
        answered = trajectory.stop_reason is StopReason.ANSWERED
        assert answered == (trajectory.grade.status is not GradeStatus.NO_ANSWER)


def test_the_same_seed_gives_the_same_trajectories(agent, tmp_path, interpreter):
    one = run(agent, tmp_path / "one", interpreter, seed=3, threads=1)
    two = run(agent, tmp_path / "two", interpreter, seed=3, threads=4)
    assert one == two  # `seconds` is no part of equality


def test_tokens_where_there_are_any_are_whole(agent, tmp_path, interpreter):
    for trajectory in run(agent, tmp_path / "out", interpreter):
        record = trajectory.tokens
        if record is None:
            continue
        assert len(record.logprobs) == sum(record.action_mask) > 0
        assert record.spans[0].start == 0
        ends = [span.end for span in record.spans]
        assert [span.start for span in record.spans[1:]] == ends[:-1]
        assert ends[-1] == len(record.ids)
        assert all(logprob <= 0 for logprob in record.logprobs)
