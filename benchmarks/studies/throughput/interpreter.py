"""The interpreter's speed, beside a fresh process, a Jupyter kernel and a process pool.

Subjects take turns in rounds, so that a change of the machine's load touches all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from benchmarks.progress import Advance
from benchmarks.studies.throughput import peers
from benchmarks.studies.throughput.peers import SYMPY, TRIVIAL, Live, Snippet, Subject
from benchmarks.studies.throughput.report import (
    CpuClock,
    Goal,
    Report,
    descendants,
    pss_bytes,
    time_each,
)
from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter import DockerInterpreter, Interpreter, LocalInterpreter

START = "interpreter start, with a trivial cell"
SESSION = "session start, with a trivial cell"
FIRST_SYMPY = "first sympy cell of a session"
CELL = "trivial cell"
ONE_SHOT = {1: "one-shot sympy sessions, 1 thread", 2: "one-shot sympy sessions, 2 threads"}
MEMORY = "memory of a live session"
FORK = "fork of a session with {} MB, and a cell"
FORK_MEGABYTES = (1, 10, 100)

TIERS = ("namespaces", "seccomp")
DOCKER = "docker"
_TIERS = frozenset(TIERS)
GOALS = (
    Goal(SESSION, _TIERS, 12.0),
    Goal(FIRST_SYMPY, _TIERS, 8.0),
    Goal(CELL, _TIERS, 0.2),
    Goal(CELL, frozenset({DOCKER}), 1.0),
    Goal(ONE_SHOT[1], _TIERS, 20.0, peers.JUPYTER),
    Goal(ONE_SHOT[2], _TIERS, 20.0, peers.JUPYTER),
    Goal(MEMORY, _TIERS, 10.0),
)


@dataclass(frozen=True, slots=True)
class Repeats:
    """How often things are measured in each round."""

    rounds: int
    sessions: int  # opened, one after another, and alive together
    cells: int
    one_shots: int
    live: int  # sessions alive while memory is measured; measured once
    forks: int


FULL = Repeats(rounds=5, sessions=20, cells=400, one_shots=40, live=40, forks=5)
SLOW = Repeats(rounds=5, sessions=3, cells=50, one_shots=4, live=4, forks=0)
QUICK = Repeats(rounds=1, sessions=2, cells=10, one_shots=2, live=2, forks=1)


def measure(*, quick: bool, docker: str | None, advance: Advance) -> Report:
    """Measure every subject that works here; the others are named in the report's remarks.

    Args:
        quick: one round of few repeats: checks the benchmark, not the speed.
        docker: image of the Docker interpreter; None leaves it out.

    Raises:
        InfraError: no tier works, or a subject gives a wrong output.
        ConfigError: `docker` is asked for and its package or image is missing.
    """
    report = Report(goals=GOALS, details={"interpreters": {}})
    with ExitStack() as stack:
        subjects = _open_subjects(report, stack, docker, quick)
        rounds = 1 if quick else FULL.rounds
        total = (rounds + 1) * len(subjects)
        for number in range(rounds):
            for place, subject in enumerate(subjects, start=1):
                _measure_speed(subject, _repeats(subject, quick), report)
                advance(number * len(subjects) + place, total)
        for place, subject in enumerate(subjects, start=1):
            _measure_memory(subject, _repeats(subject, quick), report)
            advance(rounds * len(subjects) + place, total)
    return report


def _repeats(subject: Subject, quick: bool) -> Repeats:
    return QUICK if quick else SLOW if subject.slow else FULL


# --------------------------------------------------------------------------- subjects


def _open_subjects(
    report: Report, stack: ExitStack, docker: str | None, quick: bool
) -> list[Subject]:
    subjects = []
    for tier in TIERS:
        try:
            subjects.append(_open(tier, partial(LocalInterpreter, tier=tier), report, stack, quick))
        except InfraError as error:
            report.remarks.append(f"{tier}: skipped: {error}")
    if not subjects:
        raise InfraError("; ".join(report.remarks))
    if docker is not None:
        opener = partial(DockerInterpreter, image=docker)
        subjects.append(_open(DOCKER, opener, report, stack, quick))
        report.remarks.append(f"{DOCKER}: CPU and memory are the engine's and not measured")
    report.reference = subjects[0].name
    subjects += [peers.fresh_process(), peers.process_pool()]
    try:
        subjects.append(peers.jupyter())
    except ConfigError as error:
        report.remarks.append(f"{peers.JUPYTER}: skipped: {error}")
    return subjects


def _open(
    name: str, opener: Callable[[], Interpreter], report: Report, stack: ExitStack, quick: bool
) -> Subject:
    """Open an interpreter and see how long that takes, up to the first cell's answer."""
    for keep in [True] if quick else [False, False, True]:
        started = time.perf_counter()
        interpreter = opener()
        stack.callback(interpreter.close)
        subject = peers.sandbox(name, interpreter, below=name != DOCKER)
        subject.batch(TRIVIAL, 1, 1)
        report.add(START, name, "ms", [1000 * (time.perf_counter() - started)], None)
        if not keep:
            interpreter.close()
    report.details["interpreters"][name] = interpreter.description
    subject.batch(SYMPY, 8, 2)  # all processes that are started on demand are there
    return subject


