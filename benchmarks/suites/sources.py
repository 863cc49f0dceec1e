"""Where published numbers come from: how they were measured, and the place they were read in.

One entry per table or page, shared by the modules of the suites. A number is listed only where
it was read in its authors' own paper or repository.
"""

from __future__ import annotations

M_DPO = {
    "setting": "greedy, zero-shot, tool, horizon 6",
    "source": "arXiv 2409.02392v2, table 1",
}
TORA = {
    "setting": "greedy, zero-shot, tool, at most 3 executions",
    "source": "arXiv 2309.17452, table 2",
}
QWEN_MATH = {
    "setting": "greedy, zero-shot, tool",
    "source": "arXiv 2409.12122, table 3",
}
QWEN_MATH_CONTESTS = {
    "setting": "greedy, zero-shot, tool",
    "source": "arXiv 2409.12122, table 5",
}
PAL = {
    "setting": "few-shot, program, mean of 3 runs",
    "source": "arXiv 2211.10435, table 1",
}
DEEPSEEK_R1 = {
    "setting": "no tool, temperature 0.6, mean of 64 samples",
    "source": "README of github.com/deepseek-ai/DeepSeek-R1, section 4",
}
OPEN_THOUGHTS_CONTESTS = {
    "setting": "no tool, temperature 0.7, mean of 5 runs with Evalchemy",
    "source": "README of github.com/open-thoughts/open-thoughts, April 2025",
}
OPEN_THOUGHTS = {
    **OPEN_THOUGHTS_CONTESTS,
    "setting": "no tool, temperature 0.7, mean of 3 runs with Evalchemy",
}
