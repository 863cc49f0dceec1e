r"""MathToolEnv: what each kind of turn does, who gets blamed, what is told."""

import copy
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import get_args

import cloudpickle
import gymnasium
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.wrappers import DelayObservation, FrameStackObservation

import mathenv
from mathenv.env import INTERPRETERS, MathToolEnv, SandboxTier, shared_interpreter
from mathenv.errors import ConfigError, DataError, InfraError
from mathenv.grading import grade
from mathenv.interpreter.base import HostLimitError, Interpreter, Limits
from mathenv.interpreter.local import TIERS, LocalInterpreter
from mathenv.protocol import code_block
from mathenv.types import (
    ExecutionResult,
    ExecutionStatus,
    Grade,
    GradeStatus,
    Problem,
    StopReason,
)

PROBLEMS = tuple(
    Problem(f"p{n}", f"What is {n} + {n}?", str(2 * n), "sums", "train", "1") for n in range(10, 20)
)
INFO_KEYS = {
    "problem_id", "source", "split", "level", "turn", "horizon", "stop_reason",
    "execution_status", "grade_status", "answer", "valid",
}  # fmt: skip
OK = ExecutionResult(ExecutionStatus.OK, "20\n")
BROKEN = ExecutionResult(ExecutionStatus.INFRA, "worker gone", session_lost=True)


class CannedInterpreter:
    """Implements the protocol without running anything: replies come from a list.

    An exception in the list is raised. `log` notes (session number, code), so that tests
    see which session got which cell.
    """

    def __init__(self, *replies):
        self.replies = list(replies)
        self.log = []
        self.seeds = []
        self.open = 0
        self.closed = False

    @property
    def description(self):
        return {"host": "canned"}

    def session(self, *, seed=0):
        self.seeds.append(seed)
        self.open += 1
        return CannedSession(self, len(self.seeds))

    def close(self):
        self.closed = True


class CannedSession:
    def __init__(self, owner, number):
        self.owner = owner
        self.number = number
        self.is_open = True

    def run(self, code):
        self.owner.log.append((self.number, code))
        reply = self.owner.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    def close(self):
        self.owner.open -= self.is_open
        self.is_open = False


def make(*replies, grader=grade, **options):
    interpreter = CannedInterpreter(*replies)
    env = MathToolEnv(PROBLEMS, interpreter=interpreter, grader=grader, **options)
    env.reset(seed=0, options={"problem": "p10"})
    return env, interpreter


@pytest.fixture
def env():
    env = MathToolEnv(PROBLEMS, horizon=3)
    yield env
    env.close()


def test_the_canned_interpreter_implements_the_protocol():
    assert isinstance(CannedInterpreter(), Interpreter)


# --- what each kind of turn does, with the real interpreter


def test_code_then_answer(env):
    question, info = env.reset(options={"problem": "p10"})
    assert question == "What is 10 + 10?"
    assert (info["turn"], info["stop_reason"], info["valid"]) == (0, None, True)
    observation, reward, terminated, truncated, info = env.step(code_block("x = 10\nprint(x + x)"))
    assert observation.strip() == "20"
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert (info["turn"], info["execution_status"], info["grade_status"]) == (1, "ok", None)
    observation, reward, terminated, truncated, info = env.step("So \\boxed{20}.")
    assert (observation, reward, terminated, truncated) == ("", 1.0, True, False)
    assert info["stop_reason"] == "answered"
    assert info["grade_status"] == "correct"
    assert info["answer"] == "20"
    assert info["execution_status"] is None
    assert [turn.code for turn in env.turns] == ["x = 10\nprint(x + x)", None]
    assert env.turns[0].execution.status is ExecutionStatus.OK
    assert env.stop_reason is StopReason.ANSWERED
    assert env.grade.correct


def test_names_persist_within_an_episode_and_not_beyond(env):
    env.reset()
    env.step(code_block("secret = 41"))
    assert env.step(code_block("print(secret + 1)"))[0].strip() == "42"
    env.reset()
    observation, _, _, _, info = env.step(code_block("print(secret)"))
    assert "NameError" in observation
    assert info["execution_status"] == "error"


def test_an_error_is_an_observation(env):
    env.reset()
    observation, reward, terminated, truncated, info = env.step(code_block("1 / 0"))
    assert "ZeroDivisionError" in observation
    assert (reward, terminated, truncated, info["valid"]) == (0.0, False, False, True)


