"""The vector environment: what Gymnasium's own does, but with cells side by side."""

import copy
import gc
import pickle
import subprocess
import sys
import threading
import time
import warnings
from functools import partial

import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from gymnasium.wrappers.vector import DictInfoToList
from gymnasium.wrappers.vector import RecordEpisodeStatistics as RecordVectorStatistics

from mathenv import MathToolEnv
from mathenv.env import INTERPRETERS
from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter import Limits
from mathenv.protocol import code_block
from mathenv.spaces import UnicodeText
from mathenv.types import ExecutionResult, ExecutionStatus, Problem
from mathenv.vector import MathToolVectorEnv

ID = "MathTool-v0"
MODES = list(AutoresetMode)
PROBLEMS = [Problem(f"p{n}", f"What is {n} + 1?", str(n + 1)) for n in range(8)]
ODD_TEXT = ["", "\x00tail\x00", "日本\u2028", "😀" * 2000, "\ud800"]


@pytest.fixture(scope="module", autouse=True)
def _nothing_of_others():
    """What other tests of this process have left open is no warning about these."""
    gc.collect()


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


class Echo:
    """An interpreter that answers with the code it was given and counts what runs at once."""

    description = {"host": "echo"}  # noqa: RUF012

    def __init__(self, wait_for=0):
        self.lock = threading.Lock()
        self.running = self.most = self.sessions = 0
        self.barrier = threading.Barrier(wait_for) if wait_for else None

    def session(self, *, seed=0):
        with self.lock:
            self.sessions += 1
        return EchoSession(self)

    def close(self):
        pass


class EchoSession:
    def __init__(self, owner):
        self.owner = owner

    def run(self, code):
        owner = self.owner
        with owner.lock:
            owner.running += 1
            owner.most = max(owner.most, owner.running)
        if owner.barrier is not None:
            owner.barrier.wait(60)  # comes back only if that many cells run at once
        with owner.lock:
            owner.running -= 1
        return ExecutionResult(ExecutionStatus.OK, code)

    def close(self):
        pass


def make(num_envs=3, **settings):
    return gymnasium.make_vec(
        ID, num_envs=num_envs, **{"problems": PROBLEMS, "interpreter": Echo(), **settings}
    )


def cell(text):
    return code_block(text)


# What Gymnasium asks of a vector environment.


def test_make_vec_takes_it_by_default_and_without_a_warning():
    with_default = gymnasium.make_vec(ID, num_envs=64, interpreter=Echo())
    assert isinstance(with_default.unwrapped, MathToolVectorEnv)
    assert isinstance(with_default, VectorEnv)
    assert with_default.num_envs == 64
    assert with_default.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert repr(with_default) == "MathToolVectorEnv(MathTool-v0, num_envs=64)"
    with_default.close()


def test_its_spaces_are_the_batched_ones():
    envs = make(4)
    assert envs.single_observation_space == envs.single_action_space == UnicodeText()
    assert envs.observation_space == batch_space(UnicodeText(), 4)
    assert envs.action_space == batch_space(UnicodeText(), 4)
    envs.action_space.seed(1)
    observations, _ = envs.reset(seed=0)
    for _ in range(4):
        assert observations in envs.observation_space
        actions = envs.action_space.sample()
        observations, rewards, terminations, truncations, infos = envs.step(actions)
        assert (rewards.dtype, terminations.dtype, truncations.dtype) == (float, bool, bool)
        assert rewards.shape == terminations.shape == truncations.shape == (4,)
        assert isinstance(infos, dict)
    envs.close()


def script(rng, num_envs):
    """Turns that print, answer, or hold neither: episodes end at different steps."""
    choices = [cell("print(1)"), cell("x"), r"\boxed{3}", "hm"]
    return tuple(choices[i] for i in rng.choice(4, size=num_envs, p=[0.4, 0.3, 0.2, 0.1]))


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.name)
def test_it_does_what_sync_vector_env_does(mode):
    """Step by step, over resets, in every autoreset mode: texts, rewards, flags and infos."""
    single = partial(gymnasium.make, ID, problems=PROBLEMS, interpreter=Echo(), horizon=4)
    theirs = SyncVectorEnv([single] * 5, autoreset_mode=mode)
    ours = make(5, horizon=4, autoreset_mode=mode)
    assert ours.metadata == theirs.metadata
    assert data_equivalence(ours.reset(seed=7), theirs.reset(seed=7))
    rng, ends = np.random.default_rng(0), 0
    for _ in range(30):
        actions = script(rng, 5)
        ours_now, theirs_now = ours.step(actions), theirs.step(actions)
        assert data_equivalence(ours_now, theirs_now)
        ended = ours_now[2] | ours_now[3]
        ends += ended.sum()
        if mode is AutoresetMode.DISABLED and ended.any():
            again = [envs.reset(options={"reset_mask": ended}) for envs in (ours, theirs)]
            assert data_equivalence(*again)
    assert ends > 20
    assert ours.np_random_seed == theirs.np_random_seed
    ours.close()
    theirs.close()


