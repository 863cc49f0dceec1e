r"""Any inspect-ai model in our environment: our suites, sandbox and grader as an inspect task.

    inspect eval benchmarks/adapters/inspect_suites.py -T suites=gsm8k --model openai/gpt-4o
    inspect eval benchmarks/adapters/inspect_suites.py -T suites=words -T limit=100 --model ...

or in Python `inspect_ai.eval(suite_task("gsm8k", data="DATA"), model="...")`.

The solver plays `MathToolEnv`: the model's code runs in our sandbox, on this machine, and
nowhere else; inspect's own sandboxes and tools are not used. Needs the package inspect-ai.
"""

# mypy: disable-error-code="import-not-found, untyped-decorator"

from __future__ import annotations

from typing import Any

import anyio
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageSystem, ChatMessageUser
from inspect_ai.scorer import CORRECT, INCORRECT, Score, Scorer, Target, accuracy, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver

from benchmarks.suites import find_suites
from mathenv.env import MathToolEnv
from mathenv.grading import grade
from mathenv.problems import has_label_issue
from mathenv.protocol import ProtocolName, output_block
from mathenv.types import ExecutionStatus, Problem, StopReason

INSTRUCTION = (
    "Solve the problem. To compute, write one block of Python that starts with ```python and "
    "ends with ```; it is run when your message ends, variables stay, and what it prints is "
    "shown to you. When you know the answer, write it as \\boxed{answer} without code."
)
_STORE = "mathenv"  # what the solver leaves for the scorer


@task
def suite_task(
    suites: str = "words",
    split: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    horizon: int = 6,
    protocol: ProtocolName = "lenient",
    interpreter: str = "local",
    policy: str = "strict",
    instruction: str = INSTRUCTION,
) -> Task:
    """Return suites as one inspect task.

    Args:
        suites: our suites separated by commas, or .jsonl files (`benchmarks.suites`).
        split: which split (default: test).
        data: folder with the rows, or with one folder per suite; left out: the hub.
        limit: draw this many problems of each suite.
        horizon: most turns of an episode.
        protocol: how turns are read, `lenient` or `paper` (`mathenv.protocol`).
        interpreter: `local` or `docker`: what runs the model's code.
        policy: the grading policy's preset.
        instruction: the system message; "" for models that were trained on the protocol.

    Raises:
        ConfigError, DataError: as in `Suite.load`.
    """
    problems = [
        problem
        for suite in find_suites(suites, split)
        for problem in suite.load(data=data, limit=limit)
    ]
    return Task(
        dataset=MemoryDataset([_sample(problem) for problem in problems], name=suites),
        solver=tool_integrated(horizon, interpreter, instruction, protocol),
        scorer=boxed_answer(policy),
    )


def _sample(problem: Problem) -> Sample:
    about = {
        "source": problem.source,
        "split": problem.split,
        "level": problem.level,
        "subject": problem.subject,
        "label_issue": has_label_issue(problem),
    }
    return Sample(input=problem.question, target=problem.answer, id=problem.id, metadata=about)


@solver
def tool_integrated(
    horizon: int = 6,
    interpreter: str = "local",
    instruction: str = INSTRUCTION,
    protocol: ProtocolName = "lenient",
) -> Solver:
    """Play one episode of `MathToolEnv` with inspect's model: turns of text, code in our sandbox.

    Args:
        horizon: most turns.
        interpreter: `local` or `docker`.
        instruction: a system message in front of the question, "" for none.
        protocol: how turns are read, `lenient` or `paper`.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        if instruction:
            state.messages.insert(0, ChatMessageSystem(content=instruction))
        problem = Problem(str(state.sample_id), state.input_text, state.target.text)
        env = MathToolEnv([problem], horizon=horizon, protocol=protocol, interpreter=interpreter)
        try:
            env.reset(seed=state.epoch)
            while env.stop_reason is None and not state.completed:
                state = await generate(state)
                # A cell may take seconds: other samples go on meanwhile.
                env.action_is_cut = state.output.stop_reason in ("max_tokens", "model_length")
                output, *_ = await anyio.to_thread.run_sync(env.step, state.output.completion)
                if env.stop_reason is None:
                    state.messages.append(ChatMessageUser(content=output_block(output)))
            state.store.set(_STORE, _episode(env))
        finally:
            env.close()
        return state

    return solve


def _episode(env: MathToolEnv) -> dict[str, Any]:
    ran = [turn.execution.status for turn in env.turns if turn.execution is not None]
    return {
        "stop_reason": None if env.stop_reason is None else env.stop_reason.value,
        "turns": len(env.turns),
        "cells": len(ran),
        "cell_errors": sum(status is not ExecutionStatus.OK for status in ran),
        "detail": "" if env.grade is None else env.grade.detail,
    }


@scorer(metrics=[accuracy(), stderr()])
def boxed_answer(policy: str = "strict") -> Scorer:
    r"""Grade the last turn's `\boxed{}` with our grader.

    Where the machinery failed or the reference answer cannot be graded the sample is unscored:
    it enters no metric and stands in the log with its reason.
    """

    async def score(state: TaskState, target: Target) -> Score:
        episode = state.store.get(_STORE, {})
        verdict = await anyio.to_thread.run_sync(
            grade, target.text, state.output.completion, policy
        )
        about = {**episode, "status": verdict.status.value, "tier": verdict.tier}
        if episode.get("stop_reason") == StopReason.INFRA.value or not verdict.counts:
            why = episode.get("detail") or verdict.detail
            return Score.unscored(reason="scoring_failed", explanation=why, metadata=about)
        return Score(
            value=CORRECT if verdict.correct else INCORRECT, answer=verdict.answer, metadata=about
        )

    return score
