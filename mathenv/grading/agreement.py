"""How often the grader agrees with published verdicts, beside math-verify alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mathenv.errors import DataError
from mathenv.grading.grader import grade, grade_answer
from mathenv.grading.policy import MATH_VERIFY, STRICT, GradePolicy
from mathenv.types import Grade

# Its own tests follow a relative tolerance of 1e-4.
_LENIENT = "MARIO_EVAL"
_JOINS_BOXES = "Math-Verify"


@dataclass(frozen=True, slots=True)
class Case:
    """A pair with a published verdict. `tag` names the policy the verdict depends on."""

    id: str
    gold: str
    prediction: str
    expected: bool
    scope: str
    tag: str = ""
    whole_response: bool = False
    source: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def policy(self) -> GradePolicy:
        """The policy under which the published verdict makes sense."""
        return fitting_policy(self)

    def graded(self, policy: GradePolicy) -> Grade:
        """Grade the prediction: as a response where it is one or holds a box."""
        boxed = self.whole_response or "boxed" in self.prediction
        judge = grade if boxed or policy.fallback != "none" else grade_answer
        return judge(self.gold, self.prediction, policy)


def read_cases(path: Path) -> Iterator[Case]:
    """Yield the cases of a JSONL file; see the package's README for the fields.

    Raises:
        DataError: naming file and line, for a row without a reference, an answer or a verdict.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield _case(number, json.loads(line))
            except (KeyError, ValueError) as error:
                raise DataError(f"{path}:{number}: not a grading case: {error!r}") from None


def _case(number: int, row: Mapping[str, Any]) -> Case:
    """Read a row with `prediction` and `expected_equal`, or with `response` and `expected`."""
    response = "response" in row
    expected = row["expected"] if response else row["expected_equal"]
    free_text = "fallback" in row.get("class", "")
    return Case(
        id=str(row.get("id", number)),
        gold=row["gold"],
        prediction=row["response" if response else "prediction"] or "",
        expected=bool(row.get("adjudicated_equal", expected)),
        scope=row.get("scope", "free_text" if free_text else "boxed_or_bare"),
        tag=row.get("policy") or "",
        whole_response=response or row.get("kind") == "response",
        source=row.get("source", ""),
        options=row.get("options") or {},
    )


def fitting_policy(case: Case) -> GradePolicy:
    """Return `strict` with the choice that the case's scope, tag and source stand for."""
    policy = STRICT
    if case.scope == "free_text":
        policy = replace(policy, fallback="text", name="fallback text")
    if case.scope == "multi_box" and _JOINS_BOXES in case.source:
        policy = replace(policy, boxes="all", name="all boxes")
    lenient = _LENIENT in case.source
    rounding = case.options.get("float_rounding", 6)
    if case.tag == "tolerance" and (lenient or rounding < 6):
        tolerance = 1e-4 if lenient else 10.0**-rounding
        policy = replace(policy, tolerance=tolerance, name=f"tolerance {tolerance:g}")
    if case.tag == "bare_units" and lenient:
        policy = replace(policy, units="require", name="units required")
    if case.tag == "reduced_form":
        policy = replace(policy, require_reduced=True, name="reduced form")
    if case.tag == "decimal_comma":
        policy = replace(policy, decimal_comma=True, name="decimal comma")
    if case.tag == "symbol_names":
        policy = replace(policy, symbols="any", name="any symbols")
    return policy


@dataclass(slots=True)
class Tally:
    """Counts of one grader on one group of cases."""

    cases: int = 0
    false_positives: list[str] = field(default_factory=list)
    false_negatives: list[str] = field(default_factory=list)

    def add(self, case: Case, correct: bool) -> None:
        self.cases += 1
        if correct != case.expected:
            (self.false_positives if correct else self.false_negatives).append(case.id)

    @property
    def agreement(self) -> float:
        wrong = len(self.false_positives) + len(self.false_negatives)
        return 1 - wrong / self.cases if self.cases else 0.0


@dataclass(slots=True)
class Agreement:
    """Per group (scope, tag, policy): our tally and that of math-verify alone."""

    groups: dict[tuple[str, str, str], tuple[Tally, Tally]] = field(default_factory=dict)
    disagreements: list[tuple[Case, Grade]] = field(default_factory=list)

    def add(self, case: Case, ours: Grade, theirs: Grade) -> None:
        group = (case.scope, case.tag, case.policy.name)
        our_tally, their_tally = self.groups.setdefault(group, (Tally(), Tally()))
        our_tally.add(case, ours.correct)
        their_tally.add(case, theirs.correct)
        if ours.correct != case.expected:
            self.disagreements.append((case, ours))


def measure_agreement(cases: Iterable[Case]) -> Iterator[tuple[Case, Grade, Grade]]:
    """Yield each case with our grade, under its policy, and that of math-verify alone."""
    for case in cases:
        yield case, case.graded(case.policy), case.graded(MATH_VERIFY)
