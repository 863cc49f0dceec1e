"""Learners: trajectories in, checkpoint folder out. Read `learner` first.

What is named here is imported when it is first used: settings are read without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from learners.registry import learner_names, register_learner, settings_type
from learners.settings import (
    DMPOConfig,
    GRPOConfig,
    KTOConfig,
    LearnerConfig,
    SimPOConfig,
    StepDPOConfig,
)

if TYPE_CHECKING:
    from learners.learner import BaseLearner, Learner, LogProbs, LossOutput, make_learner
    from learners.methods.dmpo import DMPO
    from learners.methods.dpo import MultiTurnDPO, SingleTurnDPO
    from learners.methods.grpo import GRPO
    from learners.methods.ipo import IPO
    from learners.methods.kto import MultiTurnKTO, SingleTurnKTO
    from learners.methods.raft import RAFT
    from learners.methods.sft import SFT
    from learners.methods.simpo import SimPO
    from learners.methods.stepdpo import StepDPO

_LAZY = {
    "DMPO": "learners.methods.dmpo",
    "GRPO": "learners.methods.grpo",
    "IPO": "learners.methods.ipo",
    "RAFT": "learners.methods.raft",
    "SFT": "learners.methods.sft",
    "BaseLearner": "learners.learner",
    "Learner": "learners.learner",
    "LogProbs": "learners.learner",
    "LossOutput": "learners.learner",
    "MultiTurnDPO": "learners.methods.dpo",
    "MultiTurnKTO": "learners.methods.kto",
    "SimPO": "learners.methods.simpo",
    "SingleTurnDPO": "learners.methods.dpo",
    "SingleTurnKTO": "learners.methods.kto",
    "StepDPO": "learners.methods.stepdpo",
    "make_learner": "learners.learner",
}

__all__ = [
    "DMPO",
    "GRPO",
    "IPO",
    "RAFT",
    "SFT",
    "BaseLearner",
    "DMPOConfig",
    "GRPOConfig",
    "KTOConfig",
    "Learner",
    "LearnerConfig",
    "LogProbs",
    "LossOutput",
    "MultiTurnDPO",
    "MultiTurnKTO",
    "SimPO",
    "SimPOConfig",
    "SingleTurnDPO",
    "SingleTurnKTO",
    "StepDPO",
    "StepDPOConfig",
    "learner_names",
    "make_learner",
    "register_learner",
    "settings_type",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
