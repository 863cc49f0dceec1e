"""The reporter of commands that train."""

from __future__ import annotations

from benchmarks.progress import ConsoleReporter
from learners.reporter import Reporter


class LearningReporter(ConsoleReporter, Reporter):
    """The console as the reporter of the online loop."""
