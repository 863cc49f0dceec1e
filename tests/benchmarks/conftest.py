"""Trajectories made by hand."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from mathenv.types import (
    ExecutionResult,
    ExecutionStatus,
    Grade,
    GradeStatus,
    Problem,
    Span,
    SpanKind,
    StopReason,
    TokenRecord,
    Trajectory,
    Turn,
)


@pytest.fixture
def make_trajectory() -> Callable[..., Trajectory]:
    def make(
        problem: str,
        correct: bool,
        *,
        sample: int = 0,
        level: str = "",
        infra: bool = False,
        cells: tuple[ExecutionStatus, ...] = (ExecutionStatus.OK,),
        sampled: int | None = None,
        agent: str = "tester",
        subject: str = "",
        metadata: Mapping[str, Any] | None = None,
    ) -> Trajectory:
        turns = [
            Turn("```python\nprint(4)\n```", "print(4)", "4", ExecutionResult(status, "4"))
            for status in cells
        ]
        turns.append(Turn(r"So \boxed{4}." if correct else r"So \boxed{5}."))
        status = GradeStatus.CORRECT if correct else GradeStatus.INCORRECT
        tokens = None
        if sampled is not None:
            spans = (Span(SpanKind.PROMPT, 0, 0, 3), Span(SpanKind.SAMPLED, 0, 3, 3 + sampled))
            tokens = TokenRecord(tuple(range(3 + sampled)), spans)
        return Trajectory(
            problem=Problem(
                problem,
                f"What is {problem}?",
                "4",
                level=level,
                subject=subject,
                metadata=metadata or {},
            ),
            agent=agent,
            sample=sample,
            seed=0,
            turns=tuple(turns),
            stop_reason=StopReason.INFRA if infra else StopReason.ANSWERED,
            grade=Grade(correct and not infra, GradeStatus.INFRA if infra else status, "4"),
            tokens=tokens,
        )

    return make
