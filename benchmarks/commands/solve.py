"""`mathenv solve`."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from agents.base import Action, Agent, Episode, WeightedAgent
from agents.rollout import CollectConfig, collect
from benchmarks.agent_options import AgentOptions, InterpreterName, open_agent
from benchmarks.console import ResultConsole
from benchmarks.suites import find_suite
from benchmarks.transcript import action_view, clean, question_panel, verdict_text
from mathenv.env import SandboxTier, shared_interpreter
from mathenv.errors import ConfigError
from mathenv.interpreter import Limits
from mathenv.protocol import ProtocolName
from mathenv.settings import Count, CountFrom0, Seed, check_settings
from mathenv.store import TrajectoryStore, read_trajectories
from mathenv.types import Problem, TokenRecord


@dataclass(frozen=True, slots=True)
class Solve:
    """Watch an agent solve one problem: every turn is printed as it happens.

    The problem is your own (--question, with --answer if it is to be graded) or one of a
    suite (--suite with --index or --problem-id).

    Args:
        question: a problem of your own.
        answer: its reference answer.
        suite: gsm8k, math, words, words_ood, or the path of a .jsonl file.
        data: folder with the suite's rows, as in `mathenv bench`.
        split: which split of the suite (default: test).
        index: which problem of the suite, counted from 0 (default: the first).
        problem_id: which problem of the suite, by its id.
        out: keep the trajectory in this .jsonl file or folder.
        horizon: most turns. Raised for the oracle where the solution needs more.
        protocol: how turns are read: as models write them (lenient), or the paper's format to
            the letter (paper).
        say_empty: tell the model of a cell that printed nothing, in a sentence.
        seed: fixes every random choice.
        interpreter: what runs the code, this machine's sandbox or Docker.
        min_tier: refuse to run code in a weaker sandbox than this (default: any that works).
        who: the agent.
    """

    question: str | None = None
    answer: str | None = None
    suite: str = "words"
    data: Path | None = None
    split: str | None = None
    index: CountFrom0 | None = None
    problem_id: str | None = None
    out: Path | None = None
    horizon: Count = 6
    protocol: ProtocolName = "lenient"
    say_empty: bool = False
    seed: Seed = 0
    interpreter: InterpreterName = "local"
    min_tier: SandboxTier | None = None
    who: AgentOptions = field(default_factory=AgentOptions)

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self) -> None:
        """Print the question, each turn, each output and the verdict."""
        problem = self._problem()
        console = ResultConsole()
        folder = nullcontext(self.out) if self.out else tempfile.TemporaryDirectory()
        with open_agent(self.who, [problem]) as opened, folder as out:
            console.print(question_panel(problem))
            watched = Watched(opened.agent, console)
            settings = CollectConfig(
                horizon=max(self.horizon, opened.least_horizon),
                protocol=self.protocol,
                say_empty=self.say_empty,
                concurrency=1,
                seed=self.seed,
            )
            with TrajectoryStore(Path(out)) as store:
                if f"{problem.id}#{watched.name}#0" in store:
                    raise ConfigError(f"{store.path} holds this problem already: choose another")
                collect(
                    [WeightedAgent(watched)],
                    [problem],
                    store,
                    settings,
                    interpreter=shared_interpreter(self.interpreter, Limits(), self.min_tier),
                )
            *_, trajectory = read_trajectories(Path(out))
            console.print(verdict_text(trajectory))

    def _check_one(self) -> None:
        """Refuse two ways of naming the problem: one would be ignored."""
        if self.question is None:
            if self.answer is not None:
                raise ConfigError("--answer belongs to --question")
            if self.problem_id is not None and self.index is not None:
                raise ConfigError("--index and --problem-id name two problems: leave one out")
            return
        if not self.question.strip():
            raise ConfigError("--question is empty: write the problem in it")
        others = {"--index": self.index, "--problem-id": self.problem_id, "--split": self.split}
        given = [flag for flag, value in (others | {"--data": self.data}).items() if value]
        if given:
            raise ConfigError(f"--question is the problem: leave out {', '.join(given)}")

    def _problem(self) -> Problem:
        self._check_one()
        if self.question is not None:
            if self.who.agent == "oracle" and self.answer is None:
                raise ConfigError(
                    "the oracle needs --answer for a question of your own; or choose a model: "
                    "--agent transformers --model DIR"
                )
            return Problem("question", self.question, self.answer or "", source="question")
        problems = find_suite(self.suite, self.split).load(data=self.data)
        if self.problem_id is not None:
            found = [problem for problem in problems if problem.id == self.problem_id]
            if not found:
                raise ConfigError(
                    f"{self.suite} has no problem {self.problem_id!r}; the first is "
                    f"{problems[0].id!r}"
                )
            return found[0]
        index = self.index or 0
        if index >= len(problems):
            raise ConfigError(f"--index must lie in 0 to {len(problems) - 1}, got {index}")
        return problems[index]


class Watched:
    """An agent whose episodes are printed while they are played."""

    def __init__(self, agent: Agent, console: Console) -> None:
        self._agent, self._console = agent, console

    @property
    def name(self) -> str:
        return self._agent.name

    @asynccontextmanager
    async def episode(
        self, question: str, *, sample: int, seed: int
    ) -> AsyncIterator[WatchedEpisode]:
        async with self._agent.episode(question, sample=sample, seed=seed) as episode:
            yield WatchedEpisode(episode, self._console)


class WatchedEpisode:
    """Prints what the agent is told (from the second turn on) and what it says."""

    def __init__(self, episode: Episode, console: Console) -> None:
        self._episode, self._console = episode, console
        self._turn = 0

    async def act(self, observation: str) -> Action | None:
        if self._turn:
            text = Text(clean(observation) or "(nothing printed)")
            self._console.print(Panel(text, title="output", title_align="left"))
        self._turn += 1
        action = await self._episode.act(observation)
        if action is not None:
            self._console.print(action_view(action.text, self._turn))
        return action

    def tokens(self) -> TokenRecord | None:
        return self._episode.tokens()
