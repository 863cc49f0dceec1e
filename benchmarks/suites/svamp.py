"""SVAMP (Patel et al., 2021)."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite
from benchmarks.suites.sources import PAL, TORA

SUITE = Suite(
    name="svamp",
    source="svamp",
    hub="ChilleD/SVAMP",
    size=1000,
    licence="MIT",
    about="one-step problems varied to trip shortcuts, 1,000 problems",
    published=(
        Published("ToRA-70B", 82.7, **TORA),
        Published("ToRA-Code-34B", 80.5, **TORA),
        Published("PaL, Codex", 79.4, **PAL),
    ),
)
