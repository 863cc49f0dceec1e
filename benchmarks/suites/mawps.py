"""MAWPS (Koncel-Kedziorski et al., 2016), four parts."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite
from benchmarks.suites.sources import PAL, TORA

# They report the mean of the four parts' accuracies; ours is over all 2,065 problems.
_TORA = {**TORA, "setting": f"{TORA['setting']}, mean of the four parts"}

SUITE = Suite(
    name="mawps",
    source="mawps",
    hub="files of QwenLM/Qwen2.5-Math",
    size=2065,
    licence="MIT",
    about="four parts (the subjects): singleeq, singleop, addsub, multiarith; 2,065 problems",
    published=(
        Published("ToRA-70B", 93.8, **_TORA),
        Published("ToRA-Code-34B", 93.3, **_TORA),
        Published("PaL, Codex", 96.1, split="singleeq", **PAL),
        Published("PaL, Codex", 94.6, split="singleop", **PAL),
        Published("PaL, Codex", 92.5, split="addsub", **PAL),
        Published("PaL, Codex", 99.2, split="multiarith", **PAL),
    ),
)
