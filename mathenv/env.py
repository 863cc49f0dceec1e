r"""One math problem, solved over several turns of text with a Python interpreter.

The protocol is arXiv 2409.02392, section 3.1: a turn either holds a fenced `python` block,
whose output is the next observation, or a final answer in `\boxed{}`. What a turn's text
means is decided by `read_turn`, a pure function; `MathToolEnv` holds the resources.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, Literal, get_args

import gymnasium
from gymnasium.error import ResetNeeded

from mathenv.errors import ConfigError, InfraError, whole
from mathenv.grading import GradePolicy, grader_for
from mathenv.grading.extract import visible_text
from mathenv.interpreter.base import HostLimitError, Interpreter, Limits, Session
from mathenv.interpreter.docker_host import DockerInterpreter
from mathenv.interpreter.local import TIERS, LocalInterpreter
from mathenv.problems import load_problems
from mathenv.protocol import (
    PRINTED_NOTHING,
    ProtocolName,
    boxed_in,
    check_protocol,
    is_placeholder,
    output_block,
    read,
    with_braces,
)
from mathenv.protocol import Reading as Found
from mathenv.spaces import UnicodeText
from mathenv.types import (
    ExecutionResult,
    ExecutionStatus,
    Grade,
    GradeStatus,
    Problem,
    StopReason,
    Turn,
)

Order = Literal["shuffle", "sequential"]
Grader = Callable[[str, str], Grade]

# Terminated: the model ended the episode. Truncated: a budget or our machinery did.
_TERMINATED = frozenset({StopReason.ANSWERED, StopReason.NO_ACTION})


_IN_REASONING = (
    "Nothing was read: what stands after <think> and before </think> is reasoning. Write the "
    "code or the answer after </think>."
)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one turn's text asks for. `stop` is None where the episode goes on.

    Then either `code` is to be run, or `complaint` tells the model why there is none.
    """

    code: str | None
    answer: str | None
    stop: StopReason | None
    complaint: str = ""


def read_turn(
    action: str, *, last: bool, protocol: ProtocolName = "lenient", finished: bool = True
) -> Reading:
    """Decide what a turn does; `last` says that no further turn is allowed.

    An answer wins over code in the same turn, which is then not run (section 3.1). On the
    last turn code is not run either: its output could not be used any more. Reasoning
    before `</think>` is neither code nor answer, as for the grader. A turn that tries to run
    code but cannot be read is complained about and costs a turn, unless a limit cut it
    (`finished` is False) or the protocol is the paper's, which knows no complaints.
    """
    visible = visible_text(action)
    found = read(visible, protocol, finished=finished)
    answer = boxed_in(found.prose)
    if protocol == "lenient":
        answer = _lenient_answer(found, answer)
    if answer is not None:
        return Reading(found.code, answer, StopReason.ANSWERED)
    complaint = found.complaint
    if found.code is None and not complaint and protocol == "lenient":
        whole = read(action) if visible != action else found
        if whole.code is not None or boxed_in(whole.prose) is not None:
            complaint = _IN_REASONING
    if found.code is None and not (complaint and finished):
        return Reading(None, None, StopReason.NO_ACTION)
    return Reading(found.code, None, StopReason.HORIZON if last else None, complaint)


def _lenient_answer(found: Found, boxed: str | None) -> str | None:
    r"""Return the answer of a turn that a model may have written in its own way.

    Beside code, `\boxed{}` and `\boxed{...}` tell what the model will do after the code; a turn
    without code may leave the braces out, as the grader reads it.
    """
    if found.code is None:
        return boxed_in(with_braces(found.prose))
    return None if boxed is None or is_placeholder(boxed) else boxed


