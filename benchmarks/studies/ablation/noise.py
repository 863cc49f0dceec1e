"""An interpreter whose answers are sometimes wrong: observations that are not determined.

Equation 13's term (C) is zero where observations follow from the history. This wrapper
breaks that at a known rate, while episodes are played: policy, environment and token record
see the wrong output as they would see any, so spans and masks are what they always are.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, replace

from mathenv.errors import ConfigError
from mathenv.interpreter import Interpreter, Session
from mathenv.types import ExecutionResult, ExecutionStatus

_DIGIT = re.compile(r"[0-9]")
_DIGITS = "0123456789"


@dataclass(frozen=True, slots=True)
class NoisyInterpreter:
    """Sessions of `inner`, in which a `share` of the outputs of cells is corrupted.

    Which ones, and how, follows from the session's seed and the number of the cell, so that
    an episode is repeatable. The code runs as it does without noise: only what it printed is
    shown wrong, every digit of it replaced by another. Outputs without digits and cells that
    failed are left as they are.

    Raises:
        ConfigError: `share` is no share.
    """

    inner: Interpreter
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ConfigError(f"the share of corrupted outputs is 0 to 1, not {self.share}")

    @property
    def description(self) -> dict[str, str]:
        """What isolates the code, and how noisy its output is."""
        return {**self.inner.description, "noise": f"{self.share:g}"}

    def session(self, *, seed: int = 0) -> NoisySession:
        """Return a new empty session."""
        return NoisySession(self.inner.session(seed=seed), self.share, seed)

    def close(self) -> None:
        """End all sessions of the inner interpreter."""
        self.inner.close()


class NoisySession:
    """A session of `NoisyInterpreter`."""

    def __init__(self, inner: Session, share: float, seed: int, cells: int = 0) -> None:
        self._inner, self._share, self._seed, self._cells = inner, share, seed, cells

    def run(self, code: str) -> ExecutionResult:
        """Run one cell and show its output, or a corrupted one. Raises as the inner session."""
        result = self._inner.run(code)
        rng = random.Random(f"observation noise/{self._seed}/{self._cells}")
        self._cells += 1
        if result.status is not ExecutionStatus.OK or rng.random() >= self._share:
            return result
        return replace(result, output=corrupt(result.output, rng))

    def fork(self) -> NoisySession:
        """Copy the session; both go on with the same noise. Raises as `Session.fork`."""
        return NoisySession(self._inner.fork(), self._share, self._seed, self._cells)

    def close(self) -> None:
        """Release the inner session. Safe to call twice."""
        self._inner.close()


def corrupt(output: str, rng: random.Random) -> str:
    """Return `output` with every digit replaced by another, first digits not by 0."""

    def another(match: re.Match[str]) -> str:
        leading = match.start() == 0 or output[match.start() - 1] not in _DIGITS
        return rng.choice([d for d in _DIGITS[leading:] if d != match[0]])

    return _DIGIT.sub(another, output)
