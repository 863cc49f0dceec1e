"""Standard output for results."""

from __future__ import annotations

import os
import sys

from rich.console import Console


class ResultConsole(Console):
    """Prints results; when the reader has gone (`mathenv solve | head`) the rest is dropped.

    Rich's own answer is to exit from wherever the print happened, which may be in the middle
    of an episode.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # else the interpreter complains at exit
        os.close(nowhere)

    def say(self, text: object) -> None:
        """Print plain text: no markup, no highlighting, not wrapped."""
        self.print(str(text), markup=False, highlight=False, soft_wrap=True)
