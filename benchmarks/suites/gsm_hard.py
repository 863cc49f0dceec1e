"""GSM-Hard (Gao et al., 2023)."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite

_PAL = {"setting": "few-shot, program", "source": "arXiv 2211.10435, table 1"}

SUITE = Suite(
    name="gsm_hard",
    source="gsm_hard",
    hub="reasoning-machines/gsm-hard",
    size=1319,
    licence="MIT",
    about="GSM8K test with large numbers, about one label in ten is wrong",
    published=(Published("PaL, Codex", 61.2, **_PAL),),
)
