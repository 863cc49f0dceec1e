"""The grader's speed beside math-verify alone, and what its worst inputs cost, in one run.

    python -m benchmarks.studies.throughput.grader DATA [--pathological FILE] [--json FILE]

Rates are per second of CPU time, worker processes included, so that other programs on the
machine matter less.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.console import ResultConsole
from benchmarks.progress import Advance, ConsoleReporter
from benchmarks.studies.throughput.report import CpuClock, Goal, Report
from mathenv.errors import DataError
from mathenv.grading import MATH_VERIFY, STRICT, GradePolicy, close, grade
from mathenv.grading.expression import read_formula
from mathenv.grading.normalize import normalize
from mathenv.grading.reference import fault
from mathenv.grading.relations import split_relations
from mathenv.grading.symbolic import shared_comparer
from mathenv.grading.tokens import variables_of

OURS, PEER = "mathenv", "math-verify"
ORDINARY = "ordinary answers, pairs per CPU second"
DISTINCT = "distinct MATH pairs, pairs per CPU second"
COST = "ordinary answers, CPU of one pair"
WORST = "pathological inputs, CPU of one grade"
SLOWEST = "pathological inputs, CPU of the slowest grade"
GOALS = (
    Goal(DISTINCT, frozenset({OURS}), 10.0, PEER),
    Goal(COST, frozenset({OURS}), 1000 / 3000),  # 3,000 pairs a second
    Goal(SLOWEST, frozenset({OURS}), 2000.0),  # a worker's 1.9 s, and the caller's part
)
RECORDED = ("trajectories_tora.jsonl", "replay_mathcoder.jsonl")
_ROUNDS = 3
_REMEMBERED = (normalize, read_formula, variables_of, split_relations, fault)
_SYMBOLIC = ("17x", "\\boxed{x\\cdot 17+\\sin 0}")  # starts a worker

Pair = tuple[str, str]


def read_pairs(data: Path) -> tuple[list[Pair], list[Pair]]:
    """Return all recorded (gold, response) pairs, and the distinct ones of MATH.

    Raises:
        DataError: the folder does not hold the recorded answers.
    """
    pairs: list[Pair] = []
    distinct: dict[Pair, None] = {}
    for name in RECORDED:
        file = data / name
        if not file.exists():
            raise DataError(f"{file} is missing: give the folder that holds {', '.join(RECORDED)}")
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            pair = row["gold"], f"The answer is $\\boxed{{{row['final_pred']}}}$."
            pairs.append(pair)
            if row["dataset"].lower() == "math":
                distinct[pair] = None
    return pairs, list(distinct)


def read_pathological(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (name, answer); a row holds `name` and `parts`, each a text and how often."""
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row["name"], "".join(text * count for text, count in row["parts"])


def measure(data: Path, pathological: Path | None, advance: Advance) -> Report:
    """Measure everything; subjects take turns in rounds."""
    pairs, distinct = read_pairs(data)
    report = Report(GOALS, reference=OURS)
    worst = list(read_pathological(pathological)) if pathological else []
    total = 3 * _ROUNDS + len(worst)
    for done in range(_ROUNDS):
        _add_rate(report, ORDINARY, OURS, pairs, STRICT)
        _add_rate(report, DISTINCT, OURS, distinct, STRICT)
        _add_rate(report, DISTINCT, PEER, distinct, MATH_VERIFY)
        advance(3 * (done + 1), total)
    statuses: Counter[str] = Counter()
    slowest = 0.0
    for done, (name, answer) in enumerate(worst, start=3 * _ROUNDS + 1):
        cpu, status, unharmed = _cost(answer)
        statuses[status] += 1
        slowest = max(slowest, cpu)
        report.add(WORST, OURS, "ms", [1000 * cpu], None)
        if not unharmed:
            report.remarks.append(f"{name}: the next verdict was wrong")
        if cpu > 2.0:
            report.remarks.append(f"{name}: {cpu:.2f} s of CPU, {status}")
        advance(done, total)
    if worst:
        report.add(SLOWEST, OURS, "ms", [1000 * slowest], None)
    report.details["worker confinement"] = shared_comparer().pool.confinement
    report.remarks.append(f"pathological inputs by status: {dict(statuses)}")
    return report


def _fresh() -> None:
    """Forget everything remembered, and start a worker before the clock does."""
    close()
    for remembered in _REMEMBERED:
        remembered.cache_clear()
    grade(*_SYMBOLIC)


def _add_rate(
    report: Report, quantity: str, subject: str, pairs: Sequence[Pair], policy: GradePolicy
) -> None:
    _fresh()
    clock = CpuClock()
    for gold, response in pairs:
        grade(gold, response, policy)
    seconds = clock.seconds()
    each = 1000 * seconds / len(pairs)
    report.add(quantity, subject, "/s", [len(pairs) / seconds], each)
    if quantity == ORDINARY:
        report.add(COST, subject, "ms", [each], each)


def _cost(answer: str) -> tuple[float, str, bool]:
    """Return CPU seconds and status of one grade, and whether the next verdict is right."""
    grade(*_SYMBOLIC)
    clock = CpuClock()
    status = grade("17x", f"\\boxed{{{answer}}}").status.value
    seconds = clock.seconds()
    unharmed = grade("\\sqrt{12}+x", "\\boxed{2\\sqrt{3}+x}").correct
    return seconds, status, unharmed


def main(arguments: Iterable[str] | None = None) -> None:
    """Measure, print the tables, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("data", type=Path, help="folder with the recorded answers")
    parser.add_argument("--pathological", type=Path, help="rows of worst inputs (.jsonl)")
    parser.add_argument("--json", type=Path, help="write every value to this file")
    request = parser.parse_args(None if arguments is None else list(arguments))
    with ConsoleReporter().stage("throughput grader", None, "measurements") as advance:
        report = measure(request.data, request.pathological, advance)
    say: Callable[[object], None] = ResultConsole().say
    console = ResultConsole()
    for table in report.tables():
        console.print(table)
    for remark in report.remarks:
        say(remark)
    say(f"load average {report.load_before[0]:.1f} before, {os.getloadavg()[0]:.1f} after")
    if request.json is not None:
        report.write(request.json)


if __name__ == "__main__":
    main()
