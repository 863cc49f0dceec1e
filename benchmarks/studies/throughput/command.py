"""`mathenv throughput`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.console import ResultConsole
from benchmarks.progress import Advance, ConsoleReporter
from benchmarks.studies.throughput import grader, interpreter, rollouts
from benchmarks.studies.throughput.report import Report
from mathenv.errors import ConfigError
from mathenv.files import check_writable
from mathenv.interpreter.docker_host import IMAGE


@dataclass(frozen=True, slots=True)
class Throughput:
    """Measure speed beside what people use instead, all in one run on this machine.

    Medians, the value that nine of ten repeats reach, CPU time of all processes, and ratios.

    Args:
        what: interpreter: session start, cells, forks, sessions per second and memory of each
            sandbox tier, beside `python -c`, a Jupyter kernel and a process pool.
            rollouts: the collector beside a turn-synchronous loop. learners: time and memory of
            a training step beside TRL's trainers. grader: beside math-verify.
        json: write every value with the environment to this file.
        docker: also measure the Docker interpreter.
        image: its image.
        model: rollouts: also measure vLLM with this model folder.
        data: grader: the folder with the recorded answers.
        pathological: grader: rows of worst inputs (.jsonl).
        quick: one round with few repeats: tries the benchmark, does not measure.
    """

    what: Annotated[Literal["interpreter", "rollouts", "learners", "grader"], tyro.conf.Positional]
    json: Path | None = None
    docker: bool = False
    image: str = IMAGE
    model: str | None = None
    data: Path | None = None
    pathological: Path | None = None
    quick: bool = False

    def run(self) -> None:
        """Measure, print the table, write the file."""
        if self.json is not None:
            check_writable(self.json)
        reporter, console = ConsoleReporter(), ResultConsole()
        with reporter.stage(f"throughput {self.what}", None, "measurements") as advance:
            report = self._measure(advance)
        for table in report.tables():
            console.print(table)
        console.say(f"ratio: times as slow, or as large, as {report.reference}")
        for remark in report.remarks:
            console.say(remark)
        before, after = report.load_before[0], os.getloadavg()[0]
        console.say(f"load average {before:.1f} before, {after:.1f} after, {os.cpu_count()} CPUs")
        if before > 0.5:
            console.say("Other programs were running: read the ratios, not the times.")
        if self.json is not None:
            report.write(self.json)
            console.say(f"results: {self.json}")

    def _measure(self, advance: Advance) -> Report:
        match self.what:
            case "interpreter":
                image = self.image if self.docker else None
                return interpreter.measure(quick=self.quick, docker=image, advance=advance)
            case "rollouts":
                return rollouts.measure(quick=self.quick, advance=advance, model=self.model)
            case "grader":
                if self.data is None:
                    raise ConfigError("give --data: the folder with the recorded answers")
                return grader.measure(self.data, self.pathological, advance)
        # Imported here, so that the other measurements do not wait for torch.
        measure: Callable[..., Report] = import_module(
            "benchmarks.studies.throughput.learners"
        ).measure
        return measure(quick=self.quick, advance=advance)
