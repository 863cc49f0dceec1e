"""Run one suite with one agent: episodes into a store, then results on disk.

    <out>/config.json              what was asked for; a rerun must ask for the same
    <out>/trajectories.jsonl       every episode, written as it finishes
    <out>/results.json, .md, .tex  config, versions, interpreter, metrics; tables of them

A run that was killed goes on where it stopped when it is started again; episodes that failed in
the machinery are tried again. The grading policy is no part of what was asked for: the same run
is scored again under another one without playing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol, cast

from agents.base import Agent, SamplingParams, WeightedAgent
from agents.llm import LLMAgent
from agents.rollout import CollectConfig, collect, play, read_collected
from benchmarks.metrics import summarize
from benchmarks.report import bench_latex, bench_markdown
from benchmarks.results import FILE, BenchResult, Mismatch, write_result
from benchmarks.suites import Suite
from mathenv.env import shared_interpreter
from mathenv.errors import ConfigError
from mathenv.grading import grade
from mathenv.grading.policy import STRICT, GradePolicy, find_policy
from mathenv.grading.validate import self_mismatches
from mathenv.interpreter import Interpreter, Limits
from mathenv.locking import hold
from mathenv.manifest import environment
from mathenv.protocol import ProtocolName
from mathenv.store import TrajectoryStore, write_atomic
from mathenv.types import GradeStatus, Problem, StopReason, Trajectory

# What runs were played with before these settings were recorded.
_BEFORE: Mapping[str, Any] = {"protocol": "paper", "say_empty": False}

AgentSource = Agent | Callable[[Sequence[Problem]], Agent]


class Progress(Protocol):
    """What `run_bench` tells; `progress.ConsoleReporter.stage` gives one."""

    def __call__(self, done: int, total: int | None = None) -> None: ...


def run_bench(
    suite: Suite,
    agent: AgentSource,
    out: Path | None,
    *,
    samples: int = 1,
    data: str | Path | None = None,
    limit: int | None = None,
    horizon: int = 6,
    protocol: ProtocolName = "lenient",
    say_empty: bool = False,
    concurrency: int = 32,
    seed: int = 0,
    interpreter: str | Interpreter = "local",
    limits: Limits | None = None,
    policy: str | GradePolicy = STRICT,
    progress: Progress | None = None,
    details: Mapping[str, Any] | None = None,
) -> BenchResult:
    """Bring `out` to `samples` episodes per problem and score them.

    Args:
        agent: an agent, or what makes one of the problems (e.g. `OracleAgent`).
        out: folder of the run; None plays in memory, writes nothing and cannot be resumed.
        data, limit: as in `Suite.load`; the draw of `limit` problems is the same for all seeds.
        horizon, protocol, say_empty: as in `CollectConfig`.
        seed: fixes sampling and the interpreters' seeds, with problem and sample number.
        limits: of a session; recorded. An interpreter that is given has its own, and these must
            be they.
        policy: what counts as equal, a preset's name or a policy.
        progress: called with the number of finished episodes and the total.
        details: what else identifies the agent, e.g. a hash of its weights.

    Raises:
        ConfigError: `out` holds a run with other settings, another process plays there, or an
            argument is wrong.
        InfraError: most of the episodes failed in the machinery.
    """
    if samples < 1:
        raise ConfigError(f"a benchmark needs at least one sample per problem, not {samples}")
    problems = suite.load(data=data, limit=limit)
    player = _agent(agent, problems)
    settings = CollectConfig(
        horizon=horizon,
        protocol=protocol,
        say_empty=say_empty,
        concurrency=concurrency,
        seed=seed,
    )
    config = {
        **describe_problems(suite, problems),
        "samples": samples,
        "seed": seed,
        "horizon": horizon,
        "protocol": protocol,
        "say_empty": say_empty,
        "agent": {**describe_agent(player), **(details or {})},
    }
    limits = limits or Limits()
    if isinstance(interpreter, str):
        interpreter = shared_interpreter(interpreter, limits)
    started = time.monotonic()
    chosen = find_policy(policy)

    def result_of(played: Sequence[Trajectory]) -> BenchResult:
        trajectories = regraded(played, chosen)
        return BenchResult(
            suite=suite.name,
            agent=player.name,
            metrics=summarize(trajectories, policy=chosen, seed=seed),
            mismatches=_mismatches(problems),
            config=config,
            policy=chosen.record(),
            environment={
                **environment(),
                "interpreter": dict(interpreter.description),
                "limits": asdict(limits),
            },
            published=suite.published,
            suite_size=suite.size,
            seconds=round(time.monotonic() - started, 1),
            out=out,
            trajectories=tuple(trajectories),
        )

    if out is None:
        return result_of(
            play(
                player,
                problems,
                samples,
                config=settings,
                interpreter=interpreter,
                progress=progress,
            )
        )
    with hold(out):
        claim(out, config)
        if not _scored_otherwise(out, chosen):
            _collect(player, problems, samples, out, settings, interpreter, progress)
        result = result_of(read_collected(out))
        write_result(result, out)
        write_atomic(out / "results.md", bench_markdown(result))
        write_atomic(out / "results.tex", bench_latex([result]))
    return result


def _collect(
    agent: Agent,
    problems: Sequence[Problem],
    samples: int,
    out: Path,
    settings: CollectConfig,
    interpreter: Interpreter,
    progress: Progress | None,
) -> None:
    def report(_: Trajectory, done: int, total: int) -> None:
        if progress is not None:
            progress(done, total)

    members = [WeightedAgent(agent, samples)]
    with TrajectoryStore(out) as store:
        collect(members, problems, store, settings, interpreter=interpreter, progress=report)


def _scored_otherwise(out: Path, policy: GradePolicy) -> bool:
    """Whether the run in `out` is finished, and was scored under another policy."""
    try:
        found = json.loads((out / FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("policy") != policy.record()


def regraded(
    trajectories: Iterable[Trajectory], policy: str | GradePolicy = STRICT
) -> list[Trajectory]:
    """Return the trajectories with verdicts under `policy`, which may find an answer unboxed.

    Episodes are stored with the verdict of the preset `strict`, which therefore changes
    nothing. Episodes in which the machinery failed stay excluded.
    """
    chosen = find_policy(policy)
    if chosen == STRICT:
        return list(trajectories)
    return [_regraded(trajectory, chosen) for trajectory in trajectories]


def _regraded(trajectory: Trajectory, policy: GradePolicy) -> Trajectory:
    failed = trajectory.grade.status is GradeStatus.INFRA
    if failed or trajectory.stop_reason is StopReason.INFRA or not trajectory.turns:
        return trajectory
    verdict = grade(trajectory.problem.answer, trajectory.turns[-1].action, policy)
    return replace(trajectory, grade=verdict)


def _mismatches(problems: Sequence[Problem]) -> tuple[Mismatch, ...]:
    return tuple(
        Mismatch(m.problem.id, m.problem.answer, m.grade.status.value)
        for m in self_mismatches(problems)
    )


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
        if not isinstance(recorded, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise ConfigError(f"{file} is damaged ({error}): choose another --out") from None
    wanted = json.loads(text)
    for name in wanted.keys() & _BEFORE:  # settings that are newer than the folder
        recorded.setdefault(name, _BEFORE[name])
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
    sampling = _sampling(agent)
    if sampling is not None:
        description["sampling"] = asdict(sampling)
    if isinstance(agent, LLMAgent):
        description |= {
            "instruction": agent.renderer.instruction,
            "system": agent.renderer.system,
            "tool_role": agent.renderer.tool_role,
            "tokenizer": agent.renderer.fingerprint,
        }
    return description


def greedy(agent: Agent) -> Agent | None:
    """Return the same model with temperature 0, or None where the agent is no sampling model."""
    sampling = _sampling(agent)
    if sampling is None:
        return None
    variant: Any = copy(agent)  # shares the model; agents are not changed after this
    variant.sampling = replace(sampling, temperature=0.0)
    return cast(Agent, variant)


def _sampling(agent: Agent) -> SamplingParams | None:
    sampling = getattr(agent, "sampling", None)
    return sampling if isinstance(sampling, SamplingParams) else None


def _agent(source: AgentSource, problems: Sequence[Problem]) -> Agent:
    # A class such as `OracleAgent` has all the attributes of an agent: it still makes one.
    if isinstance(source, Agent) and not isinstance(source, type):
        return source
    assert callable(source)
    return source(problems)
