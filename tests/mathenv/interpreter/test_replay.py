"""Programs that models write, run again: the outputs of the record come back.

`replay_rows.jsonl` holds programs of our own in the shapes that models write, recorded with a
Jupyter kernel (Python 3.11, sympy 1.14, numpy 2.4). The recorded runs of real models lie in
`../shared/data` where they are available; MATHENV_REPLAY_ALL=1 replays all of them.
"""

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

from benchmarks import cli
from benchmarks.studies.replay import (
    EXPLAINED,
    RecordedRun,
    RecordedStep,
    Replayed,
    Verdict,
    compare,
    read_runs,
    recorded_exception,
    replay,
    reported_exception,
    share,
)
from mathenv.errors import DataError
from mathenv.interpreter import Interpreter, Limits
from mathenv.store import TrajectoryStore
from mathenv.types import (
    ExecutionResult,
    ExecutionStatus,
    Grade,
    GradeStatus,
    Problem,
    StopReason,
    Trajectory,
    Turn,
)

OWN = Path(__file__).with_name("replay_rows.jsonl")
SHARED = Path(__file__).parents[4] / "shared" / "data"
ALL = bool(os.environ.get("MATHENV_REPLAY_ALL"))


@pytest.fixture(scope="module")
def patient(make_interpreter) -> Iterator[Interpreter]:
    with make_interpreter(Limits(cell_seconds=60.0)) as interpreter:
        yield interpreter


def differences(cells: list[Replayed], explained=EXPLAINED) -> str:
    """What a failed assertion should show."""
    counts = Counter(cell.verdict for cell in cells)
    shown = [
        f"{c.id} {c.index} {c.verdict}: {c.step.output!r} became {c.result.output!r}"
        for c in cells
        if c.verdict not in explained
    ]
    return "\n".join([str(counts), *shown[:20]])


@pytest.mark.skipif(int(numpy.__version__[0]) < 2, reason="the record is of numpy 2")
@pytest.mark.parametrize("run", read_runs(OWN), ids=lambda run: run.id)
def test_own_programs(run: RecordedRun, patient: Interpreter) -> None:
    cells = replay(run, patient)
    assert len(cells) == len(run.steps)
    for cell in cells:
        allowed = EXPLAINED if cell.step.raises else {Verdict.EQUAL}
        assert cell.verdict in allowed, differences(cells)


def _drawn(name: str, count: int, raising: int) -> list[RecordedRun]:
    """Draw runs, and some more of those that raise."""
    file = SHARED / name
    if not file.exists():
        pytest.skip(f"{name} is not available here")
    runs = read_runs(file)
    if ALL:
        return runs
    generator = random.Random(0)
    raise_somewhere = [run for run in runs if any(step.raises for step in run.steps)]
    short = [run for run in raise_somewhere if len(run.steps) <= 5]
    return generator.sample(runs, count) + generator.sample(short, min(raising, len(short)))


@pytest.mark.timeout(1800 if ALL else 600)
@pytest.mark.parametrize(
    ("name", "count", "raising"),
    [
        ("replay_mathcoder.jsonl", 100, 20),
        pytest.param("trajectories_tora.jsonl", 60, 4, marks=pytest.mark.slow),
    ],
)
def test_recorded_runs_of_models(name: str, count: int, raising: int, patient: Interpreter) -> None:
    cells = [cell for run in _drawn(name, count, raising) for cell in replay(run, patient)]
    outputs = [cell for cell in cells if not cell.step.raises]
    exceptions = [cell for cell in cells if cell.step.raises]
    assert len(outputs) >= count
    assert exceptions
    assert share(outputs) >= 0.99, differences(outputs, {Verdict.EQUAL})
    assert share(exceptions, EXPLAINED) >= 0.99, differences(exceptions)


# --------------------------------------------------------- the comparison itself

IPYTHON = "-" * 30 + "\n{} Traceback (most recent call last)\nCell In[1], line 1\n----> 1 {}\n\n{}"


