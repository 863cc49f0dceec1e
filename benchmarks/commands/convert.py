"""`mathenv convert`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from agents.convert import Converter
from agents.models.transformers import load_tokenizer
from agents.policy import RenderOptions
from benchmarks.console import ResultConsole
from mathenv import grading
from mathenv.errors import ConfigError, DataError
from mathenv.settings import Count, check_settings
from mathenv.store import TrajectoryStore


@dataclass(frozen=True, slots=True)
class Convert:
    """Turn written solutions into trajectories with tokens, for `mathenv train sft`.

    Rows that our episodes could not have played are left out and counted. Stopped and started
    again it goes on where it stopped.

    Args:
        file: a .jsonl file.
        source: `openmathinstruct`: solutions with <llm-code> blocks. `gsm8k`: solutions with
            calculator marks. `gsm8k-calc`: the same, in segments. `trajectories`: our own
            that hold no tokens (--api chat); they are tokenised anew, which is not what the
            model sampled.
        model: folder or Hugging Face id whose tokenizer and chat template to use.
        out: .jsonl file or folder to write to.
        horizon: most turns; longer solutions are left out.
        keep_wrong: keep solutions whose answer is wrong (for preference pairs).
        limit: stop after so many rows.
        dialect: how conversations are written, a name in agents/dialects.toml. Left out: the
            model's own chat template.
    """

    file: Annotated[Path, tyro.conf.Positional]
    source: Annotated[
        Literal["openmathinstruct", "gsm8k", "gsm8k-calc", "trajectories"],
        tyro.conf.arg(name="from"),
    ]
    model: str
    out: Path
    horizon: Count = 6
    keep_wrong: bool = False
    limit: Count | None = None
    dialect: str | None = None

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self) -> None:
        """Convert, then print what was kept and why the rest was not."""
        renderer = RenderOptions(self.dialect).renderer(load_tokenizer(self.model))
        converter = Converter(
            self.source, renderer, horizon=self.horizon, keep_wrong=self.keep_wrong
        )
        try:
            with TrajectoryStore(self.out) as store:
                for trajectory in converter.convert(read_jsonl(self.file, self.limit)):
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
    if not file.stat().st_size:
        raise DataError(f"{file} is empty: there is nothing to convert")
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
