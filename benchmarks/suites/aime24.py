"""AIME 2024, both contests."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite
from benchmarks.suites.sources import DEEPSEEK_R1, OPEN_THOUGHTS_CONTESTS, QWEN_MATH_CONTESTS

SUITE = Suite(
    name="aime24",
    source="aime24",
    hub="math-ai/aime24",
    size=30,
    licence="problems of the MAA",
    about="both AIME contests of 2024, 30 problems",
    published=(
        Published("Qwen2.5-Math-1.5B-Instruct", 23.3, **QWEN_MATH_CONTESTS),
        Published("Qwen2.5-Math-7B-Instruct", 20.0, **QWEN_MATH_CONTESTS),
        Published("Qwen2.5-Math-72B-Instruct", 40.0, **QWEN_MATH_CONTESTS),
        Published("DeepSeek-R1", 79.8, **DEEPSEEK_R1),
        Published("DeepSeek-R1-Distill-Qwen-7B", 55.5, **DEEPSEEK_R1),
        Published("OpenThinker2-7B", 50.0, **OPEN_THOUGHTS_CONTESTS),
        Published("OpenThinker-7B", 31.3, **OPEN_THOUGHTS_CONTESTS),
        Published("DeepSeek-R1-Distill-Qwen-7B", 57.3, **OPEN_THOUGHTS_CONTESTS),
        Published("OpenR1-Qwen-7B", 48.7, **OPEN_THOUGHTS_CONTESTS),
    ),
)
