"""The vocabulary: frozen values shared by every package. Standard library only.

    problems -> MathToolEnv -> Agent -> Trajectory -> preference pairs -> Learner -> checkpoint

Read this file first. Times are seconds, token positions are indices into one
trajectory's token list, rewards are 0.0 or 1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Problem:
    """One question with its reference answer.

    Agents never receive this type: they see `question` as the first observation.
    `solution` is a reference solution as code cells in order (may be empty), used by
    the scripted oracle and to write demonstrations.
    """

    id: str
    question: str
    answer: str
    source: str = ""
    split: str = ""
    level: str = ""
    subject: str = ""
    solution: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)


class ExecutionStatus(StrEnum):
    """How one interpreter cell ended. Only INFRA may be retried. UNREAD is the environment's."""

    OK = "ok"
    ERROR = "error"  # the cell raised
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_LIMIT = "output_limit"
    BLOCKED = "blocked"  # the sandbox refused an operation and killed the session
    DIED = "died"  # the cell ended its own process
    INFRA = "infra"  # our machinery failed, the model is not to blame
    UNREAD = "unread"  # nothing ran: the turn tries to run code but cannot be read as it stands


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """What one cell did. `output` is what the agent sees, already cut to the limit.

    `session_lost` says that names defined earlier are gone: the next cell starts in a
    fresh session. `seconds` is wall time and is not part of equality.
    """

    status: ExecutionStatus
    output: str
    truncated: bool = False
    session_lost: bool = False
    seconds: float = field(default=0.0, compare=False)


class GradeStatus(StrEnum):
    """How a verdict came about. GOLD_ERROR and INFRA are excluded, never scored 0."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    NO_ANSWER = "no_answer"
    UNPARSED = "unparsed"
    LIMIT = "limit"
    TIMEOUT = "timeout"
    GOLD_ERROR = "gold_error"
    INFRA = "infra"


@dataclass(frozen=True, slots=True)
class Grade:
    """Verdict on a final answer. `tier` names the rule that decided."""

    correct: bool
    status: GradeStatus
    answer: str | None = None
    tier: str = ""
    detail: str = ""

    @property
    def counts(self) -> bool:
        """False where the verdict says nothing about the model."""
        return self.status not in (GradeStatus.GOLD_ERROR, GradeStatus.INFRA)


class StopReason(StrEnum):
    """Why an episode ended. Exactly one per finished episode."""

    ANSWERED = "answered"  # the turn held \boxed{}
    NO_ACTION = "no_action"  # neither code nor an answer
    HORIZON = "horizon"  # the last allowed turn was used without an answer
    TOKEN_LIMIT = "token_limit"  # the trajectory's token budget ran out
    INFRA = "infra"  # sandbox, engine or grader failed: exclude the episode


class FinishReason(StrEnum):
    """Why a model stopped sampling one turn."""

    STOP = "stop"  # an end-of-turn token was sampled (it is part of the turn)
    STOP_STRING = "stop_string"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Turn:
    """One action and what the environment answered (`observation` is empty on the last)."""

    action: str
    code: str | None = None
    observation: str = ""
    execution: ExecutionResult | None = None
    finish: FinishReason = FinishReason.STOP


class SpanKind(StrEnum):
    """Who wrote a run of tokens. Only SAMPLED tokens are ever trained on by M-DPO."""

    PROMPT = "prompt"
    SAMPLED = "sampled"
    SCAFFOLD = "scaffold"  # template tokens around turns
    OBSERVATION = "observation"


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open run `[start, end)` of one kind, in turn number `turn` (0-based)."""

    kind: SpanKind
    turn: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """The exact tokens of one trajectory as the engine saw and sampled them.

    `spans` tile `ids` without gaps. `logprobs` has one value per sampled token, in
    order: the sampler's own log-probability at temperature 1 (a diagnostic, not a
    substitute for the trainer's). `fingerprint` identifies tokenizer and template.
    """

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    logprobs: tuple[float, ...] = ()
    fingerprint: str = ""

    @property
    def action_mask(self) -> tuple[bool, ...]:
        """True exactly at sampled tokens. Shape: `len(ids)`."""
        mask = [False] * len(self.ids)
        for span in self.spans:
            if span.kind is SpanKind.SAMPLED:
                mask[span.start : span.end] = [True] * (span.end - span.start)
        return tuple(mask)

    @property
    def prompt_length(self) -> int:
        """Number of tokens before the first sampled one."""
        return next((s.start for s in self.spans if s.kind is SpanKind.SAMPLED), len(self.ids))


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One finished episode. Identified by `key`; `parent` names the key it branched from."""

    problem: Problem
    agent: str
    sample: int
    seed: int
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    grade: Grade
    tokens: TokenRecord | None = None
    parent: str | None = None
    branch_turn: int = 0
    schema: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        return f"{self.problem.id}#{self.agent}#{self.sample}"

    @property
    def reward(self) -> float:
        """1.0 for a correct final answer, else 0.0 (the paper's u*, section 2)."""
        return 1.0 if self.grade.correct else 0.0

    @property
    def counts(self) -> bool:
        """False where machinery failed: such episodes enter neither pairs nor accuracy."""
        return self.stop_reason is not StopReason.INFRA and self.grade.counts

    @property
    def failure(self) -> str:
        """What the machinery said where it failed, for people; empty where `counts` is True."""
        if self.counts:
            return ""
        ran = [turn.execution for turn in self.turns if turn.execution is not None]
        if ran and ran[-1].status is ExecutionStatus.INFRA:
            return ran[-1].output
        return self.grade.detail or self.grade.status.value
