"""AIME 2025, both contests."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite

_OPEN_THOUGHTS = {
    "setting": "no tool, run with Evalchemy",
    "source": "model card of open-thoughts/OpenThinker2-7B",
}

SUITE = Suite(
    name="aime25",
    source="aime25",
    hub="math-ai/aime25",
    size=30,
    licence="problems of the MAA",
    about="both AIME contests of 2025, 30 problems",
    published=(
        Published("OpenThinker2-7B", 33.3, **_OPEN_THOUGHTS),
        Published("OpenThinker-7B", 23.3, **_OPEN_THOUGHTS),
        Published("DeepSeek-R1-Distill-Qwen-7B", 33.3, **_OPEN_THOUGHTS),
        Published("OpenR1-Qwen-7B", 34.7, **_OPEN_THOUGHTS),
    ),
)
