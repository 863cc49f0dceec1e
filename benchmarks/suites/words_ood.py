"""`words_ood`: larger numbers, longer, other words."""

from __future__ import annotations

from benchmarks.suites.base import Suite

SUITE = Suite(
    name="words_ood",
    source="words_ood",
    generated=True,
    size=1000,
    licence="Apache-2.0",
    about="words, larger and longer",
)
