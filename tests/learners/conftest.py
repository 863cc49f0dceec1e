"""Hand-made trajectories, a micro world that is learned in a second, and a way to be killed."""

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.base import SamplingParams
from agents.rollout import CollectConfig
from agents.tiny import TinyConfig, make_tiny
from learners.iterate import IterateConfig, Method
from learners.learner import LearnerConfig
from learners.preferences import PairRules
from learners.recipe import ProblemsConfig, Recipe
from learners.reporter import Reporter
from learners.run import ProblemSets, Start, fine_tune, prepare, problem_sets
from learners.train import TrainConfig
from mathenv.types import (
    ExecutionResult,
    ExecutionStatus,
    Grade,
    GradeStatus,
    Problem,
    Span,
    SpanKind,
    StopReason,
    TokenRecord,
    Trajectory,
    Turn,
)

RANDOM = TokenRecord((), ())  # stands for "make some up"
MICRO = TinyConfig(hidden=32, layers=1, heads=1, intermediate=64, vocab=320, max_positions=256)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def token_record(
    rng: random.Random, turns: int, *, dangling: bool = False, prompt: str = ""
) -> TokenRecord:
    """Prompt, then turns with scaffold and observation between them; ids below 300."""
    spans: list[Span] = []

    def add(kind: SpanKind, turn: int, length: int) -> None:
        start = spans[-1].end if spans else 0
        spans.append(Span(kind, turn, start, start + length))

    begin = random.Random(prompt)
    question = [begin.randrange(5, 300) for _ in range(begin.randint(2, 5))]
    add(SpanKind.PROMPT, 0, len(question))
    for turn in range(turns):
        add(SpanKind.SAMPLED, turn, rng.randint(1, 6))
        if turn < turns - 1 or dangling:
            add(SpanKind.SCAFFOLD, turn, 1)
            add(SpanKind.OBSERVATION, turn, rng.randint(1, 4))
            add(SpanKind.SCAFFOLD, turn, 2)
    rest = (rng.randrange(5, 300) for _ in range(spans[-1].end - len(question)))
    return TokenRecord((*question, *rest), tuple(spans))


@pytest.fixture(scope="session")
def make_trajectory() -> Callable[..., Trajectory]:
    def make(
        problem: str = "p",
        correct: bool = True,
        *,
        sample: int = 0,
        turns: int = 2,
        statuses: Sequence[ExecutionStatus] | None = None,
        infra: bool = False,
        tokens: TokenRecord | None = RANDOM,
        dangling: bool = False,
        text: str = "",
        agent: str = "current",
    ) -> Trajectory:
        statuses = [ExecutionStatus.OK] * (turns - 1) if statuses is None else statuses
        text = text or f"{problem}/{sample}"
        actions = [
            Turn(f"cell {i} {text}", f"{i}", "4", ExecutionResult(status, "4"))
            for i, status in enumerate(statuses)
        ]
        if turns:
            actions.append(Turn(f"\\boxed{{{4 if correct else 5}}} {text}"))
        if tokens is RANDOM:
            rng = random.Random(f"{problem}/{agent}/{sample}")
            tokens = token_record(rng, len(actions), dangling=dangling, prompt=problem)
        status = GradeStatus.CORRECT if correct else GradeStatus.INCORRECT
        return Trajectory(
            problem=Problem(problem, f"What is {problem}?", "4"),
            agent=agent,
            sample=sample,
            seed=0,
            turns=tuple(actions),
            stop_reason=StopReason.INFRA if infra else StopReason.ANSWERED,
            grade=Grade(correct and not infra, GradeStatus.INFRA if infra else status, "4"),
            tokens=tokens,
        )

    return make


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained micro model in a checkpoint folder."""
    return make_tiny(tmp_path_factory.mktemp("policy") / "base", config=MICRO, seed=1)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another untrained micro model, same tokenizer."""
    return make_tiny(tmp_path_factory.mktemp("reference") / "base", config=MICRO, seed=2)


@dataclass(frozen=True)
class Micro:
    """A world of sums of small digits, and a policy that solves some of it."""

    recipe: Recipe
    sets: ProblemSets
    run: Path
    start: Start

    @property
    def method(self) -> Method:
        return self.recipe.methods["mdpo"]


def micro_problems(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for split, count in (("train", 40), ("test", 4)):
        rows = []
        for i in range(count):
            a, b = 1 + i % 3, 1 + i // 3 % 3
            row = {"id": f"{split}/{i}", "question": f"What is {a} + {b}?", "answer": str(a + b)}
            rows.append(json.dumps({**row, "solution": [f"{a} + {b}"]}) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(rows))
    return folder


def micro_recipe(problems: Path, **changes: Any) -> Recipe:
    method = Method(
        LearnerConfig(nll_coef=1.0, pairs=PairRules(per_problem=2)),
        TrainConfig(lr=3e-3, batch_size=4, checkpoints=2),
    )
    values: dict[str, Any] = {
        "tiny": MICRO,
        "problems": ProblemsConfig(str(problems), None, 20, prompts=12, validation=6, test=4),
        "sft": TrainConfig(lr=1e-2, epochs=32, batch_size=5, checkpoints=2),
        "iterate": IterateConfig(
            iterations=2,
            current_samples=4,
            previous_samples=2,
            sampling=SamplingParams(max_turn_tokens=24, max_tokens=120),
            collect=CollectConfig(horizon=3, concurrency=16, threads=2),
        ),
        "methods": dict.fromkeys(("mdpo", "dpo", "raft", "sft"), method),
        "threads": 1,
    }
    return Recipe(**{**values, **changes})


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Micro:
    folder = tmp_path_factory.mktemp("micro")
    recipe = micro_recipe(micro_problems(folder / "problems"))
    run = folder / "run"
    prepare(run, recipe)
    sets = problem_sets(recipe.problems)
    return Micro(recipe, sets, run, fine_tune(run, recipe, sets, Reporter()))


# Imports once, then forks: the children start in milliseconds and in the same state. A
# child is killed when a file has so many lines, plus a random moment.
_KILLER = """
import os, pickle, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import learners.run
function, arguments, folder, moments, seed = pickle.load(open(sys.argv[1], "rb"))
rng = random.Random(seed)

def reached(pattern, lines):
    return any(len(p.read_bytes().splitlines()) >= lines for p in Path(folder).glob(pattern))

for pattern, lines in [*moments, (None, 0)]:
    child = os.fork()
    if child == 0:
        try:
            function(*arguments)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    status = None
    while status is None and pattern and not reached(pattern, lines):
        pid, code = os.waitpid(child, os.WNOHANG)
        status = code if pid else None
        time.sleep(0.002)
    if status is None and pattern:
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
    if status is None:
        _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""

Restart = Callable[..., list[int]]


@pytest.fixture
def kill_and_restart(tmp_path: Path) -> Restart:
    """Run a function in a child that is SIGKILLed at each moment, then once to the end.

    Returns the children's exit codes: -9 where the kill came in time, 0 for the last.
    """

    def run(
        function: Any, arguments: tuple[Any, ...], folder: Path, moments: list[tuple[str, int]]
    ) -> list[int]:
        payload = tmp_path / "payload.pickle"
        payload.write_bytes(pickle.dumps((function, arguments, str(folder), moments, 0)))
        done = subprocess.run(
            [sys.executable, "-c", _KILLER, str(payload)],
            capture_output=True,
            text=True,
            timeout=150,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
        assert done.returncode == 0, done.stderr
        codes = [int(line) for line in done.stdout.split()]
        assert codes[-1] == 0, done.stderr
        return codes

    return run