@pytest.mark.parametrize(
    ("code", "record", "raises", "verdict"),
    [
        ("6 * 7", "42", False, Verdict.EQUAL),
        ("print(1)\n2", "1 2\n", False, Verdict.EQUAL),
        ("6 * 7", "43", False, Verdict.TEXT),
        ("x = 1", "<empty_execution>", False, Verdict.MARKER),
        ("({4, -4}, 2)", "({-4, 4}, 2)", False, Verdict.ORDER),
        ("[4, -4]", "[-4, 4]", False, Verdict.TEXT),
        ("0.1 + 0.2", "0.3000000000000001", False, Verdict.DIGITS),
        ("0.1 + 0.2", "0.31", False, Verdict.TEXT),
        ("12", "13", False, Verdict.TEXT),
        ("print('<f at 0x7f0000abcdef>')", "<f at 0x7fffffabcdef>", False, Verdict.ADDRESS),
        ("'a' * 5000", "'" + "a" * 5000 + "'", False, Verdict.CUT),
        ("1 / 0", "1", False, Verdict.ERROR),
        ("import no_such_package", "3", False, Verdict.PACKAGE),
        ("1 / 0", "ZeroDivisionError: division by zero", True, Verdict.EQUAL),
        ("1 / 0", IPYTHON.format("ZeroDivisionError", "1 / 0", "ZeroDivisionError: division by zero"), True, Verdict.EQUAL),  # noqa: E501
        ("1 / 0", "Cell In[1]\nZeroDivisionError: division by zero", False, Verdict.LAYOUT),
        ("1 / 0", "ZeroDivisionError: float division by zero", True, Verdict.MESSAGE),
        ("1 / 0", "TypeError: division by zero", True, Verdict.TYPE),
        ("1", "ZeroDivisionError: division by zero", True, Verdict.NO_ERROR),
        ("assert False", "AssertionError: ", True, Verdict.EQUAL),
        ("x = (1 +", "SyntaxError: unexpected EOF while parsing", True, Verdict.WORDING),
        ("raise SyntaxError('mine')", "SyntaxError: yours", True, Verdict.MESSAGE),
        (
            "def f():\n    a += 1\nf()",
            "UnboundLocalError: worded otherwise: 'a'",
            True,
            Verdict.WORDING,
        ),
        (
            "raise ImportError('no x (/usr/lib/python3.11/x.py)')",
            "ImportError: no x (/opt/conda/lib/python3.9/x.py)",
            True,
            Verdict.PATH,
        ),
        (
            "from sympy import nothing",
            "ImportError: cannot import name 'nothing' from 'sympy' (/opt/sympy/__init__.py)",
            True,
            Verdict.PATH,
        ),
    ],
)  # fmt: skip
def test_every_class_of_difference(
    code: str, record: str, raises: bool, verdict: Verdict, patient: Interpreter
) -> None:
    run = RecordedRun("r", (RecordedStep(code, record, raises),))
    (cell,) = replay(run, patient)
    assert cell.verdict is verdict


@pytest.mark.parametrize(
    ("status", "record", "verdict"),
    [
        (ExecutionStatus.TIMEOUT, "timeout_decorator.TimeoutError: 'Timed Out'", "BOTH_LATE"),
        (ExecutionStatus.TIMEOUT, "TimeoutError: too long", "EQUAL"),
        (ExecutionStatus.TIMEOUT, "42", "TIMEOUT"),
        (ExecutionStatus.MEMORY, "42", "MEMORY"),
        (ExecutionStatus.OUTPUT_LIMIT, "42", "OUTPUT_LIMIT"),
        (ExecutionStatus.BLOCKED, "42", "BLOCKED"),
        (ExecutionStatus.DIED, "42", "DIED"),
        (ExecutionStatus.INFRA, "42", "INFRA"),
    ],
)
def test_limits_are_told_apart(
    status: ExecutionStatus, record: str, verdict: str, patient: Interpreter
) -> None:
    result = ExecutionResult(status, "TimeoutError: too long")
    assert compare(RecordedStep("", record, "Error" in record), result, patient) is Verdict[verdict]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Traceback (most recent call last):\n  File \"<cell 1>\", line 1, in f\n    f()\na.b.Bad: x: y\nz", ("Bad", "x: y\nz")),  # noqa: E501
        ('  File "<cell 1>", line 1\n    f(\n     ^\nSyntaxError: no', ("SyntaxError", "no")),
        ("printed\nTimeoutError: late", ("TimeoutError", "late")),
        ("AssertionError", ("AssertionError", "")),
    ],
)  # fmt: skip
def test_type_and_message_of_a_report(text: str, expected: tuple[str, str]) -> None:
    assert reported_exception(text) == expected


