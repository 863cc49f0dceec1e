"""`mathenv tables`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from benchmarks.console import ResultConsole
from benchmarks.report import bench_latex, runs_markdown
from benchmarks.results import FILE, read_result
from mathenv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Tables:
    """Print one table of finished benchmark runs, as markdown or LaTeX.

    Args:
        runs: folders that `mathenv bench` wrote, or folders of them.
        format: markdown, or latex (package booktabs).
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    format: Literal["markdown", "latex"] = "markdown"

    def run(self) -> None:
        """Read the results and print the table."""
        if not self.runs:
            raise ConfigError("name at least one folder that mathenv bench wrote")
        folders = [found for run in self.runs for found in _folders(run)]
        results = [read_result(folder) for folder in folders]
        table = runs_markdown(results) if self.format == "markdown" else bench_latex(results)
        ResultConsole().say(table.rstrip("\n"))


def _folders(run: Path) -> list[Path]:
    if (run / FILE).exists():
        return [run]
    found = [file.parent for file in sorted(run.glob(f"*/{FILE}"))]
    if not found:
        raise ConfigError(f"{run} holds no finished run (no {FILE}): see mathenv bench --help")
    return found
