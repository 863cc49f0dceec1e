"""Recorded runs, run again cell by cell: does an interpreter show what the record shows?

    read_runs(file) -> RecordedRun -> replay(run, interpreter) -> Replayed -> share(...)

Readable are this project's trajectories, rows with `steps` (MathCoder's recorded runs: a list
of `code`, `output`, `kind`), and rows with `code_blocks` and `outputs` (ToRA's).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from mathenv.errors import DataError
from mathenv.interpreter import Interpreter
from mathenv.store import from_json
from mathenv.types import ExecutionResult, ExecutionStatus, Trajectory


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One recorded cell. `raises`: the record is an exception's report, of which only type
    and message are compared. `output` is None where the record has none."""

    code: str
    output: str | None
    raises: bool


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """Cells that were run in one session, in order."""

    id: str
    steps: tuple[RecordedStep, ...]


class Verdict(StrEnum):
    """How a replayed cell compares with its record. White space is never compared."""

    EQUAL = "equal"
    MARKER = "the record's mark for no output"
    LAYOUT = "same exception, another layout of its report"
    WORDING = "same exception, worded by another Python version"
    PATH = "same message but for a path in it"
    ADDRESS = "same but for a memory address"
    BOTH_LATE = "stopped by the time limit in both"
    ORDER = "same parts in another order (sets)"
    DIGITS = "last digits of a float"
    CUT = "our output was cut"
    PACKAGE = "a package is not installed"
    NO_ERROR = "no exception"
    TYPE = "another exception"
    MESSAGE = "another message"
    ERROR = "an exception instead of output"
    TEXT = "other text"
    TIMEOUT = "time limit"
    MEMORY = "memory limit"
    OUTPUT_LIMIT = "output limit"
    BLOCKED = "blocked by the sandbox"
    DIED = "the session died"
    INFRA = "the machinery failed"


EXPLAINED = frozenset(
    {
        Verdict.EQUAL,
        Verdict.MARKER,
        Verdict.LAYOUT,
        Verdict.WORDING,
        Verdict.PATH,
        Verdict.ADDRESS,
        Verdict.BOTH_LATE,
    }
)
"""Verdicts that any faithful interpreter with other paths and versions would get."""


@dataclass(frozen=True, slots=True)
class Replayed:
    """One replayed cell: the `index`-th of the run `id`."""

    id: str
    index: int
    step: RecordedStep
    result: ExecutionResult
    verdict: Verdict


# --------------------------------------------------------------------------- reading

_EXCEPTION_LINE = re.compile(r" ?(?:\w+\.)*([A-Za-z_]\w*(?:Error|Exception|Exit|Interrupt))(?::|$)")


def read_runs(path: Path) -> list[RecordedRun]:
    """Read a .jsonl file, or `trajectories.jsonl` in a folder.

    Raises `DataError`, naming file and line, for a missing file or a row of another shape.
    """
    file = path if path.suffix == ".jsonl" else path / "trajectories.jsonl"
    runs = []
    try:
        with file.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    runs.append(_run(json.loads(line), f"{file.stem}/{number}"))
                except (DataError, ValueError, KeyError, TypeError, AttributeError) as error:
                    raise DataError(f"{file}:{number}: no recorded run: {error!r}") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no text: {error}") from None
    if not runs:
        raise DataError(f"{file}: holds no recorded run")
    return runs


def _run(row: Mapping[str, Any], default_id: str) -> RecordedRun:
    if "steps" in row:
        steps = [_step(s["code"], s["output"], s.get("kind")) for s in row["steps"]]
    elif "code_blocks" in row:
        pairs = zip(row["code_blocks"], row["outputs"], strict=True)
        steps = [_step(code, output, None) for code, output in pairs]
    elif "turns" in row:
        trajectory = from_json(row)
        return RecordedRun(trajectory.key, tuple(_own_steps(trajectory)))
    else:
        raise ValueError("the row has neither steps nor code_blocks nor turns")
    return RecordedRun(str(row.get("id", default_id)), tuple(steps))


def _step(code: str, output: str | None, kind: str | None) -> RecordedStep:
    if not isinstance(code, str) or not isinstance(output, str | None):
        raise ValueError("code and output must be text")
    last = (output or "").rstrip().rpartition("\n")[2]
    raises = kind == "same_exc" if kind else _EXCEPTION_LINE.match(last) is not None
    return RecordedStep(code, output, raises)


def _own_steps(trajectory: Trajectory) -> Iterable[RecordedStep]:
    for turn in trajectory.turns:
        if turn.code is None or turn.execution is None:
            continue
        status, output = turn.execution.status, turn.execution.output
        if status is ExecutionStatus.INFRA:
            return
        yield RecordedStep(turn.code, output, status is not ExecutionStatus.OK)


# ------------------------------------------------------------------------- replaying


def replay(run: RecordedRun, interpreter: Interpreter) -> list[Replayed]:
    """Run the cells of one run in one session. Steps without a record are run, not returned."""
    done = []
    with_session = interpreter.session()
    try:
        for index, step in enumerate(run.steps):
            result = with_session.run(step.code)
            if step.output is not None:
                verdict = compare(step, result, interpreter)
                done.append(Replayed(run.id, index, step, result, verdict))
    finally:
        with_session.close()
    return done


def compare(step: RecordedStep, result: ExecutionResult, interpreter: Interpreter) -> Verdict:
    """Compare a cell's result with its record.

    `interpreter` is asked how it words a syntax error when the wording differs: the cell is
    compiled there a second time, by `compile()` with the source as a literal.
    """
    record = step.output or ""
    if _squeeze(record) == _squeeze(result.output):
        return Verdict.EQUAL
    if result.status not in (ExecutionStatus.OK, ExecutionStatus.ERROR):
        return _compare_limit(record, result)
    if not step.raises and not _EXCEPTION_LINE.match(record.rstrip().rpartition("\n")[2]):
        return _compare_text(record, result)
    if result.status is ExecutionStatus.OK:
        return Verdict.NO_ERROR if step.raises else _compare_text(record, result)
    verdict = _compare_exception(step, result, interpreter)
    return Verdict.LAYOUT if verdict is Verdict.EQUAL and not step.raises else verdict


