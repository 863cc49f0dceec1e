"""`mathenv view`."""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.console import ResultConsole
from benchmarks.pages.data import PageOptions
from benchmarks.pages.page import write_report
from benchmarks.progress import ConsoleReporter
from mathenv.settings import Count, CountFrom0, check_settings


@dataclass(frozen=True, slots=True)
class View:
    """Make one HTML page of a run and open it: numbers, curves and every trajectory.

    The page is one file that needs no server and loads nothing. Takes a run folder of
    `mathenv iterate` or `demo` (finished or not), a folder of `bench` or `collect`, or a
    .jsonl file of trajectories.

    Args:
        path: the folder or file.
        out: where to write the page. Left out: report.html in the folder.
        open: open it in the browser.
        limit: most trajectories on the page. Large files are cut to equal shares: what was
            trained on stays first, then a random draw.
        ratios: pairs per iteration whose tokens' log-ratios are computed, with two forward
            passes each; 0 is off.
        tokenizer: folder of the model, to show tokens as text. A training run holds its own.
    """

    path: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    open: bool = True
    limit: Count = 20_000
    ratios: CountFrom0 = 64
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self) -> None:
        """Write the page, say where it is and how large, and open it."""
        options = PageOptions(self.limit, self.ratios, self.tokenizer)
        with ConsoleReporter().stage("page", None, "files") as advance:
            page = write_report(self.path, self.out, options, advance)
        ResultConsole().say(f"{page} ({page.stat().st_size / 1e6:.1f} MB)")
        if self.open:
            webbrowser.open(page.resolve().as_uri())
