"""Learners: trajectories in, checkpoint folder out. Read `learner` first."""

from learners.dpo import MultiTurnDPO, SingleTurnDPO
from learners.learner import Learner, LearnerConfig, learner_names, make_learner, register_learner
from learners.sft import RAFT, SFT

__all__ = [
    "RAFT",
    "SFT",
    "Learner",
    "LearnerConfig",
    "MultiTurnDPO",
    "SingleTurnDPO",
    "learner_names",
    "make_learner",
    "register_learner",
]