# ------------------------------------------------------------------------- quantities


def _measure_speed(subject: Subject, repeats: Repeats, report: Report) -> None:
    if subject.open is not None:
        _measure_cells(subject, subject.open, repeats, report)
    if subject.open is not None and subject.fork is not None:
        for megabytes in FORK_MEGABYTES:
            opener, fork = subject.open, subject.fork
            _measure_fork(subject, opener, fork, megabytes, repeats.forks, report)
    for threads, quantity in ONE_SHOT.items():
        _measure_one_shots(subject, quantity, threads, repeats.one_shots, report)


def _measure_cells(
    subject: Subject, opener: Callable[[], Live], repeats: Repeats, report: Report
) -> None:
    """Sessions stay open until all are measured, so that no closing enters the times."""
    sessions: list[Live] = []

    def start() -> None:
        sessions.append(opener())
        sessions[-1].run(TRIVIAL)

    with _closing(sessions):
        _add_times(report, SESSION, subject, [start] * repeats.sessions)
        first = [partial(session.run, SYMPY) for session in sessions]
        _add_times(report, FIRST_SYMPY, subject, first)
        _add_times(report, CELL, subject, [partial(sessions[0].run, TRIVIAL)] * repeats.cells)


def _measure_fork(
    subject: Subject,
    opener: Callable[[], Live],
    copy: Callable[[Live], Live],
    megabytes: int,
    count: int,
    report: Report,
) -> None:
    sessions = [opener()]
    state = f"state = bytearray(b'x') * ({megabytes} * 10**6)"
    check = Snippet("len(state) // 10**6", "", str(megabytes))

    def fork() -> None:
        sessions.append(copy(sessions[0]))
        sessions[-1].run(check)

    with _closing(sessions):
        sessions[0].run(Snippet(state, "", ""))
        _add_times(report, FORK.format(megabytes), subject, [fork] * count)


def _measure_one_shots(
    subject: Subject, quantity: str, threads: int, count: int, report: Report
) -> None:
    clock, started = CpuClock(), time.perf_counter()
    count = subject.batch(SYMPY, count, threads)
    seconds = time.perf_counter() - started
    cpu_ms = 1000 * clock.seconds() / count if subject.below else None
    report.add(quantity, subject.name, "/s", [count / seconds], cpu_ms)


def _add_times(
    report: Report, quantity: str, subject: Subject, actions: Sequence[Callable[[], object]]
) -> None:
    walls, cpu_ms = time_each(actions)
    report.add(quantity, subject.name, "ms", walls, cpu_ms if subject.below else None)


@contextmanager
def _closing(sessions: list[Live]) -> Iterator[None]:
    try:
        yield
    finally:
        for session in sessions:
            session.close()


def _measure_memory(subject: Subject, repeats: Repeats, report: Report) -> None:
    """Growth of the proportional set size of all processes below, per session."""
    if subject.open is None or not subject.below:
        return
    sessions: list[Live] = []
    with _closing(sessions):
        before = pss_bytes(descendants())
        for _ in range(repeats.live):
            sessions.append(subject.open())
            sessions[-1].run(SYMPY)
        after = pss_bytes(descendants())
    if before is None or after is None:
        report.remarks.append(f"{subject.name}: memory not measured: only root may read it")
        return
    report.add(MEMORY, subject.name, "MB", [(after - before) / 1e6 / repeats.live], None)
