"""Hand-made trajectories, a micro world that is learned in a second, and a way to be killed."""

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agents.base import SamplingParams
from agents.rollout import CollectConfig
from agents.tiny import TinyConfig, make_tiny
from learners.iterate import IterateConfig, Method
from learners.learner import LearnerConfig
from learners.preferences import PairRules
from learners.recipe import ProblemsConfig, Recipe
from learners.reporter import Reporter
from learners.run import ProblemSets, Start, fine_tune, prepare, problem_sets
from learners.training.train import TrainConfig
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
            timeout=500,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )
        assert done.returncode == 0, done.stderr
        codes = [int(line) for line in done.stdout.split()]
        assert codes[-1] == 0, done.stderr
        return codes

    return run


# Imports once, then forks the processes of each job. They find each other as `torchrun`'s do.
_LAUNCHER = """
import glob, importlib.util, json, os, pickle, signal, socket, sys, time, traceback
import torch
torch.set_num_threads(1)
import learners.run
modules = {}

def module(file):
    if file not in modules:
        spec = importlib.util.spec_from_file_location("job_" + str(len(modules)), file)
        modules[file] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modules[file])
    return modules[file]

def reached(pattern, lines):
    return any(len(open(f, "rb").read().splitlines()) >= lines for f in glob.glob(pattern))

for line in sys.stdin:
    folder = line.strip()
    file, name, arguments, count, kill, environment = pickle.load(open(folder + "/job", "rb"))
    function = getattr(module(file), name)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        child = os.fork()
        if child == 0:
            sizes = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "RANK": rank}
            place = {"LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            os.environ.update({k: str(v) for k, v in (sizes | place | environment).items()})
            log = os.open(folder + "/" + str(rank), os.O_CREAT | os.O_WRONLY)
            os.dup2(log, 1), os.dup2(log, 2)
            code = 1
            try:
                function(*arguments)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes, left = {}, dict(enumerate(children))
    deadline = time.monotonic() + 400
    while left:
        for rank, child in list(left.items()):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                codes[rank] = os.waitstatus_to_exitcode(status)
                del left[rank]
        if kill and (time.monotonic() > deadline or reached(*kill[:2])):
            for rank in kill[2]:
                if rank in left:
                    os.kill(left[rank], signal.SIGKILL)
            kill = None
        if time.monotonic() > deadline:
            for child in left.values():
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    print(json.dumps([codes[rank] for rank in range(count)]), flush=True)
"""


class Launch:
    """Starts a test file's function in several processes that train together."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._jobs = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, "-c", _LAUNCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )

    def __call__(
        self,
        function: Callable[..., None],
        *arguments: Any,
        count: int = 2,
        kill: tuple[str, int, Sequence[int]] | None = None,
        **environment: str,
    ) -> list[int]:
        """Return the exit codes by rank; where one is 1, print what its process wrote.

        `kill`: once a file that matches the pattern has so many lines, these ranks are.
        """
        self._jobs += 1
        folder = self._folder / str(self._jobs)
        folder.mkdir()
        file, name = function.__code__.co_filename, function.__name__
        job = (file, name, arguments, count, kill, environment)
        (folder / "job").write_bytes(pickle.dumps(job))
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(folder, file=self._server.stdin, flush=True)
        codes: list[int] = json.loads(self._server.stdout.readline())
        for rank in (rank for rank, code in enumerate(codes) if code == 1):
            print(self.wrote(rank))
        return codes

    def wrote(self, rank: int) -> str:
        """Return what a process of the last start wrote."""
        return (self._folder / str(self._jobs) / str(rank)).read_text()

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)


@pytest.fixture(scope="session")
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launch]:
    """Start functions in several processes."""
    started = Launch(tmp_path_factory.mktemp("launch"))
    yield started
    started.close()
