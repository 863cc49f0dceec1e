"""`mathenv ablate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mathenv.settings import Count, Seed, check_settings


@dataclass(frozen=True, slots=True)
class Ablate:
    """Run every table of the paper again, small: the embedded model on `words`.

    Methods, reference, eta, sampling, NLL, SFT epochs; and what the paper left open: out of
    distribution, pass@k, diversity, noisy observations. Each variant has its own folder, and
    those that begin alike share SFT and first rollouts. A run that was stopped goes on when
    the same command is given again. The pages say which of the paper's findings hold here.

    Args:
        out: the run folder.
        quick: minutes instead of hours: one seed, a short SFT, few problems.
        seeds: seeds of everything (default: 0 1 2, with `quick` 0).
        only: groups to run (default: all): main, reference, eta, noise, nll, sampling, sft,
            less-noise.
        threads: torch threads; results are repeatable for a fixed number.
        sft: take base models, demonstrations and SFT from this run folder of `mathenv iterate`
            (same recipe and seeds) instead of making them.
        page: only write the pages of what is in `out`, a markdown file here with its pictures
            and results as HTML and JSON beside it.
    """

    out: Path = Path("runs/ablate")
    quick: bool = False
    seeds: tuple[Seed, ...] = ()
    only: tuple[str, ...] = ()
    threads: Count = 1
    sft: Path | None = None
    page: Path | None = None

    def __post_init__(self) -> None:
        check_settings(self)