def test_same_step_keeps_the_last_observation_and_info():
    envs = make(2, autoreset_mode="SameStep")
    first, _ = envs.reset(seed=0)
    observations, _, terminations, _, infos = envs.step((r"\boxed{1}", cell("print(1)")))
    assert terminations.tolist() == [True, False]
    assert observations[0] != first[0]
    assert observations[1] == "print(1)"
    assert infos["final_obs"].tolist() == ["", None]
    assert infos["_final_info"].tolist() == [True, False]
    assert infos["final_info"]["stop_reason"].tolist() == ["answered", None]
    assert infos["stop_reason"].tolist() == [None, None]
    envs.close()


def test_with_autoreset_off_an_ended_environment_is_refused_until_it_is_reset():
    envs = make(3, autoreset_mode=AutoresetMode.DISABLED)
    envs.reset(seed=0)
    _, _, ended, _, _ = envs.step((cell("1"), "hm", cell("1")))
    with pytest.raises(ResetNeeded, match=r"environments \[1\] have ended"):
        envs.step(("hm",) * 3)
    options = {"reset_mask": ended}
    observations, infos = envs.reset(seed=[None, 5, None], options=options)
    assert options == {"reset_mask": ended}, "left as it was: wrappers look at it too"
    assert infos["_turn"].tolist() == [False, True, False]
    assert observations[0] == "1"
    assert observations[1] in {p.question for p in PROBLEMS}
    envs.close()


def test_the_spec_makes_an_equal_vector_environment():
    envs = gymnasium.make_vec(ID, num_envs=2, horizon=3, shard=True)
    twin = gymnasium.make_vec(envs.spec)
    assert twin.num_envs == 2
    assert twin.get_attr("horizon") == (3, 3)
    assert twin.reset(seed=3)[0] == envs.reset(seed=3)[0]
    envs.close()
    twin.close()


def test_closing_twice_and_attributes():
    envs = make(2, render_mode="ansi")
    envs.reset(seed=0)
    envs.set_attr("horizon", [1, 2])
    assert envs.get_attr("horizon") == (1, 2)
    assert [p.id for p in envs.call("get_wrapper_attr", "problem")]
    assert all("[problem" in text for text in envs.render())
    envs.close()
    envs.close()


# Concurrency, one interpreter, problems.


def test_cells_run_at_once():
    interpreter = Echo(wait_for=16)
    envs = make(16, interpreter=interpreter, threads=16)
    envs.reset(seed=0)
    observations, *_ = envs.step([cell(f"cell {i}") for i in range(16)])
    assert observations == tuple(f"cell {i}" for i in range(16))
    assert interpreter.most == 16
    envs.close()


def test_threads_bound_the_cells_that_run_at_once():
    interpreter = Echo(wait_for=3)
    envs = make(12, interpreter=interpreter, threads=3)
    envs.reset(seed=0)
    for _ in range(3):
        envs.step((cell("1"),) * 12)
    assert interpreter.most == 3
    envs.close()


def test_the_sandbox_is_shared_and_sessions_are_not():
    envs = gymnasium.make_vec(ID, num_envs=64, autoreset_mode="Disabled")
    envs.reset(seed=0)
    outputs, *_, infos = envs.step([cell(f"x = {i}\nprint(x)") for i in range(64)])
    assert [text.strip() for text in outputs] == [str(i) for i in range(64)]
    assert infos["execution_status"].tolist() == ["ok"] * 64
    outputs, *_ = envs.step([cell("print(x + 1)")] * 64)
    assert [text.strip() for text in outputs] == [str(i + 1) for i in range(64)]
    assert len({id(interpreter) for interpreter in envs.get_attr("interpreter")}) == 1
    answers = [rf"\boxed{{{p.answer}}}" for p in envs.get_attr("problem")]
    _, rewards, terminations, *_ = envs.step(answers)
    assert rewards.sum() == 64
    assert terminations.all()
    envs.close()


def test_seeds_differ_by_environment_and_repeat():
    envs = make(8)
    first, _ = envs.reset(seed=3)
    again, _ = envs.reset(seed=3)
    assert first == again
    assert len(set(first)) > 3
    apart, _ = envs.reset(seed=[10, 3, *[None] * 6])
    assert apart[1] == first[0]
    assert first[0] == MathToolEnv(PROBLEMS, interpreter=Echo()).reset(seed=3)[0]
    envs.close()


