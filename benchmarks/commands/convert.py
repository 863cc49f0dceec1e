"""`mathenv convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from mathenv.settings import Count, check_settings


@dataclass(frozen=True, slots=True)
class Convert:
    """Turn written solutions into trajectories with tokens, for `mathenv train sft`.

    Rows that our episodes could not have played are left out and counted. Stopped and started
    again it goes on where it stopped.

    Args:
        file: a .jsonl, .json, .csv, .tsv or .parquet file.
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
