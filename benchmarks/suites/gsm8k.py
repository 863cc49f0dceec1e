"""GSM8K (Cobbe et al., 2021)."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite
from benchmarks.suites.sources import M_DPO, PAL, QWEN_MATH, TORA

SUITE = Suite(
    name="gsm8k",
    source="gsm8k",
    hub="openai/gsm8k",
    size=1319,
    licence="MIT",
    about="grade-school word problems, 1,319 test problems",
    published=(
        Published("Gemma-1.1-it-7B, SFT", 77.5, **M_DPO),
        Published("Gemma-1.1-it-7B, RAFT", 79.2, **M_DPO),
        Published("Gemma-1.1-it-7B, iterative single-turn DPO", 81.7, **M_DPO),
        Published("Gemma-1.1-it-7B, iterative single-turn KTO", 80.6, **M_DPO),
        Published("Gemma-1.1-it-7B, iterative M-DPO, fixed reference", 79.9, **M_DPO),
        Published("Gemma-1.1-it-7B, M-DPO iteration 1", 81.5, **M_DPO),
        Published("Gemma-1.1-it-7B, M-DPO iteration 2", 82.5, **M_DPO),
        Published("Gemma-1.1-it-7B, M-DPO iteration 3", 83.9, **M_DPO),
        Published("Gemma-1.1-it-7B, iterative M-KTO", 82.1, **M_DPO),
        Published("CodeGemma-1.1-it-7B, SFT", 77.3, **M_DPO),
        Published("CodeGemma-1.1-it-7B, RAFT", 78.8, **M_DPO),
        Published("CodeGemma-1.1-it-7B, iterative single-turn DPO", 79.1, **M_DPO),
        Published("CodeGemma-1.1-it-7B, iterative single-turn KTO", 80.2, **M_DPO),
        Published("CodeGemma-1.1-it-7B, iterative M-DPO", 81.5, **M_DPO),
        Published("CodeGemma-1.1-it-7B, iterative M-KTO", 81.6, **M_DPO),
        Published("Mistral-7B-v0.3, SFT", 77.8, **M_DPO),
        Published("Mistral-7B-v0.3, RAFT", 79.8, **M_DPO),
        Published("Mistral-7B-v0.3, iterative single-turn DPO", 79.8, **M_DPO),
        Published("Mistral-7B-v0.3, iterative single-turn KTO", 81.3, **M_DPO),
        Published("Mistral-7B-v0.3, iterative M-DPO", 82.3, **M_DPO),
        Published("Mistral-7B-v0.3, iterative M-KTO", 81.7, **M_DPO),
        Published("Gemma-2-it-9B, SFT", 84.1, **M_DPO),
        Published("Gemma-2-it-9B, RAFT", 84.2, **M_DPO),
        Published("Gemma-2-it-9B, iterative single-turn DPO", 85.2, **M_DPO),
        Published("Gemma-2-it-9B, iterative single-turn KTO", 85.4, **M_DPO),
        Published("Gemma-2-it-9B, iterative M-DPO", 86.3, **M_DPO),
        Published("Gemma-2-it-9B, iterative M-KTO", 86.1, **M_DPO),
        Published("ToRA-70B", 84.3, **TORA),
        Published("ToRA-Code-34B", 80.7, **TORA),
        Published("Qwen2.5-Math-7B-Instruct", 94.6, **QWEN_MATH),
        Published("Qwen2.5-Math-72B-Instruct", 95.8, **QWEN_MATH),
        Published("PaL, Codex", 72.0, **PAL),
    ),
)
