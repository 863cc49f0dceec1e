"""ASDiv (Miao et al., 2020)."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite

_PAL = {"setting": "few-shot, program", "source": "arXiv 2211.10435, table 1"}

SUITE = Suite(
    name="asdiv",
    source="asdiv",
    hub="EleutherAI/asdiv",
    size=2215,
    licence="CC-BY-NC-4.0",
    about="diverse elementary word problems, 2,215 with one answer",
    published=(Published("PaL, Codex", 79.6, **_PAL),),
)