def test_shards_cover_every_problem_once():
    envs = make(4, shard=True, order="sequential", autoreset_mode="SameStep")
    seen = list(envs.reset(seed=0)[1]["problem_id"])
    seen += list(envs.step(("hm",) * 4)[-1]["problem_id"])
    assert sorted(seen) == [p.id for p in PROBLEMS]
    with pytest.raises(ConfigError, match="8 problems cannot be sharded over 9"):
        MathToolVectorEnv(9, PROBLEMS, shard=True)
    envs.close()


def test_an_option_goes_to_every_environment():
    """All samples of one problem: the group that online preference learning needs."""
    envs = make(4)
    observations, _ = envs.reset(seed=0, options={"problem": "p5"})
    assert observations == ("What is 5 + 1?",) * 4
    envs.close()


# Text.


@pytest.mark.parametrize("batch", [tuple, list, partial(np.array, dtype=object)])
def test_any_text_passes_unchanged_both_ways(batch):
    problems = [Problem(f"p{n}", text, "1") for n, text in enumerate(ODD_TEXT)]
    envs = make(5, problems=problems, shard=True)
    questions, _ = envs.reset(seed=0)
    assert questions == tuple(ODD_TEXT)
    codes = [f"# {text}\n1" for text in ODD_TEXT]
    observations, *_ = envs.step(batch([cell(code) for code in codes]))
    assert list(observations) == codes
    assert [turns[0].action for turns in envs.get_attr("turns")] == [cell(c) for c in codes]
    assert all(type(text) is str for text in observations)
    envs.close()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        ("hmm", "3 texts, not one string"),
        (["a", "b"], "got 2 values"),
        (["a", "b", None], "got a NoneType"),
        ([b"a", "b", "c"], "got a bytes"),
    ],
)
def test_actions_that_are_no_batch_of_text_are_refused(actions, message):
    envs = make(3)
    envs.reset(seed=0)
    with pytest.raises(ConfigError, match=message):
        envs.step(actions)
    assert envs.get_attr("turns") == ((), (), ())
    envs.close()


@pytest.mark.parametrize(
    "mask", [[True, False], [False] * 3, [1, 0, 0], "yes"], ids=["short", "none", "ints", "text"]
)
def test_masks_that_do_not_fit_are_refused(mask):
    envs = make(3)
    envs.reset(seed=0)
    with pytest.raises(ConfigError, match="reset_mask must hold 3 booleans"):
        envs.reset(options={"reset_mask": mask})
    envs.close()


def test_other_arguments_that_cannot_be_are_refused():
    for wrong in ({"num_envs": 0}, {"threads": 0}, {"autoreset_mode": "Never"}, {"horizon": 0}):
        with pytest.raises(ConfigError):
            make(**{"num_envs": 2, **wrong})
    envs = make(2)
    with pytest.raises(ConfigError, match="3 seeds for 2"):
        envs.reset(seed=[1, 2, 3])
    with pytest.raises(ResetNeeded):
        envs.step(("a", "b"))
    envs.close()


def test_an_error_is_raised_when_all_have_come_back():
    class Failing(Echo):
        def session(self, *, seed=0):
            raise ZeroDivisionError

    envs = make(3, interpreter=Failing())
    envs.reset(seed=0)
    with pytest.raises(ZeroDivisionError):
        envs.step((cell("1"), "hm", "hm"))
    assert [len(turns) for turns in envs.get_attr("turns")] == [0, 1, 1]
    envs.close()


# The usual wrappers.


def play(envs, steps, action):
    """Step with one action; return the statistics of the episodes that ended."""
    found = []
    for _ in range(steps):
        *_, infos = envs.step((action,) * envs.num_envs)
        ended = infos.get("_episode", np.zeros(envs.num_envs, dtype=bool))
        if ended.any():
            stats = infos["episode"]
            found += list(zip(stats["r"][ended].tolist(), stats["l"][ended].tolist(), strict=True))
    return found


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_episode_statistics_over_all(mode):
    envs = RecordVectorStatistics(make(3, horizon=2, autoreset_mode=mode))
    envs.reset(seed=0)
    steps = 6 if mode is AutoresetMode.NEXT_STEP else 4
    assert play(envs, steps, cell("1")) == [(0.0, 2)] * 6
    envs.reset(seed=0, options={"problem": "p4"})
    assert play(envs, 1, r"\boxed{5}") == [(1.0, 1)] * 3
    envs.close()


def test_episode_statistics_with_autoreset_off():
    envs = RecordVectorStatistics(make(2, horizon=3, autoreset_mode="Disabled"))
    envs.reset(seed=0)
    _, _, ended, _, infos = envs.step((cell("1"), "hm"))
    assert infos["episode"]["l"].tolist() == [0, 1]
    envs.reset(options={"reset_mask": ended})
    _, _, ended, _, infos = envs.step((r"\boxed{1}", cell("1")))
    assert infos["episode"]["l"].tolist() == [2, 0], "the mask reset one of them only"
    envs.close()


