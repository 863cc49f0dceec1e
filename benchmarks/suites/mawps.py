"""MAWPS (Koncel-Kedziorski et al., 2016), four parts."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite

_PAL = {"setting": "few-shot, program", "source": "arXiv 2211.10435, table 1"}

SUITE = Suite(
    name="mawps",
    source="mawps",
    hub="files of QwenLM/Qwen2.5-Math",
    size=2065,
    licence="MIT",
    about="four parts (the subjects): singleeq, singleop, addsub, multiarith; 2,065 problems",
    published=(
        Published("PaL, Codex", 96.1, split="singleeq", **_PAL),
        Published("PaL, Codex", 94.6, split="singleop", **_PAL),
        Published("PaL, Codex", 92.5, split="addsub", **_PAL),
        Published("PaL, Codex", 99.2, split="multiarith", **_PAL),
    ),
)
