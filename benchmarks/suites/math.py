"""MATH (Hendrycks et al., 2021)."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite
from benchmarks.suites.sources import M_DPO, QWEN_MATH, TORA

SUITE = Suite(
    name="math",
    source="math",
    hub="EleutherAI/hendrycks_math",
    size=5000,
    licence="MIT",
    about="competition mathematics, 5,000 test problems",
    published=(
        Published("Gemma-1.1-it-7B, SFT", 46.1, **M_DPO),
        Published("Gemma-1.1-it-7B, RAFT", 47.3, **M_DPO),
        Published("Gemma-1.1-it-7B, iterative single-turn DPO", 48.9, **M_DPO),
        Published("Gemma-1.1-it-7B, iterative single-turn KTO", 49.0, **M_DPO),
        Published("Gemma-1.1-it-7B, iterative M-DPO, fixed reference", 48.0, **M_DPO),
        Published("Gemma-1.1-it-7B, M-DPO iteration 1", 49.1, **M_DPO),
        Published("Gemma-1.1-it-7B, M-DPO iteration 2", 49.7, **M_DPO),
        Published("Gemma-1.1-it-7B, M-DPO iteration 3", 51.2, **M_DPO),
        Published("Gemma-1.1-it-7B, iterative M-KTO", 49.5, **M_DPO),
        Published("CodeGemma-1.1-it-7B, SFT", 46.4, **M_DPO),
        Published("CodeGemma-1.1-it-7B, RAFT", 48.4, **M_DPO),
        Published("CodeGemma-1.1-it-7B, iterative single-turn DPO", 48.9, **M_DPO),
        Published("CodeGemma-1.1-it-7B, iterative single-turn KTO", 48.6, **M_DPO),
        Published("CodeGemma-1.1-it-7B, iterative M-DPO", 50.1, **M_DPO),
        Published("CodeGemma-1.1-it-7B, iterative M-KTO", 49.6, **M_DPO),
        Published("Mistral-7B-v0.3, SFT", 42.7, **M_DPO),
        Published("Mistral-7B-v0.3, RAFT", 43.7, **M_DPO),
        Published("Mistral-7B-v0.3, iterative single-turn DPO", 45.1, **M_DPO),
        Published("Mistral-7B-v0.3, iterative single-turn KTO", 46.3, **M_DPO),
        Published("Mistral-7B-v0.3, iterative M-DPO", 47.5, **M_DPO),
        Published("Mistral-7B-v0.3, iterative M-KTO", 46.7, **M_DPO),
        Published("Gemma-2-it-9B, SFT", 51.0, **M_DPO),
        Published("Gemma-2-it-9B, RAFT", 52.6, **M_DPO),
        Published("Gemma-2-it-9B, iterative single-turn DPO", 53.1, **M_DPO),
        Published("Gemma-2-it-9B, iterative single-turn KTO", 52.9, **M_DPO),
        Published("Gemma-2-it-9B, iterative M-DPO", 54.5, **M_DPO),
        Published("Gemma-2-it-9B, iterative M-KTO", 54.5, **M_DPO),
        Published("ToRA-70B", 49.7, **TORA),
        Published("ToRA-Code-34B", 50.8, **TORA),
        Published("Qwen2.5-Math-7B-Instruct", 85.2, **QWEN_MATH),
        Published("Qwen2.5-Math-72B-Instruct", 88.1, **QWEN_MATH),
    ),
)
