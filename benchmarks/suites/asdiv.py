"""ASDiv (Miao et al., 2020)."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite
from benchmarks.suites.sources import PAL, TORA

SUITE = Suite(
    name="asdiv",
    source="asdiv",
    hub="EleutherAI/asdiv",
    size=2215,
    licence="CC-BY-NC-4.0",
    about="diverse elementary word problems, 2,215 with one answer",
    published=(
        Published("ToRA-70B", 86.8, **TORA),
        Published("ToRA-Code-34B", 84.2, **TORA),
        Published("PaL, Codex", 79.6, **PAL),
    ),
)
