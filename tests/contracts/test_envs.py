"""What every registered environment of this package must do as a Gymnasium environment."""

import gc
import warnings

import gymnasium
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit

import mathenv
from mathenv.protocol import code_block

IDS = sorted(
    spec.id for spec in gymnasium.registry.values() if str(spec.entry_point).startswith("mathenv.")
)
ACTIONS = [code_block("x = 2\nprint(x * 21)"), code_block("print(x)"), "\\boxed{42}"]

pytestmark = pytest.mark.parametrize("env_id", IDS)


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_others():
    """What other tests of this process have left open is no warning about these."""
    gc.collect()


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Of multiprocessing's own forks (AsyncVectorEnv), not of ours.
        warnings.filterwarnings("ignore", ".*multi-threaded.*fork", DeprecationWarning)
        yield


def rollout(env, seed):
    steps = [env.reset(seed=seed)]
    for action in ACTIONS:
        steps.append(env.step(action))
    return steps


def test_the_ids_are_there(env_id):
    assert mathenv.ENV_ID in IDS


def test_check_env_is_silent(env_id, capsys):
    env = gymnasium.make(env_id)
    check_env(env.unwrapped)
    env.close()
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_check_env_is_silent_with_the_render_mode(env_id):
    env = gymnasium.make(env_id, render_mode="ansi")
    check_env(env.unwrapped)
    env.reset(seed=0)
    assert isinstance(env.render(), str)
    env.close()


def test_the_same_seed_gives_the_same_episode(env_id):
    with gymnasium.make(env_id) as first, gymnasium.make(env_id) as second:
        assert rollout(first, 3) == rollout(second, 3) == rollout(first, 3)
        assert first.unwrapped.turns == second.unwrapped.turns


def test_every_step_is_within_the_spaces_and_of_plain_types(env_id):
    with gymnasium.make(env_id) as env:
        observation, info = env.reset(seed=0)
        assert observation in env.observation_space
        assert type(info) is dict
        for action in ACTIONS:
            assert action in env.action_space
            observation, reward, terminated, truncated, info = env.step(action)
            assert observation in env.observation_space
            assert [type(v) for v in (observation, reward, terminated, truncated)] == [
                str, float, bool, bool,
            ]  # fmt: skip
        assert terminated
        assert not truncated


def test_ends_are_terminated_or_truncated_never_both(env_id):
    with gymnasium.make(env_id, horizon=2) as env:
        for actions in (["\\boxed{1}"], ["hm"], [code_block("1"), code_block("2")]):
            env.reset(seed=0)
            for action in actions:
                _, _, terminated, truncated, info = env.step(action)
            assert terminated != truncated
            assert info["stop_reason"] is not None


def test_time_limit_and_episode_statistics(env_id):
    env = RecordEpisodeStatistics(TimeLimit(gymnasium.make(env_id), max_episode_steps=2))
    env.reset(seed=0)
    env.step(ACTIONS[0])
    _, _, terminated, truncated, info = env.step(ACTIONS[1])
    assert (terminated, truncated) == (False, True)
    assert info["stop_reason"] is None, "the wrapper's limit is not the environment's"
    assert (info["episode"]["l"], info["episode"]["r"]) == (2, 0.0)
    env.close()


def test_order_is_enforced(env_id):
    with gymnasium.make(env_id) as env, pytest.raises(gymnasium.error.ResetNeeded):
        env.step("\\boxed{1}")


def test_the_spec_makes_an_equal_environment(env_id):
    with gymnasium.make(env_id, horizon=3) as env:
        with env.spec.make() as twin:
            assert twin.unwrapped.horizon == 3
            assert rollout(twin, 1) == rollout(env, 1)


def run_vector(envs):
    questions, infos = envs.reset(seed=[1, 2, 3, 4])
    outputs = []
    for action in ACTIONS[:2]:
        observations, rewards, terminations, truncations, infos = envs.step((action,) * 4)
        outputs.append(tuple(text.strip() for text in observations))
        assert not terminations.any()
        assert not truncations.any()
        assert list(infos["execution_status"]) == ["ok"] * 4
    _, rewards, terminations, _, infos = envs.step((ACTIONS[2],) * 4)
    assert terminations.all()
    return questions, outputs, list(rewards), list(infos["stop_reason"])


def expected_questions(env_id):
    with gymnasium.make(env_id) as env:
        return tuple(env.reset(seed=seed)[0] for seed in (1, 2, 3, 4))


def test_sync_vector(env_id):
    envs = gymnasium.make_vec(env_id, num_envs=4, vectorization_mode="sync")
    questions, outputs, rewards, reasons = run_vector(envs)
    assert questions == expected_questions(env_id)
    assert outputs == [("42",) * 4, ("2",) * 4]
    assert reasons == ["answered"] * 4
    assert all(reward in (0.0, 1.0) for reward in rewards)
    envs.close()


def test_async_vector_without_shared_memory_is_correct(env_id):
    envs = gymnasium.make_vec(
        env_id, num_envs=4, vectorization_mode="async", vector_kwargs={"shared_memory": False}
    )
    questions, outputs, _, reasons = run_vector(envs)
    assert questions == expected_questions(env_id)
    assert outputs == [("42",) * 4, ("2",) * 4]
    assert reasons == ["answered"] * 4
    envs.close()


def test_async_vector_with_shared_memory_is_refused_not_corrupted(env_id):
    with pytest.raises(ValueError, match="shared_memory=False"):
        gymnasium.make_vec(env_id, num_envs=2, vectorization_mode="async")
