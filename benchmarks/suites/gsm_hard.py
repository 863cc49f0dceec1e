"""GSM-Hard (Gao et al., 2023)."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite
from benchmarks.suites.sources import PAL, TORA

SUITE = Suite(
    name="gsm_hard",
    source="gsm_hard",
    hub="reasoning-machines/gsm-hard",
    size=1319,
    licence="MIT",
    about="GSM8K test with large numbers, about one label in ten is wrong",
    published=(
        Published("ToRA-70B", 67.2, **TORA),
        Published("ToRA-Code-34B", 63.7, **TORA),
        Published("PaL, Codex", 61.2, **PAL),
    ),
)