def test_type_and_message_of_a_record() -> None:
    record = IPYTHON.format("GeneratorsNeeded", "f()", "GeneratorsNeeded: a\nValueError: b")
    assert recorded_exception(record) == ("GeneratorsNeeded", "a\nValueError: b")
    assert recorded_exception("x\n mod.KeyError: 'a'") == ("KeyError", "'a'")
    assert recorded_exception("nothing") == ("", "nothing")


# ------------------------------------------------------------------ reading records


def test_rows_of_every_shape(tmp_path: Path, patient: Interpreter) -> None:
    tora = {"id": "t", "code_blocks": ["print(2)", "x", "y"], "outputs": ["2", None, "NameError: name 'y' is not defined"]}  # noqa: E501  # fmt: skip
    file = tmp_path / "tora.jsonl"
    file.write_text(json.dumps(tora) + "\n")
    (run,) = read_runs(file)
    assert [step.raises for step in run.steps] == [False, False, True]
    cells = replay(run, patient)
    assert [cell.index for cell in cells] == [0, 2]  # what was not recorded is not compared
    assert share(cells) == 1.0


def _own_trajectory() -> Trajectory:
    def turn(code: str, status: ExecutionStatus, output: str) -> Turn:
        return Turn(f"```python\n{code}\n```", code, output, ExecutionResult(status, output))

    turns = (
        turn("a = 6", ExecutionStatus.OK, ""),
        turn("a * 7", ExecutionStatus.OK, "42"),
        turn("a / 0", ExecutionStatus.ERROR, "ZeroDivisionError: division by zero"),
        turn("b", ExecutionStatus.INFRA, "InfraError"),
        Turn("\\boxed{42}"),
    )
    grade = Grade(True, GradeStatus.CORRECT, "42")
    problem = Problem("p", "6 * 7?", "42")
    return Trajectory(problem, "someone", 0, 0, turns, StopReason.ANSWERED, grade)


def test_our_own_trajectories(tmp_path: Path, patient: Interpreter) -> None:
    store = TrajectoryStore(tmp_path)
    store.append(_own_trajectory())
    store.close()
    (run,) = read_runs(tmp_path)
    assert [step.raises for step in run.steps] == [False, False, True]
    assert share(replay(run, patient)) == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"steps": []}\n{"id": 3}\n', "rows.jsonl:2"),
        ('{"steps": [{"code": "1"}]}\n', "rows.jsonl:1"),
        ('{"steps": [{"code": "1", "output": 1}]}\n', "must be text"),
        ('{"code_blocks": ["1"], "outputs": []}\n', "rows.jsonl:1"),
        ("not json\n", "rows.jsonl:1"),
        ("", "holds no recorded run"),
        (None, "cannot be read"),
    ],
)
def test_bad_files_are_named(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_runs(file)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [
        {"code": "1 + 1", "output": "2", "kind": "exact"},
        {"code": "1 + 1", "output": "3", "kind": "exact"},
        {"code": "y", "output": "NameError: name 'y' is not defined", "kind": "same_exc"},
    ]
    rows = [{"id": f"r{i}", "steps": steps} for i in range(4)]
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit) as stop:
        cli.main(["replay", str(file), "--limit", "3", "--show", "1", "--json", str(out)])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "50.00%" in text
    assert "100.00%" in text
    assert text.count("cell 1: other text") == 1
    result = json.loads(out.read_text())["files"]["rows.jsonl"]
    assert result["recorded"]["output"] == {"cells": 6, "verdicts": {"EQUAL": 3, "TEXT": 3}}
    assert [d["here"] for d in result["differences"]] == ["2", "2", "2"]
