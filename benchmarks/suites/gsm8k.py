"""GSM8K (Cobbe et al., 2021)."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite

_PAPER = {"setting": "greedy, zero-shot, tool, horizon 6", "source": "arXiv 2409.02392v2, table 1"}
_TORA = {
    "setting": "greedy, zero-shot, tool",
    "source": "README of the ToRA repository; arXiv 2309.17452",
}
_PAL = {"setting": "few-shot, program", "source": "arXiv 2211.10435, table 1"}

SUITE = Suite(
    name="gsm8k",
    source="gsm8k",
    hub="openai/gsm8k",
    size=1319,
    licence="MIT",
    about="grade-school word problems, 1,319 test problems",
    published=(
        Published("Gemma-1.1-it-7B, SFT", 77.5, **_PAPER),
        Published("Gemma-1.1-it-7B, RAFT", 79.2, **_PAPER),
        Published("Gemma-1.1-it-7B, iterative single-turn DPO", 81.7, **_PAPER),
        Published("Gemma-1.1-it-7B, iterative single-turn KTO", 80.6, **_PAPER),
        Published("Gemma-1.1-it-7B, iterative M-DPO, fixed reference", 79.9, **_PAPER),
        Published("Gemma-1.1-it-7B, M-DPO iteration 1", 81.5, **_PAPER),
        Published("Gemma-1.1-it-7B, M-DPO iteration 2", 82.5, **_PAPER),
        Published("Gemma-1.1-it-7B, M-DPO iteration 3", 83.9, **_PAPER),
        Published("Gemma-1.1-it-7B, iterative M-KTO", 82.1, **_PAPER),
        Published("CodeGemma-1.1-it-7B, SFT", 77.3, **_PAPER),
        Published("CodeGemma-1.1-it-7B, RAFT", 78.8, **_PAPER),
        Published("CodeGemma-1.1-it-7B, iterative single-turn DPO", 79.1, **_PAPER),
        Published("CodeGemma-1.1-it-7B, iterative single-turn KTO", 80.2, **_PAPER),
        Published("CodeGemma-1.1-it-7B, iterative M-DPO", 81.5, **_PAPER),
        Published("CodeGemma-1.1-it-7B, iterative M-KTO", 81.6, **_PAPER),
        Published("Mistral-7B-v0.3, SFT", 77.8, **_PAPER),
        Published("Mistral-7B-v0.3, RAFT", 79.8, **_PAPER),
        Published("Mistral-7B-v0.3, iterative single-turn DPO", 79.8, **_PAPER),
        Published("Mistral-7B-v0.3, iterative single-turn KTO", 81.3, **_PAPER),
        Published("Mistral-7B-v0.3, iterative M-DPO", 82.3, **_PAPER),
        Published("Mistral-7B-v0.3, iterative M-KTO", 81.7, **_PAPER),
        Published("Gemma-2-it-9B, SFT", 84.1, **_PAPER),
        Published("Gemma-2-it-9B, RAFT", 84.2, **_PAPER),
        Published("Gemma-2-it-9B, iterative single-turn DPO", 85.2, **_PAPER),
        Published("Gemma-2-it-9B, iterative single-turn KTO", 85.4, **_PAPER),
        Published("Gemma-2-it-9B, iterative M-DPO", 86.3, **_PAPER),
        Published("Gemma-2-it-9B, iterative M-KTO", 86.1, **_PAPER),
        Published("ToRA-70B", 84.3, **_TORA),
        Published("ToRA-Code-34B", 80.7, **_TORA),
        Published("PaL, Codex", 72.0, **_PAL),
    ),
)
