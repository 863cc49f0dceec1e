"""Agents without a model: the scripted oracle and the replay of stored trajectories.

Both are given what they need when they are made, so that `episode` can stay what it is
for every agent: the question in, actions out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from agents.base import Action
from mathenv.errors import DataError
from mathenv.protocol import code_block
from mathenv.types import FinishReason, Problem, Trajectory


class OracleAgent:
    """Plays reference solutions through the real interpreter: an upper bound and a check.

    It runs a problem's `solution` cells and boxes what the interpreter printed last. A
    problem without a solution gets one cell that prints its reference answer, so that
    every benchmark can be walked end to end.

    With `use_tool` off it boxes the reference answer at once: the demonstration of a
    teacher who reckons in the head.
    """

    def __init__(
        self, problems: Iterable[Problem], *, use_tool: bool = True, name: str | None = None
    ) -> None:
        self.name = name or ("oracle" if use_tool else "oracle-direct")
        self._use_tool = use_tool
        self._problems = {p.question: p for p in problems}

    @asynccontextmanager
    async def episode(
        self, question: str, *, sample: int, seed: int
    ) -> AsyncIterator[ScriptedEpisode]:
        problem = self._problems.get(question)
        if problem is None:
            raise DataError(f"the oracle was not given this problem: {question[:80]!r}")
        if not self._use_tool:
            yield ScriptedEpisode([Action(f"\\boxed{{{problem.answer}}}")])
            return
        cells = problem.solution or (f"print({problem.answer!r})",)
        yield ScriptedEpisode([Action(code_block(cell)) for cell in cells], box_last=True)


class ReplayAgent:
    """Repeats the actions of stored trajectories, sample by sample."""

    def __init__(self, trajectories: Iterable[Trajectory], *, name: str = "replay") -> None:
        self.name = name
        self._actions: Mapping[tuple[str, int], list[Action]] = {
            (t.problem.question, t.sample): [Action(turn.action, turn.finish) for turn in t.turns]
            for t in trajectories
        }

    @asynccontextmanager
    async def episode(
        self, question: str, *, sample: int, seed: int
    ) -> AsyncIterator[ScriptedEpisode]:
        actions = self._actions.get((question, sample))
        if actions is None:
            raise DataError(f"no stored trajectory is sample {sample} of {question[:80]!r}")
        yield ScriptedEpisode(actions)


class ScriptedEpisode:
    """Plays fixed actions, then optionally boxes the last observation."""

    def __init__(self, actions: Sequence[Action], *, box_last: bool = False) -> None:
        self._actions = list(actions)
        self._box_last = box_last
        self._turn = 0

    async def act(self, observation: str) -> Action | None:
        """Return the next action; None when the script has run out."""
        turn, self._turn = self._turn, self._turn + 1
        if turn < len(self._actions):
            return self._actions[turn]
        if turn == len(self._actions) and self._box_last:
            return Action(f"\\boxed{{{observation.strip()}}}", FinishReason.STOP)
        return None

    def tokens(self) -> None:
        return None