def test_reference_solutions_solve_the_default_problems():
    """The whole chain, problem to reward, on cells that carry state from turn to turn."""
    env = MathToolEnv(order="sequential", horizon=10)
    solved = []
    for _ in range(15):
        env.reset()
        for cell in env.problem.solution:
            output = env.step(code_block(cell))[0]
        solved.append(env.step(f"\\boxed{{{output.splitlines()[-1]}}}")[1])
    assert solved == [1.0] * 15
    env.close()


def test_a_timeout_is_the_models_fault():
    env = MathToolEnv(PROBLEMS, limits=Limits(cell_seconds=0.5, grace_seconds=0.2))
    env.reset()
    _, _, terminated, truncated, info = env.step(code_block("while True: pass"))
    assert (terminated, truncated) == (False, False)
    assert (info["execution_status"], info["valid"]) == ("timeout", True)
    env.close()


def test_killed_helper_processes_cost_the_agent_nothing():
    """Names survive, because the earlier cells are replayed in the new session."""
    env = MathToolEnv(PROBLEMS, limits=Limits(output_chars=500))
    env.reset(seed=0)
    env.step(code_block("x = 5\nprint(x)"))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    helpers = [
        int(pid) for pid in children if b"runner.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert helpers
    for pid in helpers:
        os.kill(pid, signal.SIGKILL)
    observation, _, terminated, truncated, info = env.step(code_block("print(x + 1)"))
    assert (observation, terminated, truncated, info["valid"]) == ("6", False, False, True)
    env.close()


# --- what each kind of turn does, without running anything


def test_a_wrong_answer_ends_the_episode_too():
    env, interpreter = make()
    _, reward, terminated, truncated, info = env.step("\\boxed{21}")
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert (info["stop_reason"], info["grade_status"]) == ("answered", "incorrect")
    assert info["valid"] is True
    assert interpreter.seeds == [], "an answer needs no session"


def test_a_box_without_braces_is_an_answer():
    env, _ = make()
    _, reward, terminated, _, info = env.step("So it is $\\boxed 20$.")
    assert (reward, terminated, info["stop_reason"]) == (1.0, True, "answered")


def test_an_answer_wins_over_code_which_is_not_run():
    env, interpreter = make()
    _, reward, terminated, _, info = env.step(code_block("print(20)") + "\n\\boxed{20}")
    assert (reward, terminated, info["execution_status"]) == (1.0, True, None)
    assert interpreter.log == []
    assert env.turns[0].code == "print(20)"
    assert env.turns[0].execution is None


def test_a_box_inside_code_is_no_answer():
    env, interpreter = make(OK)
    _, _, terminated, _, info = env.step(code_block("print('\\\\boxed{20}')"))
    assert (terminated, info["answer"]) == (False, None)
    assert len(interpreter.log) == 1


def test_an_empty_box_is_an_answer_that_is_none():
    env, _ = make()
    _, reward, terminated, _, info = env.step("\\boxed{}")
    assert (reward, terminated) == (0.0, True)
    assert (info["stop_reason"], info["grade_status"]) == ("answered", "no_answer")


@pytest.mark.parametrize("turn", ["So \\boxed 20.", "\\framebox{20}"])
def test_a_box_in_another_spelling_is_graded_as_the_answer_it_is(turn):
    env, _ = make()
    _, reward, terminated, _, info = env.step(turn)
    assert (reward, terminated, info["answer"]) == (1.0, True, "20")


def test_a_box_that_announces_an_answer_does_not_end_the_episode():
    env, interpreter = make(OK)
    turn = "The answer will be in \\boxed{}.\n" + code_block("print(20)")
    _, _, terminated, _, info = env.step(turn)
    assert (terminated, info["answer"], len(interpreter.log)) == (False, None, 1)


@pytest.mark.parametrize(
    ("turn", "answer"), [("\\boxed{7} \\boxed 20", "7"), ("\\boxed{20}", "20")]
)
def test_the_paper_s_reading_is_the_one_that_is_graded(turn, answer):
    env, _ = make(protocol="paper")
    _, reward, _, _, info = env.step(turn)
    assert (info["answer"], reward) == (answer, float(answer == "20"))


def test_reasoning_holds_neither_code_nor_answer():
    env, interpreter = make(OK)
    _, _, terminated, _, _ = env.step("<think>\\boxed{20}?</think>\n" + code_block("print(20)"))
    assert not terminated
    assert interpreter.log == [(1, "print(20)")]
    observation, reward, terminated, _, info = env.step(
        "<think>\n" + code_block("x") + "\n\\boxed{20}"
    )
    assert (reward, terminated, info["execution_status"]) == (0.0, False, "unread")
    assert "</think>" in observation
    env, _ = make(protocol="paper")
    _, reward, terminated, _, info = env.step("<think>\n" + code_block("x") + "\n\\boxed{20}")
    assert (reward, terminated, info["stop_reason"]) == (0.0, True, "no_action")


# --- what models write instead of the paper's format


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("1. Compute:\n   ```python\n   x = 6\n   print(x*7)\n   ```", "42"),
        ("- do:\n\t```python\n\tx=6\n\tprint(x*7)\n\t```", "42"),
        ("1. Compute:\n\n    ```python\n    x = 6\n    print(x*7)\n    ```", "42"),
        (code_block("\ufeffprint(1)"), "1"),
        ("Now: ```python\nprint(1)```<|im_end|>", "1"),
    ],
)
def test_what_models_write_runs(env, text, output):
    env.reset(seed=0, options={"problem": "p10"})
    observation, _, terminated, truncated, info = env.step(text)
    assert (observation.strip(), info["execution_status"]) == (output, "ok")
    assert (terminated, truncated) == (False, False)