def share(replayed: Iterable[Replayed], verdicts: Iterable[Verdict] = (Verdict.EQUAL,)) -> float:
    """Return the share of cells with one of these verdicts; 1.0 for no cells."""
    hits = [cell.verdict in set(verdicts) for cell in replayed]
    return sum(hits) / len(hits) if hits else 1.0


def _compare_limit(record: str, result: ExecutionResult) -> Verdict:
    name, message = reported_exception(result.output)
    if _squeeze(record).endswith(_squeeze(f"{name}:{message}")):
        return Verdict.EQUAL
    late = re.search(r"time[d_ ]?(?:limit|out)", record, re.IGNORECASE)
    if result.status is ExecutionStatus.TIMEOUT and late:
        return Verdict.BOTH_LATE
    return Verdict[result.status.name]


_NUMBER = re.compile(r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?")
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


def _compare_text(record: str, result: ExecutionResult) -> Verdict:
    ours = result.output
    if result.truncated:
        return Verdict.CUT
    if not ours and record.strip() == "<empty_execution>":
        return Verdict.MARKER
    if result.status is ExecutionStatus.ERROR:
        missing = reported_exception(ours)[0] == "ModuleNotFoundError"
        return Verdict.PACKAGE if missing else Verdict.ERROR
    if _squeeze(_ADDRESS.sub("", record)) == _squeeze(_ADDRESS.sub("", ours)):
        return Verdict.ADDRESS
    if _numbers_close(record, ours):
        return Verdict.DIGITS
    parts = [sorted(re.findall(r"-?\w+|[^\w\s]", text)) for text in (record, ours)]
    return Verdict.ORDER if parts[0] == parts[1] and "{" in record else Verdict.TEXT


def _numbers_close(record: str, ours: str) -> bool:
    if _squeeze(_NUMBER.sub("#", record)) != _squeeze(_NUMBER.sub("#", ours)):
        return False
    pairs = zip(_NUMBER.findall(record), _NUMBER.findall(ours), strict=True)
    return all(a == b or _both_floats(a, b) for a, b in pairs)


def _both_floats(a: str, b: str) -> bool:
    return "." in a + b and math.isclose(float(a), float(b), rel_tol=1e-9)


def _compare_exception(
    step: RecordedStep, result: ExecutionResult, interpreter: Interpreter
) -> Verdict:
    name, message = reported_exception(result.output)
    record = _plain(step.output or "").rstrip()
    ending = _squeeze(f"{name}:{message}")
    if _squeeze(record).endswith(ending) or (not message and record.endswith(name)):
        return Verdict.EQUAL
    recorded_name, recorded_message = recorded_exception(record)
    if recorded_name != name:
        return Verdict.PACKAGE if name == "ModuleNotFoundError" else Verdict.TYPE
    if _squeeze(_without_paths(recorded_message)) == _squeeze(_without_paths(message)):
        return Verdict.PATH
    if name in _SYNTAX_ERRORS:
        same = _compiler_says(step.code, interpreter) == (name, message)
    else:
        quoted = [sorted(set(re.findall(r"'[^']*'", m))) for m in (recorded_message, message)]
        same = bool(quoted[0]) and quoted[0] == quoted[1]
    return Verdict.WORDING if same else Verdict.MESSAGE


_SYNTAX_ERRORS = frozenset({"SyntaxError", "IndentationError", "TabError"})


def _compiler_says(code: str, interpreter: Interpreter) -> tuple[str, str]:
    session = interpreter.session()
    try:
        return reported_exception(session.run(f"compile({code!r}, 'cell', 'exec')").output)
    finally:
        session.close()


# ------------------------------------------------------------------ reading tracebacks


def reported_exception(output: str) -> tuple[str, str]:
    """Return (type without module, message) of an interpreter's report.

    The report starts at the first line after the last frame that is not indented; without
    frames it is the last line.
    """
    lines = output.rstrip().split("\n")
    frames = [i for i, line in enumerate(lines) if line.startswith('  File "')]
    start = frames[-1] + 1 if frames else len(lines) - 1
    while start < len(lines) - 1 and lines[start].startswith(" "):
        start += 1
    name, _, message = "\n".join(lines[start:]).partition(":")
    return name.rpartition(".")[2], message.strip()


_IPYTHON_HEAD = re.compile(r"-{20,}\s+(\w+)\s+Traceback \(most recent call last\)")


def recorded_exception(record: str) -> tuple[str, str]:
    """Return (type without module, message) of a recorded report, such as IPython's."""
    head = _IPYTHON_HEAD.search(record)
    wanted = re.escape(head[1]) if head else r"\w+(?:Error|Exception|Exit|Interrupt)"
    found = list(re.finditer(rf"^ ?(?:\w+\.)*({wanted})(?::|$)", record, re.MULTILINE))
    if not found:
        return "", record.rpartition("\n")[2].strip()
    return found[-1][1], record[found[-1].end() :].strip()


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;]*m", "", text)


_PATH = re.compile(r"(?<![\w.])/[^\s()'\"]+|[\w./-]+\.(?:py|so)\b")


def _without_paths(message: str) -> str:
    """The message without paths, absolute or, as reports here show a library's, relative."""
    return _PATH.sub("", message)


def _squeeze(text: str) -> str:
    return "".join(text.split())
