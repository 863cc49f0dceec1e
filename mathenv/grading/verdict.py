"""What a comparison ends with, and what it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mathenv.grading.policy import GradePolicy
from mathenv.grading.trail import Trail
from mathenv.types import GradeStatus


@dataclass(frozen=True, slots=True)
class Verdict:
    """How one comparison ended, and which rule ended it."""

    status: GradeStatus
    tier: str
    detail: str = ""

    @property
    def correct(self) -> bool:
        return self.status is GradeStatus.CORRECT

    @property
    def incorrect(self) -> bool:
        return self.status is GradeStatus.INCORRECT

    @staticmethod
    def of(equal: bool, tier: str, detail: str = "") -> Verdict:
        return Verdict(GradeStatus.CORRECT if equal else GradeStatus.INCORRECT, tier, detail)


@dataclass(frozen=True, slots=True)
class Context:
    """What comparing needs: `decide` are the cheap tiers, `symbolic` the last one.

    `trail` keeps what each rule said, where that was asked for.
    """

    policy: GradePolicy
    decide: Callable[[str, str, GradePolicy], Verdict | None]
    symbolic: Callable[[str, str], Verdict]
    trail: Trail | None = None
    known: dict[tuple[str, str], Verdict | None] = field(default_factory=dict)


# Compares two texts by all tiers, or only by those that need no worker (then None: undecided).
Comparer = Callable[[str, str, Context], Verdict | None]


def wrong(detail: str) -> Verdict:
    """Return the verdict of a rule over parts that refuses an answer."""
    return Verdict.of(False, "structure", detail)


def all_correct(verdicts: list[Verdict | None]) -> Verdict | None:
    """Join verdicts that must all be correct: a wrong one decides, then an open one."""
    for verdict in verdicts:
        if verdict is not None and verdict.incorrect:
            return verdict
    return next((v for v in verdicts if v is None or not v.correct), Verdict.of(True, "structure"))
