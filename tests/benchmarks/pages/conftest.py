"""A training run's folder made by hand, with real checkpoints, and hostile trajectories."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from mathenv.store import TrajectoryStore
from mathenv.types import (
    ExecutionResult,
    ExecutionStatus,
    Grade,
    GradeStatus,
    Problem,
    StopReason,
    Trajectory,
    Turn,
)

HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned = 1'>",
    '"><svg onload="window.pwned = 1"><!-- <title>owned</title>',
    "]]>--><style>body { display: none }</style><base href='http://127.0.0.1:9/'>",
    "\u202egnissim\u202c \x1b[2J \x00 \ud800 \u2028 javascript:window.pwned=1 {{1+1}} ${1+1}",
)


def episode(
    problem: str,
    right: bool,
    *,
    agent: str = "current",
    sample: int = 0,
    question: str = "What is 2 + 2?",
    prose: str = "",
    output: str = "4",
) -> Trajectory:
    """Return an episode of two turns: a cell, then an answer."""
    code = "total = 2 + 2  # a sum\nprint(total)"
    answer = "4" if right else "5"
    status = GradeStatus.CORRECT if right else GradeStatus.INCORRECT
    return Trajectory(
        problem=Problem(problem, question, "4", source="words", level="1"),
        agent=agent,
        sample=sample,
        seed=7,
        turns=(
            Turn(
                f"{prose}```python\n{code}\n```",
                code,
                f"```output\n{output}\n```",
                ExecutionResult(ExecutionStatus.OK, output, seconds=0.25),
            ),
            Turn(rf"\boxed{{{answer}}}"),
        ),
        stop_reason=StopReason.ANSWERED,
        grade=Grade(right, status, answer, "number"),
    )


def hostile_episodes() -> list[Trajectory]:
    """Return episodes that carry each hostile text in every place a model or a file can reach."""
    episodes = []
    for number, text in enumerate(HOSTILE):
        made = episode(
            f"{number} {text}", False, agent=text, question=text, prose=text, output=text
        )
        turn = replace(made.turns[0], action=text + made.turns[0].action)
        grade = replace(made.grade, answer=text, detail=text, tier=text)
        problem = replace(made.problem, level=text, subject=text, answer=text)
        episodes.append(replace(made, turns=(turn, *made.turns[1:]), grade=grade, problem=problem))
    return episodes


def write(file: Path, episodes: list[Trajectory]) -> None:
    with TrajectoryStore(file) as store:
        for one in episodes:
            store.append(one)


@dataclass(frozen=True)
class TrainingRun:
    path: Path
    rollouts: list[Trajectory]
    policy: Path
    reference: Path


def make_run(path: Path, learner: str = "mdpo", problems: int = 4) -> TrainingRun:
    """Write a run of one seed and one iteration; the checkpoints are two random tiny models."""
    from agents.models.hf import load_tokenizer
    from agents.rendering import ChatRenderer
    from agents.tiny import TinyConfig, make_tiny
    from learners.learner import make_learner
    from learners.preferences import PairRules

    seed = path / "seed-0"
    shape = TinyConfig(hidden=32, layers=1, heads=1, intermediate=64, vocab=512)
    reference = make_tiny(seed / "sft" / "train" / "step-9", config=shape, seed=1)
    iteration = seed / learner / "iteration-1"
    policy = make_tiny(iteration / "train" / "step-2", config=shape, seed=2)
    renderer = ChatRenderer(load_tokenizer(reference))
    rollouts = [
        replace(one, tokens=renderer.record_turns(one.problem.question, one.turns))
        for number in range(problems)
        for one in (
            episode(f"p{number}", True, sample=0, prose="So: "),
            episode(f"p{number}", False, sample=1),
        )
    ]
    made = make_learner(learner)
    _, selection = made.examples(rollouts, seed=1)
    rules = PairRules()
    loss = {"eta": made.config.eta, "nll_coef": 0.0, "pairs": {"per_problem": rules.per_problem}}
    manifest = {"learner": learner, "loss": loss, "seed": 1, "policy": "sft/train/step-9"}
    if made.uses_reference:
        manifest["reference"] = "sft/train/step-9"
    files = {
        seed / "manifest.json": {
            "recipe": {"seed": 0, "model": "tiny", "problems": {"source": "words"}},
            "environment": {"python": "3.11", "packages": {"torch": "2"}},
        },
        policy / "manifest.json": manifest,
        iteration / "selection.json": {
            "counts": selection.counts(),
            "provenance": selection.provenance,
        },
        iteration / "result.json": {"policy": "step-2", "scores": {}},
    }
    for file, value in files.items():
        file.write_text(json.dumps(value))
    steps = [
        {"step": n, "loss": 0.7 - n / 9, "rewards/margins": n / 9, "logps/chosen": -n, "epoch": 1}
        for n in (1, 2)
    ]
    log = iteration / "train" / "metrics.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in steps))
    write(iteration / "rollouts.jsonl", rollouts)
    write(iteration / "validation" / "before.jsonl", [episode("v0", False), episode("v1", True)])
    write(seed / "sft" / "demonstrations.jsonl", [episode("d0", True, agent="oracle")])
    write(seed / "test" / "sft.jsonl", [episode(f"t{n}", n < 5) for n in range(20)])
    write(seed / "test" / f"{learner}-1.jsonl", [episode(f"t{n}", n < 15) for n in range(20)])
    return TrainingRun(path, rollouts, policy, reference)


@pytest.fixture(scope="session")
def training_run(tmp_path_factory: pytest.TempPathFactory) -> TrainingRun:
    return make_run(tmp_path_factory.mktemp("pages") / "run")


@pytest.fixture
def run_of() -> Callable[..., TrainingRun]:
    return make_run


@pytest.fixture
def write_episodes() -> Callable[[Path, list[Trajectory]], None]:
    return write


@pytest.fixture
def make_episode() -> Callable[..., Trajectory]:
    return episode


@pytest.fixture
def hostile() -> list[Trajectory]:
    return hostile_episodes()


class _Parts(HTMLParser):
    """Collects what a browser would: elements, and the text of script and style elements."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.blocks: dict[str, str] = {}
        self.policy = ""
        self._open = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self._open = (given.get("id") or tag) if tag in ("script", "style") else ""
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        if self._open:
            self.blocks[self._open] = self.blocks.get(self._open, "") + data


@dataclass(frozen=True)
class Parsed:
    tags: list[str]
    policy: str
    blocks: dict[str, str]

    def data(self, name: str) -> Any:
        return json.loads(gzip.decompress(base64.b64decode(self.blocks[name])))

    @property
    def details(self) -> list[dict[str, Any]]:
        names = sorted((n for n in self.blocks if n.startswith("chunk-")), key=lambda n: int(n[6:]))
        return [detail for name in names for detail in self.data(name)]


@pytest.fixture
def parse() -> Callable[[str], Parsed]:
    def parse(html: str) -> Parsed:
        parts = _Parts()
        parts.feed(html)
        return Parsed(parts.tags, parts.policy, parts.blocks)

    return parse
