"""Learners: trajectories in, checkpoint folder out. Read `learner` first."""

from learners.dmpo import DMPO, DMPOConfig
from learners.dpo import MultiTurnDPO, SingleTurnDPO
from learners.grpo import GRPO, GRPOConfig
from learners.ipo import IPO
from learners.kto import KTOConfig, MultiTurnKTO, SingleTurnKTO
from learners.learner import (
    BaseLearner,
    Learner,
    LearnerConfig,
    LogProbs,
    LossOutput,
    learner_names,
    make_learner,
    register_learner,
    settings_type,
)
from learners.raft import RAFT
from learners.sft import SFT
from learners.simpo import SimPO, SimPOConfig
from learners.stepdpo import StepDPO, StepDPOConfig

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