class MathToolEnv(gymnasium.Env[str, str]):
    r"""A question is the first observation; actions are turns of text; reward is 0.0 or 1.0.

    Args:
        problems, split, data, limit: which problems, as in `mathenv.problems.load_problems`:
            a source's name, a path, or the problems themselves.
        horizon: most turns in one episode (the paper's H), at least 1.
        interpreter: `"local"` or `"docker"` (one per process, shared by all such environments
            with the same limits and closed at exit) or an `Interpreter`, which the caller
            closes.
        limits: per-session limits of the `"local"` or `"docker"` interpreter.
        min_tier: refuse an interpreter whose sandbox is weaker: `"namespaces"`, `"seccomp"` or
            `"rlimits"`, strongest first. Left out: the strongest that works here will do.
        grader: a policy of `mathenv.grading` (`"strict"`, `"paper"`, `"math_verify"`, with
            overrides, or a `GradePolicy`), or a function from (reference answer, last turn)
            to a `Grade`.
        protocol: how turns are read: `"lenient"`, as models write them, or `"paper"`, the
            paper's format to the letter (`mathenv.protocol`).
        say_empty: tell the model of a cell that printed nothing, in a sentence. By default its
            output is empty, as in the paper.
        order: `shuffle` draws without replacement and reshuffles when all were drawn;
            `sequential` goes through the problems in order, over and over.
        render_mode: `ansi` makes `render` return a transcript of the episode so far.

    Episodes end with exactly one `StopReason`. Terminated: `ANSWERED` (the turn holds
    `\boxed{}`, right or wrong), `NO_ACTION`. Truncated: `HORIZON`, `INFRA` (machinery failed
    or the reference answer cannot be graded: exclude the episode). The last observation of
    an episode is empty.

    `info` of `reset` and `step` has the same keys, and never holds the reference answer:

        problem_id, source, split, level   of the problem (str)
        turn               turns taken so far (int)
        horizon            most turns allowed (int)
        stop_reason        a `StopReason` value, or None while the episode runs
        execution_status   an `ExecutionStatus` value where this turn's code ran, `unread` where
                           it could not be read and the observation says why, else None
        grade_status       a `GradeStatus` value once the episode ended, else None
        answer             the final answer this turn gave, as text, else None
        valid              False where the episode must be excluded (bool)

    `reset(options={"problem": p})` chooses the problem: a `Problem` (it need not be one of
    `problems`), an id (str) or an index (int). `reset(seed=s)` starts the order anew from
    `s`; a later `reset()` goes on from there. Each episode's session seed follows from it.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's

    def __init__(
        self,
        problems: str | Path | Sequence[Problem] = "words",
        split: str = "train",
        *,
        data: str | Path | None = None,
        limit: int | None = None,
        horizon: int = 6,
        protocol: ProtocolName = "lenient",
        say_empty: bool = False,
        interpreter: str | Interpreter = "local",
        limits: Limits | None = None,
        min_tier: str | None = None,
        grader: str | GradePolicy | Grader = "strict",
        order: Order = "shuffle",
        render_mode: str | None = None,
    ) -> None:
        self.problems = load_problems(problems, split, data=data, limit=limit)
        self.horizon = whole("horizon", horizon, 1)
        if order not in get_args(Order):
            raise ConfigError(f"order must be one of {get_args(Order)}, got {order!r}")
        if render_mode not in (None, "ansi"):
            raise ConfigError(f"render_mode must be None or 'ansi', got {render_mode!r}")
        check_protocol(protocol)
        self.protocol, self.say_empty = protocol, say_empty
        _check_interpreter(interpreter, limits)
        if min_tier is not None:
            _check_name(min_tier)
            if not isinstance(interpreter, str):
                _check_tier(interpreter, min_tier)
        self.order = order
        self.render_mode = render_mode
        self.action_is_cut = False  # an attribute: wrappers' `step` takes the action alone
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self._interpreter = interpreter
        self._found: Interpreter | None = None  # the one of that name, once it was needed
        self._limits, self._min_tier = limits or Limits(), min_tier
        self._grader: Grader = (
            grader_for(grader) if isinstance(grader, str | GradePolicy) else grader
        )
        self._queue: list[int] = []
        self._session: Session | None = None
        self._problem: Problem | None = None
        self._turns: list[Turn] = []
        self._answer: str | None = None
        self._stop: StopReason | None = None
        self._grade: Grade | None = None

    @property
    def interpreter(self) -> Interpreter:
        """What runs the code. A `"local"` or `"docker"` one is started here, at the first cell.

        One of these that somebody has closed is started anew.

        Raises:
            ConfigError: `"docker"` lacks its package or its image.
            InfraError: it cannot be started, or is weaker than `min_tier`. This reaches the
                caller of `step` as well: a machine without a sandbox is no reason to exclude
                episode after episode.
        """
        if not isinstance(self._interpreter, str):
            return self._interpreter
        if self._found is None or _is_closed(self._found):
            self._found = shared_interpreter(self._interpreter, self._limits, self._min_tier)
        return self._found

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the interpreter of a name, which a copy looks up again.

        `copy.deepcopy` of an environment in the middle of an episode copies its session too, by
        `Session.fork`, and so makes a branch. To pickle one there is a `ConfigError`, as it is
        where the interpreter is an object: see `LocalInterpreter`.
        """
        return {**self.__dict__, "_found": None}

    @property
    def problem(self) -> Problem:
        """The current problem, reference answer included: not for agents.

        Raises:
            ResetNeeded: before the first `reset`.
        """
        if self._problem is None:
            raise ResetNeeded("no episode yet: call reset() first")
        return self._problem

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The episode's turns so far. `code` is set also where it was not run."""
        return tuple(self._turns)

    @property
    def stop_reason(self) -> StopReason | None:
        """Why the episode ended, or None while it runs."""
        return self._stop

    @property
    def grade(self) -> Grade | None:
        """The verdict, or None while the episode runs."""
        return self._grade

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Start an episode: return the question and `info` (see the class).

        Raises:
            ConfigError: for unknown options or a problem that is not there.
        """
        super().reset(seed=None if seed is None else whole("seed", seed, 0))
        if seed is not None:
            self._queue = []
        problem = self._chosen(options or {})  # before anything of the old episode is touched
        self._close_session()
        self._problem = problem
        self._session_seed = int(self.np_random.integers(2**31))
        self._turns = []
        self._answer, self._stop, self._grade = None, None, None
        return problem.question, self._info()

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Play one turn: return observation, reward, terminated, truncated and `info`.

        The observation is the raw output of the code; agents wrap it for their template. Whoever
        knows that a token limit cut the action sets `action_is_cut` before: a last block without
        its closing fence is then half a cell, which is not run.

        Raises:
            ResetNeeded: before `reset` and after the end of an episode.
            ConfigError: where `action` is not a string.
            InfraError: where the interpreter cannot be started at all, or this process may open
                no more files (`ulimit -n`). The turn was not taken.
        """
        problem = self.problem
        if self._stop is not None:
            raise ResetNeeded(f"the episode ended ({self._stop}): call reset() before step()")
        if not isinstance(action, str):
            raise ConfigError(f"step() takes the agent's text (str), got {type(action).__name__}")
        last = len(self._turns) + 1 == self.horizon
        finished, self.action_is_cut = not self.action_is_cut, False
        reading = read_turn(action, last=last, protocol=self.protocol, finished=finished)
        stop, self._answer = reading.stop, reading.answer
        execution = None
        if stop is None and reading.code is None:
            execution = ExecutionResult(ExecutionStatus.UNREAD, reading.complaint)
        elif stop is None and reading.code is not None:
            execution = self._execute(reading.code)
            if execution.status is ExecutionStatus.INFRA:
                stop = StopReason.INFRA
        observation = "" if execution is None or stop is not None else self._told(execution)
        self._turns.append(Turn(action, reading.code, observation, execution))
        if stop is not None:
            self._finish(stop, problem, action)
        reward = 1.0 if self._grade is not None and self._grade.correct else 0.0
        terminated = self._stop in _TERMINATED
        truncated = self._stop is not None and not terminated
        return observation, reward, terminated, truncated, self._info()

    def render(self) -> str | None:
        """Return the transcript of the episode so far, or None without a render mode."""
        return self._transcript() if self.render_mode == "ansi" else None

    def close(self) -> None:
        """End the session. Safe to call twice; `reset` opens the environment again."""
        self._close_session()
        self._problem = None

    def _chosen(self, options: Mapping[str, Any]) -> Problem:
        unknown = set(options) - {"problem"}
        if unknown:
            raise ConfigError(f"unknown reset options {sorted(unknown)}: only 'problem' is known")
        choice = options.get("problem")
        if choice is None:
            return self.problems[self._next_index()]
        if isinstance(choice, Problem):
            return choice
        if isinstance(choice, str):
            for problem in self.problems:
                if problem.id == choice:
                    return problem
            raise ConfigError(f"no problem has the id {choice!r}")
        try:
            index = operator.index(choice)
        except TypeError:
            raise ConfigError(
                f"options['problem'] must be a Problem, an id or an index, got {choice!r}"
            ) from None
        if not 0 <= index < len(self.problems):
            raise ConfigError(f"problem {index} of {len(self.problems)} does not exist")
        return self.problems[index]

    def _next_index(self) -> int:
        if not self._queue:
            count = len(self.problems)
            if self.order == "shuffle":
                self._queue = self.np_random.permutation(count).tolist()
            else:
                self._queue = list(range(count))[::-1]
        return self._queue.pop()

    def _told(self, execution: ExecutionResult) -> str:
        silent = execution.status is ExecutionStatus.OK and not execution.output.strip()
        return PRINTED_NOTHING if silent and self.say_empty else execution.output

    def _execute(self, code: str) -> ExecutionResult:
        """Run a cell; after a failure of the machinery, once more in a fresh session.

        The earlier cells are replayed first, for the names they defined. Where one gives
        something else than the agent saw, the second session is not the first one's equal,
        and the failure stands.
        """
        result = self._attempt(code)
        if result.status is not ExecutionStatus.INFRA:
            return result
        self._close_session()
        for turn in self._turns:
            if turn.code is not None and self._attempt(turn.code) != turn.execution:
                return result
        return self._attempt(code)

    def _attempt(self, code: str) -> ExecutionResult:
        interpreter = self.interpreter
        try:
            if self._session is None:
                self._session = interpreter.session(seed=self._session_seed)
            return self._session.run(code)
        except HostLimitError:  # every other episode would meet it, too
            raise
        except InfraError as error:
            return ExecutionResult(ExecutionStatus.INFRA, str(error), session_lost=True)

    def _finish(self, stop: StopReason, problem: Problem, action: str) -> None:
        self._close_session()
        if stop is StopReason.ANSWERED:
            self._grade = self._graded(problem.answer, action)
        elif stop is StopReason.INFRA:
            self._grade = Grade(False, GradeStatus.INFRA, detail="the interpreter failed")
        else:
            self._grade = Grade(False, GradeStatus.NO_ANSWER)
        self._stop = stop if self._grade.counts else StopReason.INFRA

    def _graded(self, gold: str, action: str) -> Grade:
        verdict = self._attempt_grade(gold, action)
        if verdict.status is GradeStatus.INFRA:
            verdict = self._attempt_grade(gold, action)
        return verdict

    def _attempt_grade(self, gold: str, action: str) -> Grade:
        # A grader reads the turn as the lenient protocol does: where the paper's reading finds
        # another answer, that is the one to grade.
        if self.protocol == "paper" and read_turn(action, last=True).answer != self._answer:
            action = f"\\boxed{{{self._answer}}}"
        try:
            return self._grader(gold, action)
        except InfraError as error:
            return Grade(False, GradeStatus.INFRA, detail=str(error))

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _info(self) -> dict[str, Any]:
        problem = self.problem
        execution = self._turns[-1].execution if self._turns else None
        return {
            "problem_id": problem.id,
            "source": problem.source,
            "split": problem.split,
            "level": problem.level,
            "turn": len(self._turns),
            "horizon": self.horizon,
            "stop_reason": None if self._stop is None else str(self._stop),
            "execution_status": None if execution is None else str(execution.status),
            "grade_status": None if self._grade is None else str(self._grade.status),
            "answer": self._answer,
            "valid": self._stop is not StopReason.INFRA,
        }

    def _transcript(self) -> str:
        problem = self.problem
        parts = [f"[problem {problem.id}]\n{problem.question}"]
        for number, turn in enumerate(self._turns, start=1):
            parts.append(f"[turn {number} of {self.horizon}]\n{turn.action}")
            if turn.execution is not None:
                parts.append(f"[{turn.execution.status}]\n{output_block(turn.observation)}")
        if self._stop is not None and self._grade is not None:
            parts.append(f"[{self._stop}, {self._grade.status}]")
        return "\n\n".join(parts) + "\n"


