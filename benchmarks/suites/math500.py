"""MATH-500 (Lightman et al., 2023): 500 test problems of MATH."""

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
    name="math500",
    source="math500",
    hub="HuggingFaceH4/MATH-500",
    size=500,
    licence="MIT",
    about="500 test problems of MATH",
    published=(
        Published("DeepSeek-R1", 97.3, **_R1),
        Published("DeepSeek-R1-Distill-Qwen-7B", 92.8, **_R1),
        Published("OpenThinker2-7B", 88.4, **_OPEN_THOUGHTS),
        Published("OpenThinker-7B", 83.2, **_OPEN_THOUGHTS),
        Published("DeepSeek-R1-Distill-Qwen-7B", 89.6, **_OPEN_THOUGHTS),
        Published("OpenR1-Qwen-7B", 87.8, **_OPEN_THOUGHTS),
    ),
)
