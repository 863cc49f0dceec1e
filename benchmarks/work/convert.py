"""What `mathenv convert` does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from agents.convert import Converter
from agents.models.transformers import load_tokenizer
from agents.settings import RenderOptions
from benchmarks.commands.convert import Convert
from benchmarks.console import ResultConsole
from mathenv import grading
from mathenv.errors import ConfigError, DataError
from mathenv.store import TrajectoryStore


def run(command: Convert) -> None:
    """Convert, then print what was kept and why the rest was not."""
    renderer = RenderOptions(command.dialect).renderer(load_tokenizer(command.model))
    converter = Converter(
        command.source, renderer, horizon=command.horizon, keep_wrong=command.keep_wrong
    )
    try:
        with TrajectoryStore(command.out) as store:
            for trajectory in converter.convert(read_jsonl(command.file, command.limit)):
                if trajectory.key not in store:
                    store.append(trajectory)
            kept, where = len(store), store.path
    finally:
        grading.close()
    left_out = "".join(f"\n  {count} {why}" for why, count in converter.left_out.most_common())
    ResultConsole().say(f"{kept} trajectories in {where}")
    if left_out:
        ResultConsole().say(f"{converter.left_out.total()} rows left out:{left_out}")


def read_jsonl(file: Path, limit: int | None) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file.

    Raises:
        ConfigError: there is no such file. DataError: naming the line, for what is no object.
    """
    if not file.is_file():
        raise ConfigError(f"{file} is not a file")
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if limit is not None and number > limit:
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{file}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{file}, line {number}: not a JSON object")
            yield row
