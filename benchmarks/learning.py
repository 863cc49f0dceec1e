"""What commands that train share. Imports torch, unlike the rest of this package."""

from __future__ import annotations

from transformers.utils.logging import disable_progress_bar

from benchmarks.progress import ConsoleReporter
from learners.reporter import Reporter


class LearningReporter(ConsoleReporter, Reporter):
    """The console as the reporter of the online loop; our bars replace transformers' own."""

    def __init__(self) -> None:
        super().__init__()
        disable_progress_bar()