def test_a_turn_that_cannot_be_read_is_told_why_and_costs_a_turn():
    env, interpreter = make(OK, horizon=3)
    observation, reward, terminated, truncated, info = env.step("```bash\nls\n```")
    assert "marked 'bash', not python" in observation
    assert "```python" in observation
    assert (reward, terminated, truncated, info["turn"]) == (0.0, False, False, 1)
    assert (info["execution_status"], info["valid"]) == ("unread", True)
    assert interpreter.log == []
    assert env.turns[0].code is None
    assert env.turns[0].execution == ExecutionResult(ExecutionStatus.UNREAD, observation)
    assert env.step(code_block("a"))[0] == "20\n"
    observation, _, terminated, truncated, info = env.step("```bash\nls\n```")
    assert (observation, truncated, info["stop_reason"]) == ("", True, "horizon")
    assert info["execution_status"] is None


def test_a_turn_that_cannot_be_read_is_no_cell_to_repeat():
    """The second try after a failure replays what ran, and nothing else."""
    env, interpreter = make(OK, BROKEN, OK, OK)
    for action in (code_block("a"), "```bash\nls\n```", code_block("b")):
        env.step(action)
    assert [code for _, code in interpreter.log] == ["a", "b", "a", "b"]


def test_the_papers_protocol_reads_nothing_else():
    env, interpreter = make(protocol="paper")
    _, _, terminated, _, info = env.step("```bash\nls\n```")
    assert (terminated, info["stop_reason"]) == (True, "no_action")
    env, interpreter = make(OK, protocol="paper")
    env.step("  ```python\n  x\n  ```")
    assert interpreter.log == [(1, "  x")]
    env, interpreter = make(protocol="paper")
    assert env.step("```python\nx")[4]["stop_reason"] == "no_action"


@pytest.mark.parametrize(
    "action", ["~~~\n\\boxed{20}\n~~~", "\\boxed{20}\n~~~python\n'\\boxed{21}\n~~~"]
)
def test_the_papers_answer_is_the_one_that_is_graded(action):
    for protocol, answer in (("paper", "20"), ("lenient", "20")):
        env, _ = make(protocol=protocol)
        _, reward, _, _, info = env.step(action)
        if protocol == "paper" and "21" in action:
            answer = "21"
        assert (info["answer"], env.grade.answer) == (answer, answer)
        assert reward == (answer == "20")


def test_half_a_cell_is_not_run_where_a_limit_cut_it():
    env, interpreter = make(OK)
    assert env.step("```python\nprint(1)")[4]["execution_status"] == "ok"
    env.action_is_cut = True
    _, _, terminated, _, info = env.step("```python\nprint(1)")
    assert (terminated, info["stop_reason"]) == (True, "no_action")
    assert len(interpreter.log) == 1


def test_a_silent_cell_says_so_by_choice():
    silent = ExecutionResult(ExecutionStatus.OK, "")
    env, _ = make(silent)
    assert env.step(code_block("x = 1"))[0] == ""
    error = ExecutionResult(ExecutionStatus.TIMEOUT, "")
    env, _ = make(silent, OK, error, say_empty=True)
    assert "printed nothing" in env.step(code_block("x = 1"))[0]
    assert env.turns[0].execution == silent
    assert env.step(code_block("x"))[0] == "20\n"
    assert env.step(code_block("x"))[0] == ""


