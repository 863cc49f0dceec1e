r"""Written solutions of other data sets as our trajectories: turns, outputs, exact tokens.

    openmathinstruct   OpenMathInstruct-1 rows, whose solutions hold `<llm-code>` and
                       `<llm-code-output>` blocks
    gsm8k              GSM8K rows, whose solutions hold calculator marks: 48/2 = <<48/2=24>>24
    gsm8k-calc         the same, already taken apart into segments with their calls
    trajectories       our own, played by a model whose tokens nobody saw (agents.chat)

A row that our episodes could not have played is left out, with the reason. Tokens and spans
come from the renderer, and no token has a log-probability: these turns were written, not
sampled. Re-tokenised turns of the last kind are therefore not what the model sampled; whoever
trains on them insists on it.
"""

from __future__ import annotations

import ast
import hashlib
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agents.rendering import ChatRenderer
from mathenv.errors import DataError
from mathenv.grading import grade
from mathenv.problems.gsm8k import evaluate
from mathenv.protocol import code_block, extract_code, last_boxed
from mathenv.store import from_json
from mathenv.types import (
    ExecutionResult,
    ExecutionStatus,
    Problem,
    StopReason,
    Trajectory,
    Turn,
)

Row = Mapping[str, Any]
_LLM_CODE = re.compile(
    r"<llm-code>\n?(.*?)\n?</llm-code>\s*<llm-code-output>\n?(.*?)\n?</llm-code-output>", re.DOTALL
)
_MARK = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
_RAISED = re.compile(r"[A-Za-z_.]*(?:Error|Exception|Interrupt|Exit)\b|timeout$", re.IGNORECASE)
_OPERATORS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class UnusableRow(DataError):
    """A row that gives no trajectory. The message is the reason, the same for like rows."""


@dataclass(frozen=True, slots=True)
class Step:
    """Text, then a cell and what it printed. The last step of a solution has no cell."""

    text: str
    code: str = ""
    output: str = ""


def openmathinstruct(row: Row) -> tuple[Problem, list[Step]]:
    """Read an OpenMathInstruct-1 row: `question`, `expected_answer`, `generated_solution`.

    Raises:
        UnusableRow: its code ran into an error, after which the authors stopped; or blocks
            do not match. DataError: a field is missing.
    """
    question, solution = _text(row, "question"), _text(row, "generated_solution")
    steps, position = [], 0
    for match in _LLM_CODE.finditer(solution):
        steps.append(Step(solution[position : match.start()], match[1], match[2]))
        position = match.end()
    steps.append(Step(solution[position:]))
    if any("llm-code" in step.text for step in steps):
        raise UnusableRow("code without output, or output without code")
    problem = Problem(
        id=f"openmathinstruct/{hashlib.sha256(question.encode()).hexdigest()[:16]}",
        question=question,
        answer=_text(row, "expected_answer"),
        source="openmathinstruct",
        subject=str(row.get("dataset", "")),
    )
    return problem, steps


def gsm8k(row: Row) -> tuple[Problem, list[Step]]:
    """Read a GSM8K row: `question` and `answer` as published, or `problem` and `solution`.

    Raises:
        UnusableRow: see `gsm8k_calc`. DataError: a field is missing.
    """
    solution = str(row.get("solution") or _text(row, "answer"))
    body, _, stated = solution.partition("####")
    segments = [
        {
            "text": _MARK.sub("", line),
            "calls": [{"expr": e, "recorded": value} for e, value in _MARK.findall(line)],
        }
        for line in body.strip().splitlines()
    ]
    answer = stated.strip().replace(",", "") or _text(row, "answer")
    question = str(row.get("problem") or _text(row, "question"))
    known = {"problem": question, "answer": answer, "segments": segments}
    return gsm8k_calc({**known, "problem_id": row.get("id")})


def gsm8k_calc(row: Row) -> tuple[Problem, list[Step]]:
    """Read a row of segments: `problem`, `answer`, `segments` of `text` and `calls`.

    A segment becomes a cell with its calls; its text, which tells the results, comes after
    the output, with the next cell.

    Raises:
        UnusableRow: no calls, or one that is not plain arithmetic or not its stated value.
            DataError: a field is missing.
    """
    steps: list[Step] = []
    said: list[str] = []
    for segment in row.get("segments") or ():
        calls = [(_plain(c["expr"]), _plain(c["recorded"])) for c in segment["calls"]]
        if calls:
            code = "\n".join(f"print({expression})" for expression, _ in calls)
            output = "\n".join(_printed(expression, value) for expression, value in calls)
            steps.append(Step("\n".join(said), code, output))
            said = []
        said.append(segment["text"])
    if not steps:
        raise UnusableRow("no calculator marks")
    answer, question = _text(row, "answer"), _text(row, "problem")
    steps.append(Step("\n".join([*said, f"The answer is \\boxed{{{answer}}}."])))
    name = row.get("problem_id") or hashlib.sha256(question.encode()).hexdigest()[:16]
    return Problem(id=str(name), question=question, answer=answer, source="gsm8k"), steps


