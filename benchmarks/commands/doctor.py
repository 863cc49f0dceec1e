"""`mathenv doctor`."""

from __future__ import annotations

import platform
import sys
import warnings
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from rich.table import Table
from rich.text import Text

from benchmarks.console import ResultConsole
from benchmarks.ownership import PACKAGES, trouble
from benchmarks.start import versions
from mathenv.env import INTERPRETERS
from mathenv.errors import MathEnvError
from mathenv.grading import grade
from mathenv.grading.symbolic import shared_comparer
from mathenv.interpreter import Limits
from mathenv.interpreter.doctor import Check, Report, examine, local_tiers

EXIT_SICK = 1
# Short, so that the cell that runs into the limit does not take long.
LIMITS = Limits(cell_seconds=2.0, memory_bytes=1 << 30)


@dataclass(frozen=True, slots=True)
class Doctor:
    """Check the sandbox and the grader before a long run.

    Shows which isolation tiers work on this machine, runs canary cells through the real
    interpreter (arithmetic, time and memory limits, files, network and processes refused,
    fork), grades two answers, lets the grader's worker try what it must not be able to do, and
    looks whether another project owns the names that ours are imported by.
    Exits with 1 if anything is not as it should be.

    Args:
        interpreter: what runs the code, this machine's sandbox or Docker.
    """

    interpreter: Literal["local", "docker"] = "local"

    def run(self) -> None:
        """Print what was found and exit with 1 if it is sick."""
        console = ResultConsole()
        if self.interpreter == "local" and sys.platform == "linux":
            _print_tiers(console)
        report = self._examine()
        checks = (*report.checks, *_grading(), *_imports())
        console.say("")
        console.say(f"{'version':12} {versions()}")
        for key, value in report.description.items():
            console.say(f"{key:12} {value}")
        console.say(f"{'grader':12} {shared_comparer().pool.confinement or 'did not start'}")
        console.say("")
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for check in checks:
            word = Text("ok", style="green") if check.ok else Text("SICK", style="bold red")
            table.add_row(word, Text(check.name), Text("" if check.ok else check.detail))
        console.print(table)
        sick = [check.name for check in checks if not check.ok]
        console.say(f"\nsick: {', '.join(sick)}" if sick else "\nall is well")
        if sick:
            sys.exit(EXIT_SICK)

    def _examine(self) -> Report:
        try:
            with closing(INTERPRETERS[self.interpreter](LIMITS)) as interpreter:
                return examine(interpreter)
        except MathEnvError as error:
            machine = {"host": self.interpreter, "kernel": platform.release()}
            return Report(machine, (Check("interpreter", False, str(error)),))


def _print_tiers(console: ResultConsole) -> None:
    with warnings.catch_warnings():  # about the weakest tier, which is only tried here
        warnings.simplefilter("ignore", RuntimeWarning)
        tiers = local_tiers(LIMITS)
    console.say("tiers of the local interpreter, strongest first (the first that works is used):")
    for tier, reason in tiers.items():
        console.say(f"  {tier:12} {f'not here: {reason}' if reason else 'works'}")


def _grading() -> list[Check]:
    """Grade one right and one wrong answer, both of which need the symbolic worker."""
    checks = []
    for response, right in ((r"\boxed{\frac{x^2-1}{x-1}}", True), (r"\boxed{x+2}", False)):
        try:
            verdict = grade("x+1", response)
            found = f"{verdict.status.value} {verdict.tier}"
            checks.append(Check(f"grade {response}", verdict.correct is right, found))
        except MathEnvError as error:
            checks.append(Check(f"grade {response}", False, str(error)))
    if sys.platform == "linux":  # elsewhere a worker has its limits only, and is shown so
        outcome = shared_comparer().pool.self_check()
        allowed = [f"{what}: {end}" for what, end in outcome.items() if not _refused(end)]
        checks.append(Check("grader confined", not allowed, "; ".join(allowed)))
    return checks


def _imports() -> list[Check]:
    found = {package: trouble(package) for package in PACKAGES}
    return [Check(f"import {package}", not said, said) for package, said in found.items()]


def _refused(end: str) -> bool:
    return end.startswith("refused")