SandboxTier = Literal["namespaces", "seccomp", "rlimits"]  # strongest first

INTERPRETERS: dict[str, Callable[[Limits], Interpreter]] = {
    "local": LocalInterpreter,
    "docker": DockerInterpreter,
}
_shared: dict[tuple[str, Limits], Interpreter] = {}
_starting: dict[tuple[str, Limits], Future[Interpreter]] = {}
_shared_lock = threading.Lock()


def shared_interpreter(name: str, limits: Limits, min_tier: str | None = None) -> Interpreter:
    """Return this process's interpreter of that name and limits. It is closed at exit.

    It has the strongest tier that works here: one below `min_tier` is refused, and whoever
    asks by name alone, such as an environment, later gets the one that was found good. One
    that was closed is replaced. Threads that ask while it starts wait for that one start, and
    fail with it.

    Raises:
        ConfigError: there is none of that name, or its package or image is missing.
        InfraError: no sandbox of `min_tier` works on this machine, or no Docker engine answers.
    """
    _check_interpreter(name, limits)
    if min_tier is not None:
        _check_name(min_tier)
    key, mine = (name, limits), False
    with _shared_lock:
        interpreter = _shared.get(key)
        if interpreter is None or _is_closed(interpreter):
            interpreter, mine = None, key not in _starting
            start = _starting.setdefault(key, Future())
    if interpreter is None:
        if mine:
            _start_shared(key, start)
        interpreter = start.result()
    if min_tier is not None:
        _check_tier(interpreter, min_tier)
    return interpreter


