"""SVAMP (Patel et al., 2021)."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite

_PAL = {"setting": "few-shot, program", "source": "arXiv 2211.10435, table 1"}

SUITE = Suite(
    name="svamp",
    source="svamp",
    hub="ChilleD/SVAMP",
    size=1000,
    licence="MIT",
    about="one-step problems varied to trip shortcuts, 1,000 problems",
    published=(Published("PaL, Codex", 79.4, **_PAL),),
)
