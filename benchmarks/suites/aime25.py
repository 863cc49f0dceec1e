"""AIME 2025, both contests."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite
from benchmarks.suites.sources import OPEN_THOUGHTS_CONTESTS

SUITE = Suite(
    name="aime25",
    source="aime25",
    hub="math-ai/aime25",
    size=30,
    licence="problems of the MAA",
    about="both AIME contests of 2025, 30 problems",
    published=(
        Published("OpenThinker2-7B", 33.3, **OPEN_THOUGHTS_CONTESTS),
        Published("OpenThinker-7B", 23.3, **OPEN_THOUGHTS_CONTESTS),
        Published("DeepSeek-R1-Distill-Qwen-7B", 33.3, **OPEN_THOUGHTS_CONTESTS),
        Published("OpenR1-Qwen-7B", 34.7, **OPEN_THOUGHTS_CONTESTS),
    ),
)
