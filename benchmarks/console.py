"""Standard output for results."""

from __future__ import annotations

import os
import sys
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from mathenv.files import writing

_UNBOUNDED = 1_000_000


class ResultConsole(Console):
    """Prints results; when the reader has gone (`mathenv solve | head`) the rest is dropped.

    Rich's own answer is to exit from wherever the print happened, which may be in the middle
    of an episode. Tables are as wide as they need to be where no terminal shows them: rich would
    cut them at 80 columns in a file.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        drop_output()

    def print(self, *objects: Any, **how: Any) -> None:
        """Print as rich does.

        Raises:
            StorageError: standard output is a file on a full disk.
        """
        width = self.width
        if not self.file.isatty():
            for table in objects:
                if isinstance(table, Table):
                    needed = self.options.update(max_width=_UNBOUNDED)
                    self.width = max(self.width, Measurement.get(self, needed, table).maximum)
        try:
            with writing("standard output"):
                super().print(*objects, **how)
        finally:
            self.width = width

    def say(self, text: object) -> None:
        """Print plain text: no markup, no highlighting, not wrapped."""
        self.print(str(text), markup=False, highlight=False, soft_wrap=True)


def drop_output() -> None:
    """Send what is still buffered nowhere: the interpreter would complain about it at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
