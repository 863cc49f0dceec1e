"""MATH-500 (Lightman et al., 2023): 500 test problems of MATH."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite
from benchmarks.suites.sources import DEEPSEEK_R1, OPEN_THOUGHTS

SUITE = Suite(
    name="math500",
    source="math500",
    hub="HuggingFaceH4/MATH-500",
    size=500,
    licence="MIT",
    about="500 test problems of MATH",
    published=(
        Published("DeepSeek-R1", 97.3, **DEEPSEEK_R1),
        Published("DeepSeek-R1-Distill-Qwen-7B", 92.8, **DEEPSEEK_R1),
        Published("OpenThinker2-7B", 88.4, **OPEN_THOUGHTS),
        Published("OpenThinker-7B", 83.2, **OPEN_THOUGHTS),
        Published("DeepSeek-R1-Distill-Qwen-7B", 89.6, **OPEN_THOUGHTS),
        Published("OpenR1-Qwen-7B", 87.8, **OPEN_THOUGHTS),
    ),
)
