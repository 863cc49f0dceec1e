"""What `mathenv convert` does."""

from __future__ import annotations

from itertools import islice

from agents.convert import Converter
from agents.models.hf import load_tokenizer
from agents.settings import RenderOptions
from benchmarks.commands.convert import Convert
from benchmarks.console import ResultConsole
from mathenv import grading
from mathenv.errors import ConfigError, DataError
from mathenv.problems.files import read_file
from mathenv.store import TrajectoryStore


def run(command: Convert) -> None:
    """Convert, then print what was kept and why the rest was not."""
    if not command.file.is_file():
        raise ConfigError(f"{command.file} is not a file")
    if not command.file.stat().st_size:
        raise DataError(f"{command.file} is empty: there is nothing to convert")
    renderer = RenderOptions(command.dialect).renderer(load_tokenizer(command.model))
    converter = Converter(
        command.source, renderer, horizon=command.horizon, keep_wrong=command.keep_wrong
    )
    rows = (row.fields for row in islice(read_file(command.file), command.limit))
    try:
        with TrajectoryStore(command.out) as store:
            for trajectory in converter.convert(rows):
                if trajectory.key not in store:
                    store.append(trajectory)
            kept, where = len(store), store.path
    finally:
        grading.close()
    left_out = "".join(f"\n  {count} {why}" for why, count in converter.left_out.most_common())
    ResultConsole().say(f"{kept} trajectories in {where}")
    if left_out:
        ResultConsole().say(f"{converter.left_out.total()} rows left out:{left_out}")
