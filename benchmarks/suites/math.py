"""MATH (Hendrycks et al., 2021)."""

from __future__ import annotations

from benchmarks.suites.base import Published, Suite

_PAPER = {"setting": "greedy, zero-shot, tool, horizon 6", "source": "arXiv 2409.02392v2, table 1"}
_TORA = {
    "setting": "greedy, zero-shot, tool",
    "source": "README of the ToRA repository; arXiv 2309.17452",
}
_QWEN = {"setting": "tool-integrated reasoning", "source": "arXiv 2409.12122, abstract"}

SUITE = Suite(
    name="math",
    source="math",
    hub="EleutherAI/hendrycks_math",
    size=5000,
    licence="MIT",
    about="competition mathematics, 5,000 test problems",
    published=(
        Published("Gemma-1.1-it-7B, SFT", 46.1, **_PAPER),
        Published("Gemma-1.1-it-7B, RAFT", 47.3, **_PAPER),
        Published("Gemma-1.1-it-7B, iterative single-turn DPO", 48.9, **_PAPER),
        Published("Gemma-1.1-it-7B, iterative single-turn KTO", 49.0, **_PAPER),
        Published("Gemma-1.1-it-7B, iterative M-DPO, fixed reference", 48.0, **_PAPER),
        Published("Gemma-1.1-it-7B, M-DPO iteration 1", 49.1, **_PAPER),
        Published("Gemma-1.1-it-7B, M-DPO iteration 2", 49.7, **_PAPER),
        Published("Gemma-1.1-it-7B, M-DPO iteration 3", 51.2, **_PAPER),
        Published("Gemma-1.1-it-7B, iterative M-KTO", 49.5, **_PAPER),
        Published("CodeGemma-1.1-it-7B, SFT", 46.4, **_PAPER),
        Published("CodeGemma-1.1-it-7B, RAFT", 48.4, **_PAPER),
        Published("CodeGemma-1.1-it-7B, iterative single-turn DPO", 48.9, **_PAPER),
        Published("CodeGemma-1.1-it-7B, iterative single-turn KTO", 48.6, **_PAPER),
        Published("CodeGemma-1.1-it-7B, iterative M-DPO", 50.1, **_PAPER),
        Published("CodeGemma-1.1-it-7B, iterative M-KTO", 49.6, **_PAPER),
        Published("Mistral-7B-v0.3, SFT", 42.7, **_PAPER),
        Published("Mistral-7B-v0.3, RAFT", 43.7, **_PAPER),
        Published("Mistral-7B-v0.3, iterative single-turn DPO", 45.1, **_PAPER),
        Published("Mistral-7B-v0.3, iterative single-turn KTO", 46.3, **_PAPER),
        Published("Mistral-7B-v0.3, iterative M-DPO", 47.5, **_PAPER),
        Published("Mistral-7B-v0.3, iterative M-KTO", 46.7, **_PAPER),
        Published("Gemma-2-it-9B, SFT", 51.0, **_PAPER),
        Published("Gemma-2-it-9B, RAFT", 52.6, **_PAPER),
        Published("Gemma-2-it-9B, iterative single-turn DPO", 53.1, **_PAPER),
        Published("Gemma-2-it-9B, iterative single-turn KTO", 52.9, **_PAPER),
        Published("Gemma-2-it-9B, iterative M-DPO", 54.5, **_PAPER),
        Published("Gemma-2-it-9B, iterative M-KTO", 54.5, **_PAPER),
        Published("ToRA-70B", 49.7, **_TORA),
        Published("Qwen2.5-Math-7B-Instruct", 85.3, **_QWEN),
    ),
)