@pytest.mark.parametrize("action", ["", "I do not know.", "```output\n20\n```", "20"])
def test_no_action_terminates(action):
    env, _ = make()
    _, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert (info["stop_reason"], info["grade_status"]) == ("no_action", "no_answer")
    assert env.grade == Grade(False, GradeStatus.NO_ANSWER)


def test_the_horizon_truncates_and_does_not_run_the_last_cell():
    env, interpreter = make(OK, horizon=2)
    assert env.step(code_block("a"))[2:4] == (False, False)
    observation, reward, terminated, truncated, info = env.step(code_block("b"))
    assert (observation, reward, terminated, truncated) == ("", 0.0, False, True)
    assert truncated is True
    assert (info["stop_reason"], info["turn"], info["valid"]) == ("horizon", 2, True)
    assert interpreter.log == [(1, "a")]
    assert env.turns[1].code == "b"
    assert env.turns[1].execution is None


def test_an_answer_on_the_last_turn_counts():
    env, _ = make(horizon=1)
    _, reward, terminated, truncated, _ = env.step("\\boxed{20}")
    assert (reward, terminated, truncated) == (1.0, True, False)


# --- failures of the machinery are excluded, never scored


@pytest.mark.parametrize("failure", [BROKEN, InfraError("no sandbox")])
def test_a_cell_is_tried_again_in_a_fresh_session(failure):
    env, interpreter = make(failure, OK)
    observation, _, terminated, truncated, info = env.step(code_block("a"))
    assert (observation, terminated, truncated) == ("20\n", False, False)
    assert (info["execution_status"], info["valid"]) == ("ok", True)
    assert interpreter.log == [(1, "a"), (2, "a")]
    assert interpreter.seeds[0] == interpreter.seeds[1]
    assert interpreter.open == 1


def test_the_second_session_first_replays_the_earlier_cells():
    env, interpreter = make(OK, BROKEN, OK, OK)
    env.step(code_block("a"))
    _, _, _, _, info = env.step(code_block("b"))
    assert info["execution_status"] == "ok"
    assert interpreter.log == [(1, "a"), (1, "b"), (2, "a"), (2, "b")]


def test_a_replay_that_differs_is_not_trusted():
    """Running on with other values than the agent saw would be a silent lie."""
    env, interpreter = make(OK, BROKEN, replace(OK, output="19\n"), OK)
    env.step(code_block("a"))
    _, _, _, truncated, info = env.step(code_block("b"))
    assert (truncated, info["stop_reason"]) == (True, "infra")
    assert interpreter.log == [(1, "a"), (1, "b"), (2, "a")]


@pytest.mark.parametrize(
    "failures", [(BROKEN, BROKEN), (InfraError("no sandbox"), InfraError("no sandbox"))]
)
def test_an_interpreter_that_fails_twice_ends_the_episode_excluded(failures):
    env, interpreter = make(*failures)
    observation, reward, terminated, truncated, info = env.step(code_block("a"))
    assert (observation, reward, terminated, truncated) == ("", 0.0, False, True)
    assert (info["stop_reason"], info["grade_status"]) == ("infra", "infra")
    assert info["valid"] is False
    assert env.grade.counts is False
    assert env.turns[0].execution.status is ExecutionStatus.INFRA
    assert interpreter.open == 0
    with pytest.raises(ResetNeeded):
        env.step(code_block("a"))
    assert env.reset()[1]["valid"] is True


def test_a_bug_in_an_interpreter_is_not_hidden():
    env, _ = make(ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        env.step(code_block("a"))


@pytest.mark.parametrize("model_fault", ["error", "timeout", "memory", "died", "blocked"])
def test_only_infra_is_tried_again(model_fault):
    env, interpreter = make(ExecutionResult(ExecutionStatus(model_fault), "x"))
    _, _, _, truncated, info = env.step(code_block("a"))
    assert (truncated, info["valid"], len(interpreter.log)) == (False, True, 1)


def graders(*verdicts):
    queue = list(verdicts)

    def grader(gold, response):
        verdict = queue.pop(0)
        if isinstance(verdict, Exception):
            raise verdict
        return verdict

    return grader, queue


INFRA_GRADE = Grade(False, GradeStatus.INFRA, "20")


@pytest.mark.parametrize("failure", [INFRA_GRADE, InfraError("grader gone")])
def test_grading_is_tried_again_once(failure):
    grader, queue = graders(failure, Grade(True, GradeStatus.CORRECT, "20"))
    env, _ = make(grader=grader)
    _, reward, terminated, _, info = env.step("\\boxed{20}")
    assert (reward, terminated, info["valid"], queue) == (1.0, True, True, [])


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ((INFRA_GRADE, INFRA_GRADE), "infra"),
        ((InfraError("grader gone"), InfraError("grader gone")), "infra"),
        ((Grade(False, GradeStatus.GOLD_ERROR),), "gold_error"),
    ],
)
def test_an_answer_that_cannot_be_graded_is_excluded(verdicts, status):
    grader, queue = graders(*verdicts)
    env, _ = make(grader=grader)
    _, reward, terminated, truncated, info = env.step("\\boxed{20}")
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert (info["stop_reason"], info["grade_status"], info["valid"]) == ("infra", status, False)
    assert (info["answer"], queue) == ("20", [])


