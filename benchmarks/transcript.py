"""Trajectories for reading: one transcript, and two policies on the same problem.

Whatever a model or a cell wrote is shown as text: terminal sequences and rich's markup in
it have no effect.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.syntax import Syntax
from rich.text import Text

from mathenv.errors import DataError
from mathenv.types import ExecutionStatus, Problem, StopReason, Trajectory, Turn

_FENCED = re.compile(
    r"^[ \t]*```([^`\n]*)\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.DOTALL | re.MULTILINE
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def transcript(trajectory: Trajectory) -> RenderableType:
    """Return the whole episode, to be printed with `rich`."""
    parts: list[RenderableType] = [question_panel(trajectory.problem)]
    for number, turn in enumerate(trajectory.turns, start=1):
        parts.append(action_view(turn.action, number))
        if turn.execution is not None:
            parts.append(output_view(turn))
    parts.append(verdict_text(trajectory))
    return Group(*parts)


def compare(before: Trajectory, after: Trajectory) -> RenderableType:
    """Return two episodes of the same problem, one after the other.

    Raises:
        DataError: the problems differ.
    """
    if before.problem.id != after.problem.id:
        raise DataError(
            f"a comparison needs one problem, got {before.problem.id} and {after.problem.id}"
        )
    parts: list[RenderableType] = [question_panel(before.problem)]
    for title, trajectory in (("before", before), ("after", after)):
        parts.append(Rule(Text(f"{title}: {clean(trajectory.agent)}")))
        for number, turn in enumerate(trajectory.turns, start=1):
            parts.append(action_view(turn.action, number))
            if turn.execution is not None:
                parts.append(output_view(turn))
        parts.append(verdict_text(trajectory))
    return Group(*parts)


def improved(
    before: Sequence[Trajectory], after: Sequence[Trajectory]
) -> list[tuple[Trajectory, Trajectory]]:
    """Return (before, after) of the problems that only the second policy solved, first samples."""
    first = {t.problem.id: t for t in before if t.sample == 0 and t.counts}
    return [
        (first[t.problem.id], t)
        for t in after
        if t.sample == 0
        and t.counts
        and t.grade.correct
        and t.problem.id in first
        and not first[t.problem.id].grade.correct
    ]


def plain(view: RenderableType, *, width: int = 100) -> str:
    """Return a view as plain text without colours or control characters."""
    stream = StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False)
    console.print(view)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def question_panel(problem: Problem) -> RenderableType:
    """Return the question in a box with the problem's id."""
    title = f"problem {problem.id}" + (f", {problem.level}" if problem.level else "")
    return Panel(Text(clean(problem.question)), title=Text(clean(title)), title_align="left")


def action_view(action: str, number: int) -> RenderableType:
    """Return one turn of the agent: prose as text, fenced blocks highlighted."""
    parts: list[RenderableType] = [Text(f"turn {number}", style="bold")]
    action, end = clean(action), 0
    for match in _FENCED.finditer(action):
        parts += _prose(action[end : match.start()])
        lexer = "python" if match[1].strip().lower() in ("python", "py", "python3") else "text"
        code = match[2].rstrip("\n")
        parts.append(Syntax(code, lexer, theme="ansi_dark", word_wrap=True, padding=(0, 2)))
        end = match.end()
    parts += _prose(action[end:])
    return Group(*parts)


def output_view(turn: Turn) -> RenderableType:
    """Return what the interpreter answered."""
    assert turn.execution is not None
    good = turn.execution.status is ExecutionStatus.OK
    title = "output" if good else f"output ({turn.execution.status.value})"
    body = Text(clean(turn.execution.output) or "(nothing printed)")
    style = "green" if good else "red"
    return Panel(body, title=Text(title), title_align="left", border_style=style)


def verdict_text(trajectory: Trajectory) -> Text:
    """Return one line: right or wrong, the answer, the reference, why the episode ended."""
    grade, stop = trajectory.grade, trajectory.stop_reason
    answer = "no answer" if grade.answer is None else f"answer {clean(grade.answer)}"
    if not trajectory.problem.answer:
        return Text(f"NOT GRADED  {answer} (no reference answer was given)", style="bold yellow")
    if not trajectory.counts:
        detail = f": {clean(grade.detail)}" if grade.detail else ""
        return Text(f"EXCLUDED  {answer} ({grade.status.value}{detail})", style="bold yellow")
    reference = f"reference {clean(trajectory.problem.answer)}"
    if grade.correct:
        return Text(f"CORRECT  {answer}, {reference}", style="bold green")
    why = "" if stop is StopReason.ANSWERED else f" (ended by {stop.value})"
    return Text(f"WRONG  {answer}, {reference}{why}", style="bold red")


def clean(text: str) -> str:
    """Show control characters instead of sending them to the terminal."""
    shown = _CONTROL.sub(lambda m: f"\\x{ord(m[0]):02x}", text.replace("\r\n", "\n"))
    return shown.encode("utf-8", "backslashreplace").decode()


def _prose(text: str) -> list[RenderableType]:
    return [Text(text.strip("\n"))] if text.strip() else []
