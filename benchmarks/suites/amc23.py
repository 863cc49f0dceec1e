"""AMC 12 2023, with integer answers."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite
from benchmarks.suites.sources import OPEN_THOUGHTS_CONTESTS, QWEN_MATH_CONTESTS

SUITE = Suite(
    name="amc23",
    source="amc23",
    hub="math-ai/amc23",
    size=40,
    licence="problems of the MAA",
    about="AMC 12 of 2023, 40 problems",
    published=(
        Published("Qwen2.5-Math-1.5B-Instruct", 50.0, **QWEN_MATH_CONTESTS),
        Published("Qwen2.5-Math-7B-Instruct", 67.5, **QWEN_MATH_CONTESTS),
        Published("Qwen2.5-Math-72B-Instruct", 70.0, **QWEN_MATH_CONTESTS),
        Published("OpenThinker2-7B", 89.5, **OPEN_THOUGHTS_CONTESTS),
        Published("OpenThinker-7B", 74.5, **OPEN_THOUGHTS_CONTESTS),
        Published("DeepSeek-R1-Distill-Qwen-7B", 92.0, **OPEN_THOUGHTS_CONTESTS),
        Published("OpenR1-Qwen-7B", 88.5, **OPEN_THOUGHTS_CONTESTS),
    ),
)
