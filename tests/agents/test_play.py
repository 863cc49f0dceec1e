"""Episodes in memory: the same trajectories as a store gets, in order, from any environment."""

import asyncio
from contextlib import asynccontextmanager
from functools import partial

import gymnasium as gym
import pytest

from agents.base import Action, WeightedAgent
from agents.oracle import OracleAgent, ScriptedEpisode
from agents.rollout import CollectConfig, aplay, collect, play
from mathenv.env import MathToolEnv
from mathenv.errors import ConfigError, InfraError
from mathenv.problems import words
from mathenv.protocol import code_block
from mathenv.store import TrajectoryStore, read_trajectories
from mathenv.types import ExecutionResult, ExecutionStatus, Problem, StopReason

PROBLEMS = words.load("train", count=5)


class Late:
    """Answers the first problems last, so that episodes end in another order than they began."""

    name = "late"

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        place = next(i for i, p in enumerate(PROBLEMS) if p.question == question)
        await asyncio.sleep(0.02 * (len(PROBLEMS) - place))
        yield ScriptedEpisode([Action(rf"\boxed{{{sample}}}")])


class Echo:
    """Runs one cell and boxes whatever it is then told."""

    name = "echo"

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        yield EchoEpisode()


class EchoEpisode:
    def __init__(self):
        self.heard = []

    async def act(self, observation):
        self.heard.append(observation)
        if len(self.heard) == 1:
            return Action(code_block("print(41)"))
        return Action(rf"\boxed{{{observation.strip()}}}")

    def tokens(self):
        return None


class PlusOne(gym.ObservationWrapper):
    """A tool that is off by one."""

    def observation(self, observation):
        return str(int(observation) + 1) if observation.isdigit() else observation


class Broken:
    description = {"host": "broken"}  # noqa: RUF012

    def session(self, *, seed=0):
        return self

    def run(self, code):
        return ExecutionResult(ExecutionStatus.INFRA, "the sandbox is down")

    def close(self):
        pass


def test_trajectories_come_in_the_order_of_problems_and_samples():
    seen = []
    played = play(Late(), PROBLEMS, 2, progress=lambda done, total: seen.append((done, total)))
    assert [(t.problem.id, t.sample) for t in played] == [
        (p.id, n) for p in PROBLEMS for n in range(2)
    ]
    assert seen == [(n, 10) for n in range(1, 11)]


def test_the_same_trajectories_as_in_a_store(tmp_path):
    config = CollectConfig(seed=3)
    with TrajectoryStore(tmp_path) as store:
        collect([WeightedAgent(OracleAgent(PROBLEMS), 2)], PROBLEMS, store, config)
    stored = {t.key: t for t in read_trajectories(tmp_path)}
    played = {t.key: t for t in play(OracleAgent(PROBLEMS), PROBLEMS, 2, config=config)}
    assert played.keys() == stored.keys()
    for key, trajectory in played.items():
        assert (trajectory.seed, trajectory.grade) == (stored[key].seed, stored[key].grade)
        outputs = [turn.observation for turn in trajectory.turns]
        assert outputs == [turn.observation for turn in stored[key].turns]


def test_it_can_be_called_where_an_event_loop_runs():
    async def notebook():
        blocking = play(OracleAgent(PROBLEMS), PROBLEMS)
        return blocking, await aplay(OracleAgent(PROBLEMS), PROBLEMS)

    blocking, awaited = asyncio.run(notebook())
    assert [t.key for t in blocking] == [t.key for t in awaited]
    assert all(t.reward == 1 for t in (*blocking, *awaited))


def test_any_environment_plays_and_the_record_holds_what_the_agent_saw():
    problem = Problem("p", "What is 6 times 7?", "42")
    made = []

    def make_env(problems):
        made.append(PlusOne(MathToolEnv(problems, horizon=3)))
        return made[-1]

    [right] = play(Echo(), [problem], make_env=make_env)
    assert right.turns[0].observation == "42"
    assert right.turns[0].execution.output == "41"  # what the interpreter really said
    assert (right.reward, right.stop_reason) == (1.0, StopReason.ANSWERED)
    [wrong] = play(Echo(), [problem])
    assert (wrong.turns[0].observation, wrong.reward) == ("41", 0.0)
    assert len(made) == 1


def test_horizon_and_grading_reach_the_environment():
    problem = Problem("p", "A third?", r"\frac{1}{3}")

    class Says:
        name = "says"

        @asynccontextmanager
        async def episode(self, question, *, sample, seed):
            yield ScriptedEpisode([Action(code_block("1"))] * 3)

    [cut] = play(Says(), [problem], make_env=partial(MathToolEnv, horizon=2))
    assert (cut.stop_reason, len(cut.turns)) == (StopReason.HORIZON, 2)
    [cut] = play(Says(), [problem], config=CollectConfig(horizon=1))
    assert (cut.stop_reason, len(cut.turns)) == (StopReason.HORIZON, 1)
    verdicts = {}
    for name in ("strict", "paper"):
        made = partial(MathToolEnv, grader=name)
        agent = Rounded()
        [verdicts[name]] = [t.reward for t in play(agent, [problem], make_env=made)]
    assert verdicts == {"strict": 0.0, "paper": 1.0}


class Rounded:
    name = "rounded"

    @asynccontextmanager
    async def episode(self, question, *, sample, seed):
        yield ScriptedEpisode([Action(r"\boxed{0.33333}")])


def test_what_is_no_math_tool_environment_is_refused():
    with pytest.raises(ConfigError, match="must be a MathToolEnv"):
        play(Late(), PROBLEMS, make_env=lambda problems: gym.make("CartPole-v1"))


def test_a_sick_machine_is_an_error_and_a_single_failure_is_data():
    with pytest.raises(InfraError, match=r"all 5 episodes failed.*the sandbox is down"):
        play(OracleAgent(PROBLEMS), PROBLEMS, interpreter=Broken())

    class Sometimes(Echo):
        name = "sometimes"

        @asynccontextmanager
        async def episode(self, question, *, sample, seed):
            if sample:
                raise InfraError("the engine is down")
            yield EchoEpisode()

    fine, failed = play(
        Sometimes(), PROBLEMS[:1], 2, config=CollectConfig(retries=0, backoff_seconds=0)
    )
    assert fine.counts
    assert fine.failure == ""
    assert not failed.counts
    assert failed.failure == "the engine is down"


def test_bad_arguments():
    with pytest.raises(ConfigError, match="n must be at least 1"):
        play(Late(), PROBLEMS, 0)
    with pytest.raises(ConfigError, match="different ids"):
        play(Late(), [PROBLEMS[0], PROBLEMS[0]])