def test_an_unusable_reference_answer_is_excluded_by_the_real_grader():
    env, _ = make()
    env.reset(options={"problem": Problem("bad", "?", "  ")})
    _, reward, _, truncated, info = env.step("\\boxed{20}")
    assert (reward, truncated, info["valid"]) == (0.0, True, False)
    assert info["grade_status"] == "gold_error"


# --- information


def values_in(value):
    """All leaves of nested containers, keys included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from values_in(inner)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            yield from values_in(inner)
    else:
        yield value


@pytest.mark.parametrize("action", ["", "\\boxed{1}", code_block("a"), "no idea"])
def test_the_reference_answer_is_nowhere_to_be_seen(action):
    """Marked answers, so that any copy is found, in whatever field or observation."""
    problems = [
        Problem(f"id{n}", f"Question {n}?", f"GOLD-{n}", "s", "t", "1", solution=("GOLD-code",),
                metadata={"hint": "GOLD-hint"})
        for n in range(5)
    ]  # fmt: skip
    env = MathToolEnv(
        problems, interpreter=CannedInterpreter(*[OK] * 50), horizon=2, render_mode="ansi"
    )
    for seed in range(5):
        seen = [*env.reset(seed=seed)]
        while env.stop_reason is None:
            seen += env.step(action)
        seen.append(env.render())
        leaves = list(values_in(seen))
        assert env.problem.answer.startswith("GOLD")
        assert not [leaf for leaf in leaves if "GOLD" in str(leaf)]
        assert not [leaf for leaf in leaves if isinstance(leaf, Problem | Grade)]


def test_info_has_the_same_plain_keys_always():
    env, _ = make(OK, horizon=2)
    infos = [env.reset()[1], env.step(code_block("a"))[4], env.step("\\boxed{1}")[4]]
    for info in infos:
        assert set(info) == INFO_KEYS
        assert all(type(value) in (str, int, bool, type(None)) for value in info.values())
    assert infos[0] is not infos[1]
    documented = {word.strip(",") for word in MathToolEnv.__doc__.split()}
    assert documented >= INFO_KEYS


def test_infos_do_not_share_state():
    env, _ = make(OK)
    _, info = env.reset()
    info["problem_id"] = "changed"
    assert env.step(code_block("a"))[4]["problem_id"] != "changed"


def test_transcript():
    env, _ = make(OK, render_mode="ansi")
    assert env.render() == "[problem p10]\nWhat is 10 + 10?\n"
    env.step("Compute.\n" + code_block("print(20)"))
    env.step("\\boxed{20}")
    assert env.render() == (
        "[problem p10]\nWhat is 10 + 10?\n\n"
        "[turn 1 of 6]\nCompute.\n```python\nprint(20)\n```\n\n"
        "[ok]\n```output\n20\n\n```\n\n"
        "[turn 2 of 6]\n\\boxed{20}\n\n"
        "[answered, correct]\n"
    )


def test_without_a_render_mode_there_is_nothing_to_render():
    env, _ = make()
    assert env.render() is None


# --- order and seeds


def ids(env, count, **first):
    chosen = [env.reset(**first)[1]["problem_id"]]
    return chosen + [env.reset()[1]["problem_id"] for _ in range(count - 1)]


def test_a_seed_fixes_the_order_and_reset_goes_on():
    env = MathToolEnv(PROBLEMS)
    order = ids(env, 25, seed=4)
    assert ids(env, 25, seed=4) == order
    assert ids(MathToolEnv(PROBLEMS), 25, seed=4) == order
    assert ids(env, 25, seed=5) != order
    assert sorted(order[:10]) == sorted(order[10:20]) == [p.id for p in PROBLEMS]
    assert order[:10] != order[10:20]


def test_sequential_order_wraps():
    env = MathToolEnv(PROBLEMS[:3], order="sequential")
    assert ids(env, 5, seed=1) == ["p10", "p11", "p12", "p10", "p11"]
    assert ids(env, 2, seed=2) == ["p10", "p11"]


def test_the_session_seed_follows_from_the_reset_seed():
    def session_seeds(seed):
        interpreter = CannedInterpreter(*[OK] * 4)
        env = MathToolEnv(PROBLEMS, interpreter=interpreter)
        env.reset(seed=seed)
        env.step(code_block("a"))
        env.reset()
        env.step(code_block("a"))
        return interpreter.seeds

    assert session_seeds(1) == session_seeds(1) != session_seeds(2)
    assert len(set(session_seeds(1))) == 2


def test_choosing_the_problem():
    env = MathToolEnv(PROBLEMS)
    assert env.reset(options={"problem": 3})[1]["problem_id"] == "p13"
    assert env.reset(options={"problem": np.int64(3)})[1]["problem_id"] == "p13"
    assert env.reset(options={"problem": "p14"})[1]["problem_id"] == "p14"
    stranger = Problem("q", "Q?", "1")
    assert env.reset(options={"problem": stranger})[0] == "Q?"
    assert env.problem is stranger
    assert env.reset(options={})[1]["problem_id"].startswith("p1")


def test_choosing_does_not_disturb_the_order():
    env = MathToolEnv(PROBLEMS)
    order = ids(env, 4, seed=4)
    chosen = [env.reset(seed=4)[1]["problem_id"]]
    env.reset(options={"problem": 0})
    assert chosen + ids(env, 3) == order


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problem": "p99"}, "no problem has the id 'p99'"),
        ({"problem": 10}, "problem 10 of 10"),
        ({"problem": -1}, "problem -1 of 10"),
        ({"problem": 1.5}, "must be a Problem, an id or an index"),
        ({"question": "2+2?"}, "unknown reset options"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        MathToolEnv(PROBLEMS).reset(options=options)


def test_a_refused_reset_leaves_the_episode_as_it_was():
    env, interpreter = make(OK, OK)
    env.step(code_block("a"))
    with pytest.raises(ConfigError):
        env.reset(options={"problem": "p99"})
    env.step(code_block("b"))
    assert interpreter.log == [(1, "a"), (1, "b")]


# --- misuse


def test_step_before_reset_and_after_the_end():
    env = MathToolEnv(PROBLEMS)
    with pytest.raises(ResetNeeded, match="reset"):
        env.step("\\boxed{1}")
    with pytest.raises(ResetNeeded, match="reset"):
        _ = env.problem
    env.reset()
    env.step("\\boxed{1}")
    with pytest.raises(ResetNeeded, match="answered"):
        env.step("\\boxed{1}")


@pytest.mark.parametrize("action", [None, 3, b"\\boxed{1}", ["\\boxed{1}"]])
def test_actions_must_be_text(action):
    env, _ = make()
    with pytest.raises(ConfigError, match="text"):
        env.step(action)
    assert env.step("\\boxed{20}")[1] == 1.0, "a refused action is no turn"


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"horizon": 0}, ConfigError),
        ({"horizon": 2.0}, ConfigError),
        ({"horizon": True}, ConfigError),
        ({"order": "random"}, ConfigError),
        ({"render_mode": "human"}, ConfigError),
        ({"interpreter": "exec"}, ConfigError),
        ({"problems": "no_such_suite"}, ConfigError),
        ({"problems": []}, DataError),
        ({"problems": ["2+2"]}, ConfigError),
        ({"interpreter": CannedInterpreter(), "limits": Limits()}, ConfigError),
    ],
)
def test_wrong_arguments(options, error):
    with pytest.raises(error):
        MathToolEnv(**{"problems": PROBLEMS, **options})


# --- resources


def test_sessions_are_lazy_and_closed_at_the_end():
    env, interpreter = make(OK, OK)
    assert interpreter.open == 0
    env.step(code_block("a"))
    assert interpreter.open == 1
    env.step("\\boxed{20}")
    assert interpreter.open == 0
    env.reset()
    env.step(code_block("a"))
    env.reset()
    assert interpreter.open == 0, "an abandoned episode is closed by reset"


def test_close_leaves_a_shared_interpreter_open():
    env, interpreter = make(OK)
    env.step(code_block("a"))
    env.close()
    env.close()
    assert (interpreter.open, interpreter.closed) == (0, False)
    with pytest.raises(ResetNeeded):
        env.step("\\boxed{1}")


def test_environments_share_one_local_interpreter():
    first, second = MathToolEnv(PROBLEMS), MathToolEnv(PROBLEMS)
    assert first.interpreter is second.interpreter is shared_interpreter("local", Limits())
    other = MathToolEnv(PROBLEMS, limits=Limits(output_chars=100))
    assert other.interpreter is not first.interpreter


def test_a_sandbox_below_the_least_tier_is_refused(seccomp):
    assert get_args(SandboxTier) == TIERS
    for enough in ("seccomp", "rlimits"):
        assert MathToolEnv(PROBLEMS, min_tier=enough).interpreter is seccomp
        MathToolEnv(PROBLEMS, min_tier=enough, interpreter=seccomp)
    env = MathToolEnv(PROBLEMS, min_tier="namespaces")
    env.reset()
    weaker = r"tier 'seccomp', weaker than min_tier='namespaces'.*mathenv doctor"
    with pytest.raises(InfraError, match=weaker):
        env.step(code_block("a"))
    assert env.turns == ()
    with pytest.raises(InfraError, match=weaker):
        MathToolEnv(PROBLEMS, min_tier="namespaces", interpreter=seccomp)
    with pytest.raises(ConfigError, match="min_tier='docker': choose one of namespaces"):
        MathToolEnv(PROBLEMS, min_tier="docker")


def test_a_machine_without_a_sandbox_is_an_error_not_an_excluded_episode(monkeypatch):
    def no_sandbox(limits):
        raise InfraError("no sandbox works here")

    monkeypatch.setitem(INTERPRETERS, "local", no_sandbox)
    env = MathToolEnv(PROBLEMS, limits=Limits(output_chars=123))
    env.reset()
    with pytest.raises(InfraError, match="no sandbox works here"):
        env.step(code_block("a"))
    assert env.turns == ()


def test_gym_make_passes_an_interpreter_through():
    interpreter = CannedInterpreter(OK)
    env = gymnasium.make(mathenv.ENV_ID, problems=PROBLEMS, interpreter=interpreter)
    env.reset(seed=0)
    assert env.step(code_block("a"))[0] == "20\n"
    assert env.unwrapped.interpreter is interpreter
    env.close()


def test_no_process_outlives_the_program():
    """The shared interpreter is closed at exit although nobody closed the environment."""
    code = (
        "from mathenv import MathToolEnv, Problem\n"
        "env = MathToolEnv([Problem('p', 'q', '1')])\n"
        "env.reset()\n"
        "print(env.step('```python\\nprint(6 * 7)\\n```')[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    # Pipes are inherited: `run` would hang until the time limit if a helper lived on.
    assert (done.returncode, done.stdout.split()) == (0, ["42"]), done.stderr
    assert "Traceback" not in done.stderr


def test_the_grader_is_a_policy_by_name() -> None:
    problem = Problem("p", "Which part of 8 is 4, in percent?", "50")
    verdicts = []
    for grader in ("strict", "paper"):
        with MathToolEnv([problem], grader=grader) as env:
            env.reset(seed=0)
            verdicts.append(env.step(r"\boxed{0.5}")[1])
    assert verdicts == [0.0, 1.0]
    with pytest.raises(ConfigError, match="strict"):
        MathToolEnv([problem], grader="lenient")


# --- copies


COPIES = {
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
    "cloudpickle": lambda env: cloudpickle.loads(cloudpickle.dumps(env)),
    "deepcopy": copy.deepcopy,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=list(COPIES))
@pytest.mark.parametrize("moment", ["new", "reset", "ended"])
def test_an_environment_is_copied_between_episodes(copied, moment):
    """Also after it has run cells: the interpreter of a name is looked up again."""
    env = gymnasium.make(mathenv.ENV_ID, problems=PROBLEMS)
    if moment != "new":
        env.reset(seed=3)
        env.step(code_block("x = 1"))
        env.step("\\boxed{20}")
    if moment == "reset":
        env.reset(seed=4)
    twin = copied(env)
    assert twin.unwrapped.interpreter is shared_interpreter("local", Limits())
    if moment == "reset":
        assert twin.unwrapped.problem == env.unwrapped.problem
    else:
        assert env.reset(seed=5)[0] == twin.reset(seed=5)[0]
    cell = code_block("import random\nprint(random.random(), 'x' in globals())")
    assert env.step(cell) == twin.step(cell)
    assert [env.reset()[0] for _ in range(3)] == [twin.reset()[0] for _ in range(3)]


def test_a_deep_copy_in_an_episode_is_a_branch():
    env = gymnasium.make(mathenv.ENV_ID, problems=PROBLEMS)
    env.reset(seed=3)
    env.step(code_block("names = ['a']"))
    branch = copy.deepcopy(env)
    assert branch.step(code_block("names.append('b')\nprint(names)"))[0] == "['a', 'b']"
    assert env.step(code_block("print(names)"))[0] == "['a']"
    assert len(branch.unwrapped.turns) == len(env.unwrapped.turns) == 2
    with pytest.raises(ConfigError, match=r"end the episode first.*deepcopy"):
        pickle.dumps(env)
    env.step(code_block("import threading\nthreading.Thread(target=input).start()"))
    assert env.step("\\boxed{20}")[2]
    assert branch.step(code_block("print(names)"))[0] == "['a', 'b']"


def test_an_interpreter_that_was_given_is_shared_by_deep_copies_and_not_pickled():
    with LocalInterpreter(zygotes=1) as interpreter:
        env = MathToolEnv(PROBLEMS, interpreter=interpreter)
        env.reset(seed=0)
        assert copy.deepcopy(env).interpreter is copy.copy(interpreter) is interpreter
        with pytest.raises(ConfigError, match="interpreter='local'"):
            pickle.dumps(env)


def test_an_environment_in_a_spawned_process():
    env = MathToolEnv(PROBLEMS)
    env.reset(seed=0)
    env.step(code_block("1"))
    env.step("\\boxed{20}")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(play, env).result() == "42"


def play(env: MathToolEnv) -> str:
    env.reset(seed=1)
    return env.step(code_block("print(6 * 7)"))[0]


def test_a_shared_interpreter_that_somebody_closed_is_started_anew():
    limits = Limits(output_chars=1500)
    first, second = MathToolEnv(PROBLEMS, limits=limits), MathToolEnv(PROBLEMS, limits=limits)
    first.reset(seed=0)
    first.step(code_block("x = 5"))
    first.interpreter.close()
    second.reset(seed=0)
    assert second.step(code_block("print(6)"))[0] == "6"
    assert first.step(code_block("print(x)"))[0] == "5", "the cells so far are replayed"
    assert first.interpreter is second.interpreter is shared_interpreter("local", limits)
    first.interpreter.close()


def test_one_start_serves_all_who_wait_and_fails_for_all(monkeypatch):
    starts = []
    begun = threading.Barrier(8)

    def fails(limits):
        starts.append(limits)
        time.sleep(0.3)
        raise InfraError("too slow")

    def ask(_):
        begun.wait()
        with pytest.raises(InfraError, match="too slow"):
            shared_interpreter("local", Limits(output_chars=77))

    monkeypatch.setitem(INTERPRETERS, "local", fails)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))
    assert len(starts) == 1
    with pytest.raises(InfraError, match="too slow"):  # but nothing is remembered
        shared_interpreter("local", Limits(output_chars=77))
    assert len(starts) == 2


# --- Gymnasium's wrappers, and NumPy's integers


def test_wrappers_that_stack_and_delay_text():
    def make_env():
        return gymnasium.make(mathenv.ENV_ID, problems=PROBLEMS, interpreter=CannedInterpreter(OK))

    for padding, before in (("reset", ("{q}", "{q}")), ("zero", ("", "")), ("hm", ("hm", "hm"))):
        env = FrameStackObservation(make_env(), 3, padding_type=padding)
        question = env.unwrapped.problems[0].question
        stacked, _ = env.reset(seed=0, options={"problem": np.int64(0)})
        assert stacked == (*(text.format(q=question) for text in before), question)
        assert stacked in env.observation_space
        assert env.step(code_block("a"))[0][1:] == (question, "20\n")
    env = DelayObservation(make_env(), delay=1)
    assert env.reset(seed=0)[0] == ""
    assert env.step(code_block("a"))[0] == env.unwrapped.problem.question


def test_numpy_integers_are_integers():
    env = MathToolEnv(PROBLEMS, horizon=np.int64(2), limit=np.int32(1))
    question, info = env.reset(seed=np.uint8(3), options={"problem": np.int16(0)})
    assert question == env.problems[0].question
    json.dumps(info)
    with pytest.raises(ConfigError, match=r"seed.*1\.5"):
        env.reset(seed=1.5)


def test_a_limit_of_this_process_is_raised_and_is_no_turn():
    class Full(CannedInterpreter):
        def session(self, *, seed=0):
            raise HostLimitError("raise ulimit -n")

    env = MathToolEnv(PROBLEMS, interpreter=Full())
    env.reset(seed=0)
    with pytest.raises(InfraError, match="ulimit -n"):
        env.step(code_block("a"))
    assert (env.turns, env.stop_reason) == ((), None)