READERS: Mapping[str, Callable[[Row], tuple[Problem, list[Step]]]] = {
    "openmathinstruct": openmathinstruct,
    "gsm8k": gsm8k,
    "gsm8k-calc": gsm8k_calc,
}


class Converter:
    """Rows to trajectories, one by one, counting what was left out and why.

    Args:
        source: a key of `READERS`, or "trajectories".
        renderer: makes the tokens.
        horizon: most turns that an episode of ours has.
        keep_wrong: keep solutions whose final answer is graded wrong.
    """

    def __init__(
        self, source: str, renderer: ChatRenderer, *, horizon: int = 6, keep_wrong: bool = False
    ) -> None:
        self.left_out: Counter[str] = Counter()
        self._source, self._renderer = source, renderer
        self._horizon, self._keep_wrong = horizon, keep_wrong
        self._samples: Counter[str] = Counter()

    def convert(self, rows: Iterable[Row]) -> Iterator[Trajectory]:
        """Yield a trajectory per usable row, numbered as samples of its problem.

        Raises:
            DataError: a row that is not of this kind at all.
        """
        for row in rows:
            try:
                yield self._stored(row) if self._source == "trajectories" else self._written(row)
            except UnusableRow as reason:
                self.left_out[str(reason)] += 1

    def _stored(self, row: Row) -> Trajectory:
        trajectory = from_json(dict(row))
        if trajectory.tokens is not None:
            raise UnusableRow("its tokens were recorded at sampling: nothing to convert")
        if not trajectory.turns:
            raise UnusableRow("no turns")
        if not trajectory.grade.correct and not self._keep_wrong:
            raise UnusableRow("the final answer is wrong")
        return self._with_tokens(trajectory)

    def _written(self, row: Row) -> Trajectory:
        problem, steps = READERS[self._source](row)
        turns = _turns(steps, self._horizon)
        verdict = grade(problem.answer, turns[-1].action)
        if not verdict.correct and not self._keep_wrong:
            raise UnusableRow("the final answer is wrong")
        # Counted here, not by row: then a file cut in two gives the keys of the whole.
        sample = self._samples[problem.id]
        self._samples[problem.id] += 1
        return self._with_tokens(
            Trajectory(
                problem=problem,
                agent=self._source,
                sample=sample,
                seed=0,
                turns=turns,
                stop_reason=StopReason.ANSWERED,
                grade=verdict,
            )
        )

    def _with_tokens(self, trajectory: Trajectory) -> Trajectory:
        record = self._renderer.record_turns(trajectory.problem.question, trajectory.turns)
        return replace(trajectory, tokens=record)


def _turns(steps: list[Step], horizon: int) -> tuple[Turn, ...]:
    """Write steps as turns that our environment would have played in the same way."""
    if len(steps) > horizon:
        raise UnusableRow(f"more than {horizon} turns")
    turns = [_turn(step) for step in steps[:-1]]
    final = steps[-1].text.strip()
    if any(last_boxed(turn.action) is not None for turn in turns):
        raise UnusableRow("answers before its last turn")
    if last_boxed(final) is None or extract_code(final) is not None:
        raise UnusableRow("no boxed answer after the last output")
    return (*turns, Turn(final))


def _turn(step: Step) -> Turn:
    action = "\n".join(filter(None, (step.text.strip(), code_block(step.code))))
    if extract_code(action) != step.code.rstrip("\n"):
        raise UnusableRow("code that our fences cannot hold")
    last = step.output.strip().rpartition("\n")[2]
    status = ExecutionStatus.ERROR if _RAISED.match(last) else ExecutionStatus.OK
    result = ExecutionResult(status, step.output)
    return Turn(action, code=step.code, observation=step.output, execution=result)


def _plain(text: str) -> str:
    return str(text).replace(",", "").replace("$", "").strip()


def _printed(expression: str, value: str) -> str:
    """Return what Python prints for an expression, which has to have the stated value."""
    try:
        if evaluate(expression) != evaluate(value):
            raise UnusableRow("a calculator mark with a wrong result")
        return str(_value(ast.parse(expression, mode="eval").body))
    except (ValueError, SyntaxError, ZeroDivisionError):
        raise UnusableRow("a calculator mark that is not plain arithmetic") from None


def _value(node: ast.expr) -> float:
    """Reckon as Python does. `evaluate` has found nothing but numbers and `+ - * /`."""
    if isinstance(node, ast.BinOp):
        return _OPERATORS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp):
        operand = _value(node.operand)
        return -operand if isinstance(node.op, ast.USub) else operand
    return float(number) if isinstance(number := ast.literal_eval(node), float) else int(number)


def _text(row: Row, field: str) -> str:
    value = row.get(field)
    if value is None:
        raise DataError(f"a row has no {field!r}, so it is not of this kind: see --from")
    return str(value)
