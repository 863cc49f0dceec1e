"""AIME 2024, both contests."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite

_R1 = {
    "setting": "no tool, pass@1 at temperature 0.6",
    "source": "arXiv 2501.12948, tables 4 and 5",
}
_OPEN_THOUGHTS = {
    "setting": "no tool, run with Evalchemy",
    "source": "model card of open-thoughts/OpenThinker2-7B",
}

SUITE = Suite(
    name="aime24",
    source="aime24",
    hub="math-ai/aime24",
    size=30,
    licence="problems of the MAA",
    about="both AIME contests of 2024, 30 problems",
    published=(
        Published("DeepSeek-R1", 79.8, **_R1),
        Published("DeepSeek-R1-Distill-Qwen-7B", 55.5, **_R1),
        Published("OpenThinker2-7B", 50.0, **_OPEN_THOUGHTS),
        Published("OpenThinker-7B", 31.3, **_OPEN_THOUGHTS),
        Published("DeepSeek-R1-Distill-Qwen-7B", 57.3, **_OPEN_THOUGHTS),
        Published("OpenR1-Qwen-7B", 48.7, **_OPEN_THOUGHTS),
    ),
)
