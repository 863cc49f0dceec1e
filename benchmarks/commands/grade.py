"""`mathenv grade`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from benchmarks.console import ResultConsole
from benchmarks.progress import Advance, ConsoleReporter
from mathenv.errors import ConfigError, DataError
from mathenv.grading.agreement import Agreement, Case, Tally, measure_agreement, read_cases
from mathenv.grading.batch import iter_grades
from mathenv.grading.grader import grade as grade_one
from mathenv.grading.policy import GradePolicy, find_policy
from mathenv.grading.validate import accepted_perturbations, self_match
from mathenv.problems.files import Row as RawRow
from mathenv.problems.files import file_suffix, read_file
from mathenv.problems.jsonl import reference_answer
from mathenv.settings import Count, check_settings
from mathenv.store import FILE_NAME, from_json, to_json
from mathenv.types import Grade, Trajectory

_SHOWN = 20
_ANSWER_FIELDS = ("answer", "final_pred", "prediction")


@dataclass(frozen=True, slots=True)
class GradeCommand:
    """Grade stored answers again, without a model, and say what changed.

    Rows are stored trajectories, or objects with `gold` and one of `response` (a model's last
    turn), `answer`, `final_pred`, `prediction` (an extracted answer). A `grade` or `score` in the
    row is the stored verdict.

    With `--gold` and `--answer` it grades this pair instead of a file.

    Args:
        file: a .jsonl, .json, .csv, .tsv or .parquet file, or a folder with trajectories.jsonl.
        gold: the reference answer of one pair.
        answer: the answer of that pair, or a model's last turn with its `\\boxed{}`.
        explain: say for each answer, line by line, which rule looked at which two texts and what
            it said; those that decided have a star.
        policy: strict, paper or math_verify.
        out: write the rows with their new grades here; trajectories stay trajectories.
        workers: most worker processes for symbolic comparison.
        agreement: the rows are cases with `gold`, `prediction` and `expected_equal`: count
            agreement, under the policy that each case stands for, beside math-verify alone.
        self_match: the rows are problems with `answer`: grade every distinct answer against
            itself and against itself with one digit changed.
    """

    file: Annotated[Path | None, tyro.conf.Positional] = None
    gold: str | None = None
    answer: str | None = None
    explain: bool = False
    policy: str = "strict"
    out: Path | None = None
    workers: Count | None = None
    agreement: bool = False
    self_match: bool = False

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self) -> None:
        """Grade, print the summary, write the file."""
        self._check()
        policy, console = find_policy(self.policy), ResultConsole()
        if self.gold is not None and self.answer is not None:
            verdict = grade_one(self.gold, _boxed(self.answer), policy, explain=True)
            console.say(verdict if self.explain else str(verdict).splitlines()[-1])
        elif self.file is not None:
            self._grade_file(_file(self.file), policy, console)

    def _check(self) -> None:
        pair = self.gold is not None and self.answer is not None
        if pair == (self.file is not None) or (self.gold is None) != (self.answer is None):
            raise ConfigError("give a file of answers, or --gold and --answer for one pair")
        if pair and (self.out is not None or self.agreement or self.self_match):
            raise ConfigError("--out, --agreement and --self-match need a file of answers")
        if self.agreement and self.self_match:
            raise ConfigError("--agreement and --self-match are two measurements: choose one")
        if (self.out is not None or self.explain) and (self.agreement or self.self_match):
            raise ConfigError(
                "--out and --explain are for graded rows: not with --agreement or --self-match"
            )
        if self.agreement and self.policy != "strict":
            raise ConfigError(
                "--agreement grades each case under its own policy: leave out --policy"
            )

    def _grade_file(self, file: Path, policy: GradePolicy, console: ResultConsole) -> None:
        total = _count_lines(file)
        if not file.stat().st_size or total == 0:
            raise DataError(f"{file} is empty: there is nothing to grade")
        for row in read_rows(file) if self.explain else ():
            explained = grade_one(row.gold, row.response, policy, explain=True)
            console.say(f"{row.name}\n{explained}\n")
        with ConsoleReporter().stage(f"grade {file.name}", total, "rows") as advance:
            if self.agreement:
                views = list(_agreement_views(_measure(file, advance)))
            elif self.self_match:
                views = list(_self_match_views(file, policy, advance))
            else:
                views = list(self._grade(file, policy, advance).views())
        for view in views:
            if isinstance(view, str):
                console.say(view)
            else:
                console.print(view)

    def _grade(self, file: Path, policy: GradePolicy, advance: Advance) -> Summary:
        summary = Summary(policy)
        rows: list[Row] = []  # read ahead of the grades, by a few chunks

        def pairs() -> Iterator[tuple[str, str]]:
            for row in read_rows(file):
                rows.append(row)
                yield row.gold, row.response

        with ExitStack() as stack:
            write = _writer(self.out, stack)
            grades = iter_grades(pairs(), policy=policy, workers=self.workers)
            for done, grade in enumerate(grades, start=1):
                row = rows.pop(0)
                summary.add(row, grade)
                write(row.regraded(grade))
                advance(done)
        return summary


@dataclass(frozen=True, slots=True)
class Row:
    """One stored answer. `before` is the stored verdict, None where there is none."""

    name: str
    gold: str
    response: str
    before: bool | None
    trajectory: Trajectory | None = None

    def regraded(self, grade: Grade) -> dict[str, Any]:
        """Return the row to write, as plain JSON values."""
        if self.trajectory is not None:
            return to_json(replace(self.trajectory, grade=grade))
        return {
            "id": self.name,
            "gold": self.gold,
            "answer": grade.answer,
            "correct": grade.correct,
            "status": grade.status.value,
            "tier": grade.tier,
            "detail": grade.detail,
            "before": self.before,
        }


def read_rows(file: Path) -> Iterator[Row]:
    """Yield what a file holds to grade.

    Raises:
        DataError: naming file and line, for a row that holds no gold or no answer.
    """
    for row in read_file(file):
        try:
            yield _read_row(dict(row.fields), str(row.index + 1))
        except (DataError, KeyError, TypeError) as error:
            raise DataError(f"{row.where}: {error}") from None


def _read_row(row: dict[str, Any], number: str) -> Row:
    if "turns" in row:
        trajectory = from_json(row)
        action = trajectory.turns[-1].action if trajectory.turns else ""
        before = trajectory.grade.correct if trajectory.counts else None
        return Row(trajectory.key, trajectory.problem.answer, action, before, trajectory)
    gold, response = row.get("gold"), row.get("response")
    if response is None:
        answer = next((row[name] for name in _ANSWER_FIELDS if row.get(name) is not None), None)
        response = None if answer is None else _boxed(answer)
    if not isinstance(gold, str) or not isinstance(response, str):
        raise DataError(
            f"needs `gold` and `response` or one of {', '.join(_ANSWER_FIELDS)}, as text; "
            f"found {sorted(row)}"
        )
    return Row(str(row.get("id", number)), gold, response, _verdict(row))


def _boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def _verdict(row: dict[str, Any]) -> bool | None:
    """Return the stored verdict; a table of text, such as CSV, has it as a word or a number."""
    stored = row.get("score", row.get("correct"))
    if isinstance(stored, str):
        stored = {"": None, "true": True, "false": False}.get(stored.strip().lower(), stored)
    try:
        return None if stored is None else bool(float(stored))
    except (TypeError, ValueError):
        raise DataError(f"the stored verdict must be 0, 1, true or false, not {stored!r}") from None


def _file(path: Path) -> Path:
    """Return the file of rows: in a folder, the trajectories that `mathenv collect` etc. wrote.

    Raises:
        DataError: the folder holds none; the message names those below it that do.
    """
    if not path.is_dir():
        return path
    if (path / FILE_NAME).is_file():
        return path / FILE_NAME
    below = sorted(str(found.parent) for found in path.glob(f"*/{FILE_NAME}"))
    found = f"; give one of {', '.join(below)}" if below else ""
    raise DataError(f"{path}: a folder without {FILE_NAME}{found}")


def _count_lines(file: Path) -> int | None:
    """Return how many rows a file of lines holds, None for another kind."""
    try:
        with file.open("rb") as lines:
            return sum(1 for _ in lines) if file_suffix(file) in ("", ".jsonl", ".ndjson") else None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None


def _writer(out: Path | None, stack: ExitStack) -> Any:
    """Return a function that writes a row; the file appears under its name when all is done."""
    if out is None:
        return lambda row: None
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    stack.callback(temporary.unlink, missing_ok=True)
    stream = temporary.open("w", encoding="ascii")

    def finish(kind: object, *_: object) -> None:
        stream.close()
        if kind is None:
            os.replace(temporary, out)

    stack.push(finish)
    return lambda row: stream.write(json.dumps(row) + "\n")


# --------------------------------------------------------------------------- summary


@dataclass(slots=True)
class Summary:
    """Counts by status and tier, and what differs from the stored verdicts."""

    policy: GradePolicy
    statuses: Counter[str] = field(default_factory=Counter)
    tiers: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    changes: list[tuple[Row, Grade]] = field(default_factory=list)
    counted: int = 0
    correct: int = 0

    def add(self, row: Row, grade: Grade) -> None:
        self.statuses[grade.status.value] += 1
        self.tiers[grade.tier] += 1
        self.counted += grade.counts
        self.correct += grade.correct
        if row.before is not None and grade.counts:
            self.compared += 1
            if row.before != grade.correct:
                self.changes.append((row, grade))

    def views(self) -> Iterator[Table | str]:
        """Yield tables and lines for the console."""
        yield _counts("status", self.statuses)
        yield _counts("tier", self.tiers)
        excluded = self.statuses.total() - self.counted
        share = f" ({self.correct / self.counted:.2%})" if self.counted else ""
        yield f"correct: {self.correct} of {self.counted}{share}; excluded: {excluded}"
        yield f"policy: {self.policy.name} {self.policy.digest}"
        if self.compared:
            same = self.compared - len(self.changes)
            yield f"same as stored: {same} of {self.compared} ({same / self.compared:.2%})"
        for row, grade in self.changes[:_SHOWN]:
            was, now = ("correct" if c else "wrong" for c in (row.before, grade.correct))
            detail = f" ({grade.tier}: {grade.detail})" if grade.detail else f" ({grade.tier})"
            yield f"  {row.name}: {row.gold!r} / {grade.answer!r}: {was} -> {now}{detail}"
        if len(self.changes) > _SHOWN:
            yield f"  and {len(self.changes) - _SHOWN} more: use --out"


def _counts(title: str, counts: Counter[str]) -> Table:
    table = Table(title, "rows", "share", box=None, padding=(0, 2, 0, 0))
    for name, count in counts.most_common():
        table.add_row(name, str(count), f"{count / counts.total():.1%}")
    return table


def _measure(file: Path, advance: Advance) -> Agreement:
    agreement = Agreement()
    for done, (case, ours, theirs) in enumerate(measure_agreement(read_cases(file)), start=1):
        agreement.add(case, ours, theirs)
        advance(done)
    return agreement


def _agreement_views(agreement: Agreement) -> Iterator[Table | str]:
    columns = ("scope", "depends on", "policy", "cases", "ours", "FP/FN", "math-verify", "FP/FN")
    table = Table(*columns, box=None, padding=(0, 2, 0, 0))
    for (scope, tag, policy), (ours, theirs) in sorted(agreement.groups.items()):
        row = (scope, tag or "-", policy, str(ours.cases), *_agreement_cells(ours))
        table.add_row(*row, *_agreement_cells(theirs))
    yield table
    for case, grade in agreement.disagreements:
        yield f"  {_named(case)}: expected {case.expected}, {grade.status.value} ({grade.tier})"


def _named(case: Case) -> str:
    return f"{case.id} {case.gold[:60]!r} / {case.prediction[-60:]!r}"


def _agreement_cells(tally: Tally) -> tuple[str, str]:
    wrong = f"{len(tally.false_positives)}/{len(tally.false_negatives)}"
    return f"{tally.agreement:.3f}", wrong


def _self_match_views(file: Path, policy: GradePolicy, advance: Advance) -> Iterator[Table | str]:
    answers: dict[str, None] = {}
    for row in read_file(file):
        answers.setdefault(_reference(row))
    failures = []
    for done, answer in enumerate(answers, start=1):
        grade = self_match(answer, policy)
        if not grade.correct:
            failures.append((answer, answer, grade))
        advance(done, 2 * len(answers))
    accepted = _accepted(answers, policy, advance)
    yield f"{len(answers)} distinct answers; {len(failures)} do not grade as themselves"
    yield from (f"  {a!r}: {g.status.value} ({g.tier}: {g.detail})" for a, _, g in failures)
    yield f"{len(accepted)} accepted with one digit changed"
    yield from (f"  {a!r} / {w!r} ({g.tier}: {g.detail})" for a, w, g in accepted)
    yield f"policy: {policy.name} {policy.digest}"


def _accepted(
    answers: Iterable[str], policy: GradePolicy, advance: Advance
) -> list[tuple[str, str, Grade]]:
    total = 2 * len(list(answers))
    accepted = []
    for done, found in enumerate(accepted_perturbations(answers, policy), start=total // 2 + 1):
        if found[2].correct:
            accepted.append(found)
        advance(done, total)
    return accepted


def _reference(row: RawRow) -> str:
    answer = row.fields.get("answer")
    blank = isinstance(answer, str) and not answer.strip()  # it is not its own equal, that's all
    return str(answer) if blank else reference_answer(row)