def test_time_limit_in_each_environment():
    for envs in (
        make(3, max_episode_steps=2),
        MathToolVectorEnv(
            3, PROBLEMS, interpreter=Echo(), wrappers=[partial(TimeLimit, max_episode_steps=2)]
        ),
        make(
            3,
            vectorization_mode="sync",
            wrappers=[partial(TimeLimit, max_episode_steps=2)],
        ),
    ):
        envs.reset(seed=0)
        flags = [envs.step((cell("1"),) * 3)[3].tolist() for _ in range(5)]
        assert flags == [[n in (1, 4)] * 3 for n in range(5)], "a reset step counts for nothing"
        envs.close()


def test_statistics_in_each_environment_and_infos_as_a_list():
    envs = DictInfoToList(
        MathToolVectorEnv(
            2, PROBLEMS, interpreter=Echo(), wrappers=[RecordEpisodeStatistics], horizon=1
        )
    )
    envs.reset(seed=0)
    *_, infos = envs.step(("hm", "hm"))
    assert [info["episode"]["l"] for info in infos] == [1, 1]
    assert [info["stop_reason"] for info in infos] == ["no_action"] * 2
    envs.close()


# Copies, integers, machinery that fails.


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_a_vector_is_copied_between_episodes(copied):
    envs = gymnasium.make_vec(ID, num_envs=np.int64(2), threads=np.int8(2), problems=PROBLEMS)
    envs.reset(seed=np.array([1, 2]))
    envs.step([cell("x = 1")] * 2)
    envs.step(["hm"] * 2)
    twin = copied(envs)
    assert envs.reset(seed=np.int64(3))[0] == twin.reset(seed=3)[0]
    assert envs.step([cell("print(6)")] * 2)[0] == twin.step([cell("print(6)")] * 2)[0]
    envs.close()
    twin.close()


def test_a_vector_that_is_copied_in_an_episode_branches():
    envs = gymnasium.make_vec(ID, num_envs=2, problems=PROBLEMS)
    envs.reset(seed=1)
    envs.step([cell("x = 1")] * 2)
    twin = copy.deepcopy(envs)
    assert twin.step([cell("x += 1\nprint(x)")] * 2)[0] == ("2", "2")
    assert envs.step([cell("print(x)")] * 2)[0] == ("1", "1")
    envs.close()
    twin.close()


def test_a_start_that_fails_is_tried_once_for_all():
    starts = []

    def fails(limits):
        starts.append(limits)
        time.sleep(0.2)
        raise InfraError("too slow")

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(INTERPRETERS, "local", fails)
        settings = {"problems": PROBLEMS, "limits": Limits(output_chars=99), "threads": 3}
        envs = gymnasium.make_vec(ID, num_envs=20, **settings)
        envs.reset(seed=0)
        with pytest.raises(InfraError, match="too slow"):
            envs.step([cell("1")] * 20)
        assert len(starts) <= 3  # one for each thread, if one is late
        with pytest.raises(ResetNeeded):
            envs.step([cell("1")] * 20)
    envs.close()


AT_LIMIT = """
import gc, os, resource, gymnasium, mathenv
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
def helpers():
    found = 0
    for name in os.listdir("/proc"):
        try:
            command = open(f"/proc/{name}/cmdline").read() if name.isdigit() else ""
        except OSError:
            command = ""
        found += "runner.py" in command and f'"host_pid": {os.getpid()}}}' in command
    return found
def files():
    return len(os.listdir("/proc/self/fd"))
envs = gymnasium.make_vec("MathTool-v0", num_envs=40)
code = "```python\\nprint(1)\\n```"
envs.reset(seed=0)
envs.step([code, *["hm"] * 39])
envs.reset(seed=0)
before = files()
resource.setrlimit(resource.RLIMIT_NOFILE, (before + 50, hard))
try:
    envs.step([code] * 40)
except mathenv.InfraError as error:
    print("ulimit -n" in str(error))
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
envs.reset(seed=0)
import time
for _ in range(50):  # the helpers hear of those that have ended with their next requests
    envs.step([code, code, *["hm"] * 38])
    envs.reset(seed=0)
    time.sleep(0.1)
    if helpers() <= 6 and files() <= before + 3:
        break
print(helpers() <= 6, files() <= before + 3)
"""


def test_more_environments_than_files_say_ulimit_and_leave_nothing():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AT_LIMIT], capture_output=True, text=True
    )
    assert done.stdout.split() == ["True"] * 3, done.stderr