def _start_shared(key: tuple[str, Limits], start: Future[Interpreter]) -> None:
    """Start an interpreter once for all threads that wait for it."""
    name, limits = key
    try:
        interpreter = INTERPRETERS[name](limits)
    except BaseException as error:
        with _shared_lock:
            del _starting[key]
        start.set_exception(error)
        return
    # Unlike `atexit`, this also runs at the end of `multiprocessing` workers.
    Finalize(None, interpreter.close, exitpriority=100)
    with _shared_lock:
        _shared[key] = interpreter
        del _starting[key]
    start.set_result(interpreter)


def _is_closed(interpreter: Interpreter) -> bool:
    """Whether it says so: the protocol does not ask that of those who bring their own."""
    return bool(getattr(interpreter, "closed", False))


def _check_name(tier: str) -> None:
    if tier not in TIERS:
        raise ConfigError(f"min_tier={tier!r}: choose one of {', '.join(TIERS)}")


def _check_tier(interpreter: Interpreter, min_tier: str) -> None:
    tier = interpreter.description.get("tier")
    if tier not in TIERS[: TIERS.index(min_tier) + 1]:
        raise InfraError(
            f"the sandbox has the tier {tier!r}, weaker than min_tier={min_tier!r}: `mathenv "
            "doctor` says why no stronger one works here; lower min_tier or use another machine"
        )


def _forget_after_fork() -> None:
    """A forked worker starts its own: two hosts must not share one helper process."""
    global _shared_lock
    _shared_lock = threading.Lock()
    _shared.clear()
    _starting.clear()


os.register_at_fork(after_in_child=_forget_after_fork)


def _check_interpreter(interpreter: str | Interpreter, limits: Limits | None) -> None:
    if isinstance(interpreter, str):
        if interpreter not in INTERPRETERS:
            names = " or ".join(map(repr, INTERPRETERS))
            raise ConfigError(
                f"interpreter must be {names} or an Interpreter object, got {interpreter!r}"
            )
    elif limits is not None:
        raise ConfigError("limits belong to interpreter='local' or 'docker', not to an object")
