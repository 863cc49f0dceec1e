"""AMC 12 2023, with integer answers."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite

_OPEN_THOUGHTS = {
    "setting": "no tool, run with Evalchemy",
    "source": "model card of open-thoughts/OpenThinker2-7B",
}

SUITE = Suite(
    name="amc23",
    source="amc23",
    hub="math-ai/amc23",
    size=40,
    licence="problems of the MAA",
    about="AMC 12 of 2023, 40 problems",
    published=(
        Published("OpenThinker2-7B", 89.5, **_OPEN_THOUGHTS),
        Published("OpenThinker-7B", 74.5, **_OPEN_THOUGHTS),
        Published("DeepSeek-R1-Distill-Qwen-7B", 92.0, **_OPEN_THOUGHTS),
        Published("OpenR1-Qwen-7B", 88.5, **_OPEN_THOUGHTS),
    ),
)
