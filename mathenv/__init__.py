"""Problems in, graded episodes out: a Gymnasium environment for math with Python.

Importing this package registers `MathTool-v0`. The environment itself, with grading and
the interpreter behind it, is imported when first used, so that the vocabulary stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mathenv.errors import (
    ConfigError,
    DataError,
    InfraError,
    MathEnvError,
    RenderError,
    TrainingError,
)
from mathenv.registration import ENV_ID, register_envs
from mathenv.types import (
    ExecutionResult,
    ExecutionStatus,
    FinishReason,
    Grade,
    GradeStatus,
    Problem,
    Span,
    SpanKind,
    StopReason,
    TokenRecord,
    Trajectory,
    Turn,
)

if TYPE_CHECKING:
    from mathenv.env import MathToolEnv
    from mathenv.store import TrajectoryStore, read_trajectories
    from mathenv.vector import MathToolVectorEnv

__version__ = "0.1.0"

_LAZY = {
    "MathToolEnv": "mathenv.env",
    "MathToolVectorEnv": "mathenv.vector",
    "TrajectoryStore": "mathenv.store",
    "read_trajectories": "mathenv.store",
}

__all__ = [
    "ENV_ID",
    "ConfigError",
    "DataError",
    "ExecutionResult",
    "ExecutionStatus",
    "FinishReason",
    "Grade",
    "GradeStatus",
    "InfraError",
    "MathEnvError",
    "MathToolEnv",
    "MathToolVectorEnv",
    "Problem",
    "RenderError",
    "Span",
    "SpanKind",
    "StopReason",
    "TokenRecord",
    "TrainingError",
    "Trajectory",
    "TrajectoryStore",
    "Turn",
    "__version__",
    "read_trajectories",
    "register_envs",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


register_envs()
