"""`words`: procedural word problems."""

from __future__ import annotations

from benchmarks.suites.base import Suite

SUITE = Suite(
    name="words",
    source="words",
    generated=True,
    size=1000,
    licence="Apache-2.0",
    about="made on the spot, 1,000 test problems",
)
