"""Run one suite with one agent: episodes into a store, then results on disk.

    <out>/config.json          what was asked for; a rerun must ask for the same
    <out>/trajectories.jsonl   every episode, written as it finishes
    <out>/results.json, .md    config, versions, interpreter, metrics

A run that was killed goes on where it stopped when it is started again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from agents.base import Agent, WeightedAgent
from agents.llm import LLMAgent
from agents.rollout import CollectConfig, collect, read_collected
from benchmarks.metrics import Metrics, summarize
from benchmarks.report import bench_markdown
from benchmarks.suites import Suite
from mathenv.env import local_interpreter
from mathenv.errors import ConfigError
from mathenv.grading.validate import SelfMismatch, self_mismatches
from mathenv.interpreter import Interpreter, Limits
from mathenv.store import TrajectoryStore, write_atomic
from mathenv.types import Problem

PACKAGES = ("mathenv", "gymnasium", "numpy", "sympy", "math-verify", "torch", "transformers")

AgentSource = Agent | Callable[[Sequence[Problem]], Agent]


class Progress(Protocol):
    """What `run_bench` tells; `progress.ConsoleReporter.stage` gives one."""

    def __call__(self, done: int, total: int | None = None) -> None: ...


@dataclass(frozen=True, slots=True)
class BenchResult:
    """One finished run. `mismatches` are reference answers the grader does not accept.

    `seconds` is the wall time of this call, not of earlier, killed ones.
    """

    suite: str
    agent: str
    metrics: Metrics
    mismatches: tuple[SelfMismatch, ...]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    out: Path
    seconds: float


def run_bench(
    suite: Suite,
    agent: AgentSource,
    out: Path,
    *,
    samples: int = 1,
    data: str | Path | None = None,
    limit: int | None = None,
    horizon: int = 6,
    concurrency: int = 32,
    seed: int = 0,
    interpreter: str | Interpreter = "local",
    progress: Progress | None = None,
    details: Mapping[str, Any] | None = None,
) -> BenchResult:
    """Bring `out` to `samples` episodes per problem and score them.

    Args:
        agent: an agent, or what makes one of the problems (e.g. `OracleAgent`).
        data, limit: as in `Suite.load`; the draw of `limit` problems is the same for all seeds.
        seed: fixes sampling and the interpreters' seeds, with problem and sample number.
        progress: called with the number of finished episodes and the total.
        details: what else identifies the agent, e.g. a hash of its weights.

    Raises:
        ConfigError: `out` holds a run with other settings, or an argument is wrong.
        InfraError: most of the first episodes failed in the machinery.
    """
    if samples < 1:
        raise ConfigError(f"a benchmark needs at least one sample per problem, not {samples}")
    problems = suite.load(data=data, limit=limit)
    player = _agent(agent, problems)
    settings = CollectConfig(horizon=horizon, concurrency=concurrency, seed=seed)
    config = {
        **describe_problems(suite, problems),
        "samples": samples,
        "seed": seed,
        "horizon": horizon,
        "agent": {**describe_agent(player), **(details or {})},
    }
    claim(out, config)
    if isinstance(interpreter, str):
        interpreter = _interpreter(interpreter)
    started = time.monotonic()
    with TrajectoryStore(out) as store:
        report = None if progress is None else (lambda _, done, total: progress(done, total))
        members = [WeightedAgent(player, samples)]
        collect(members, problems, store, settings, interpreter=interpreter, progress=report)
    result = BenchResult(
        suite=suite.name,
        agent=player.name,
        metrics=summarize(read_collected(out), seed=seed),
        mismatches=tuple(self_mismatches(problems)),
        config=config,
        environment=environment(interpreter),
        out=out,
        seconds=time.monotonic() - started,
    )
    write_results(result)
    return result


def claim(out: Path, config: Mapping[str, Any]) -> None:
    """Make `out` the folder of a run with this config, or check that it is.

    Raises:
        ConfigError: naming what differs, where it holds another run.
    """
    file = out / "config.json"
    text = json.dumps(config, indent=1) + "\n"
    if not file.exists():
        if (out / "trajectories.jsonl").exists():
            raise ConfigError(f"{out} holds trajectories of unknown origin: choose another --out")
        write_atomic(file, text)
        return
    try:
        recorded = json.loads(file.read_text())
    except ValueError as error:
        raise ConfigError(f"{file} is damaged ({error}): choose another --out") from None
    wanted = json.loads(text)
    if recorded == wanted:
        return
    different = sorted(k for k in {*recorded, *wanted} if recorded.get(k) != wanted.get(k))
    changes = "; ".join(f"{k} was {recorded.get(k)}, now {wanted.get(k)}" for k in different)
    raise ConfigError(
        f"{out} holds another run ({changes}): choose another --out, remove the folder, or "
        "repeat the command with the earlier settings to continue it"
    )


def describe_problems(suite: Suite, problems: Sequence[Problem]) -> dict[str, Any]:
    """Return what identifies a set of problems, content included."""
    digest = hashlib.sha256()
    for problem in problems:
        digest.update(repr((problem.id, problem.question, problem.answer)).encode())
    return {
        "suite": suite.name,
        "split": suite.split,
        "problems": len(problems),
        "problems_sha256": digest.hexdigest()[:16],
    }


def describe_agent(agent: Agent) -> dict[str, Any]:
    """Return what identifies an agent: name, kind and, for a model, how it samples."""
    description: dict[str, Any] = {"name": agent.name, "kind": type(agent).__name__}
    if isinstance(agent, LLMAgent):
        description |= {
            "sampling": asdict(agent.sampling),
            "instruction": agent.renderer.instruction,
            "tokenizer": agent.renderer.fingerprint,
        }
    return description


def environment(interpreter: Interpreter) -> dict[str, Any]:
    """Return what the numbers were made with: versions, machine, what isolates the code."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "versions": versions,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "interpreter": dict(interpreter.description),
    }


def write_results(result: BenchResult) -> None:
    """Write `results.json` and `results.md` into the run's folder."""
    row = {
        "suite": result.suite,
        "agent": result.agent,
        "metrics": asdict(result.metrics),
        "self_mismatches": [
            {"id": m.problem.id, "answer": m.problem.answer, "status": m.grade.status.value}
            for m in result.mismatches
        ],
        "config": dict(result.config),
        "environment": dict(result.environment),
        "seconds": round(result.seconds, 1),
    }
    write_atomic(result.out / "results.json", json.dumps(row, indent=1) + "\n")
    write_atomic(result.out / "results.md", bench_markdown(result))


def _agent(source: AgentSource, problems: Sequence[Problem]) -> Agent:
    # A class such as `OracleAgent` has all the attributes of an agent: it still makes one.
    if isinstance(source, Agent) and not isinstance(source, type):
        return source
    assert callable(source)
    return source(problems)


def _interpreter(name: str) -> Interpreter:
    if name != "local":
        raise ConfigError(f"interpreter must be 'local' or an Interpreter object, got {name!r}")
    return local_interpreter(Limits())
