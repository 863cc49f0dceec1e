"""What happened while an answer was graded: which rule looked at what, and which one decided.

grade("x = 1/2", "\\boxed{0.5}", explain=True).trail  # a step for each rule that was asked

Nothing here runs unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mathenv.types import Grade

if TYPE_CHECKING:
    from mathenv.grading.verdict import Verdict

_WORDS = {"correct": "equal", "incorrect": "different"}
_SHOWN = 60  # characters of a text in a line
NOT_MINE = "not mine"


@dataclass(frozen=True, slots=True)
class Step:
    """One rule that was asked.

    Attributes:
        rule: its name.
        gold: the reference, as this rule saw it; "" where it came to nothing.
        answer: the answer, as this rule saw it.
        said: `equal`, `different`, `not mine`, or another status; with the reason, if it has one.
        depth: 0 for the whole answer; one more in the parts that the rule before it looked at.
        decided: the comparison with this reference ended with the verdict of this rule. Where
            a rule hands over to another, both are marked.
    """

    rule: str
    gold: str
    answer: str
    said: str
    depth: int = 0
    decided: bool = False

    def __str__(self) -> str:
        mark, name = "*" if self.decided else " ", "  " * self.depth + self.rule
        return f"{mark} {name:<18} {_short(self.gold)}  |  {_short(self.answer)}  ->  {self.said}"


class ExplainedGrade(Grade):
    """A grade with its `trail`. What stores or encodes grades sees the grade alone."""

    __slots__ = ("trail",)
    trail: tuple[Step, ...]

    def __str__(self) -> str:
        """Write a line for each step, the deciding ones with a star, and one for the verdict."""
        detail = f": {self.detail}" if self.detail else ""
        end = f"{self.status.value}, decided by {self.tier}{detail}"
        return "\n".join([*map(str, self.trail), end])


class Trail:
    """Collects the steps of one grade."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._verdicts: list[Verdict | None] = []
        self._depth = 0
        self._start = 0  # of the reference that is compared now

    def watch(
        self, rule: str, gold: str, answer: str, ask: Callable[[], Verdict | None]
    ) -> Verdict | None:
        """Ask a rule and keep what it said, above what was asked meanwhile."""
        place = len(self._steps)
        self._add(Step(rule, gold, answer, "", self._depth), None)
        self._depth += 1
        try:
            verdict = ask()
        finally:
            self._depth -= 1
        step = replace(self._steps[place], said=_said(verdict))
        if place == len(self._steps) - 1 and step in self._steps[:place]:
            self._steps.pop()  # asked a second time, when the worker may be used, and as before
            self._verdicts.pop()
        else:
            self._steps[place], self._verdicts[place] = step, verdict
        return verdict

    def decide(self, verdict: Verdict) -> Verdict:
        """Mark the steps that gave this verdict."""
        for place in range(self._start, len(self._steps)):
            if self._verdicts[place] is verdict:
                self._steps[place] = replace(self._steps[place], decided=True)
        return verdict

    def end(self, gold: str, answer: str | None, grade: Grade) -> None:
        """End the comparison with one reference, by a step of its own if no rule decided it."""
        if not any(step.decided for step in self._steps[self._start :]):
            word = _WORDS.get(grade.status, grade.status.value)
            said = f"{word}: {grade.detail}" if grade.detail else word
            self._add(Step(grade.tier, gold, answer or "", said, decided=True), None)
        self._start = len(self._steps)

    def explained(self, grade: Grade) -> ExplainedGrade:
        """Return the grade with the steps so far."""
        made = ExplainedGrade(grade.correct, grade.status, grade.answer, grade.tier, grade.detail)
        object.__setattr__(made, "trail", tuple(self._steps))
        return made

    def _add(self, step: Step, verdict: Verdict | None) -> None:
        self._steps.append(step)
        self._verdicts.append(verdict)


def _said(verdict: Verdict | None) -> str:
    if verdict is None:
        return NOT_MINE
    word = _WORDS.get(verdict.status, verdict.status.value)
    return f"{word}: {verdict.detail}" if verdict.detail else word


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
