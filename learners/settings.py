"""The settings of learners, training and the online loop, each with its limits.

Imports without torch, so that flags and recipes are read at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from agents.base import SamplingParams
from agents.collector import CollectConfig
from agents.settings import EngineOptions, RenderOptions
from learners.preferences import PairRules
from mathenv.env import SandboxTier
from mathenv.errors import ConfigError
from mathenv.settings import (
    Count,
    CountFrom0,
    NotNegative,
    Positive,
    PositiveOrInf,
    PositiveShare,
    Seed,
    Share,
    ShareBelow1,
    check_settings,
)

_SCHEDULES = ("constant", "linear", "cosine")
_PRECISIONS = ("fp32", "bf16", "fp16")
_AVERAGES = ("sequence", "token")
_KL = ("mismatched", "on_policy", "none")

ReferenceMoves = Count | Literal["last", "first"]


@dataclass(frozen=True, slots=True)
class LearnerConfig:
    """Settings that several learners share. A learner with more has a subclass, its `Config`.

    Args:
        eta: strength of the KL penalty (TRL's `beta`; paper: 0.1).
        nll_coef: weight of the token-mean NLL of the chosen side (paper: 0, an ablation).
            Used by the preference learners.
        pairs: which trajectories may be used, and how many per problem.
    """

    eta: Positive = 0.1
    nll_coef: NotNegative = 0.0
    pairs: PairRules = field(default_factory=PairRules)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True)
class DMPOConfig(LearnerConfig):
    """Settings of DMPO.

    Args:
        discount: gamma in (0, 1]; smaller weighs the first turns more.
    """

    discount: PositiveShare = 0.9


@dataclass(frozen=True, slots=True)
class GRPOConfig(LearnerConfig):
    """Settings of GRPO. `pairs.per_problem` does not apply: a group is all of a problem.

    Args:
        kl_coef: weight of the k3 estimate of KL(pi, pi_ref) per token. 0: no reference
            model is used (TRL's default; DeepSeekMath: 0.04).
        clip_low: the ratio to the old policy is clipped at 1 - clip_low.
        clip_high: and at 1 + clip_high.
        scale: divide advantages by the group's standard deviation. Without it: Dr. GRPO.
        average: "sequence": mean over a trajectory's action tokens, then over trajectories
            (arXiv 2402.03300, equation 3); "token": over all action tokens of a step (DAPO).
        agent: whose samples are on-policy; what others sampled is left out.
    """

    kl_coef: NotNegative = 0.0
    clip_low: PositiveShare = 0.2
    clip_high: Positive = 0.2
    scale: bool = True
    average: str = "sequence"
    agent: str = "current"

    def __post_init__(self) -> None:
        check_settings(self)
        if self.average not in _AVERAGES:
            raise ConfigError(f"average is one of {', '.join(_AVERAGES)}, not {self.average!r}")


@dataclass(frozen=True, slots=True)
class KTOConfig(LearnerConfig):
    """Settings of M-KTO.

    Args:
        kl: where z0 comes from. "mismatched" (TRL, the authors' code): log-ratios of prompts
            with the completions of other problems. "on_policy": equation 15's KL per token,
            estimated along whole trajectories of `agent`. "none": z0 is 0.
        kl_sequences: sequences behind each step's z0, over all devices and micro-batches
            (32 is the paper's batch; all there are, where they are fewer).
        agent: whose samples are on-policy: that of the policy which begins the stage.
        desirable_weight: lambda_+ (paper: 1).
        undesirable_weight: lambda_- (paper: 1).
    """

    kl: str = "mismatched"
    kl_sequences: Count = 32
    agent: str = "current"
    desirable_weight: NotNegative = 1.0
    undesirable_weight: NotNegative = 1.0

    def __post_init__(self) -> None:
        check_settings(self)
        if self.kl not in _KL:
            raise ConfigError(f"kl is one of {', '.join(_KL)}, not {self.kl!r}")


@dataclass(frozen=True, slots=True)
class SimPOConfig(LearnerConfig):
    """Settings of SimPO. Its `eta` is of another size than DPO's: 2 to 10 in the paper.

    Args:
        gamma: target margin between the two rewards.
    """

    eta: Positive = 2.0
    gamma: NotNegative = 1.0


@dataclass(frozen=True, slots=True)
class StepDPOConfig(LearnerConfig):
    """Settings of step-wise DPO.

    Args:
        shared_turns: how many first turns a pair must have in common at least.
    """

    shared_turns: CountFrom0 = 1


@dataclass(frozen=True, slots=True)
class LoRA:
    """Train low-rank adapters instead of all weights. Needs the extra `lora`.

    Args:
        rank: of the adapters; 0 trains all weights instead.
        alpha: the adapters' share is multiplied by alpha / rank.
        dropout: share of the adapters' inputs dropped in training steps, and only there.
        targets: matrices with an adapter, by the end of their names: q_proj, v_proj, ...
            Empty: all of all layers, the head not.
        dtype: of the frozen weights in memory; adapters and checkpoints are at least float32.
    """

    rank: CountFrom0 = 0
    alpha: Count = 32
    dropout: ShareBelow1 = 0.0
    targets: tuple[str, ...] = ()
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How one stage trains.

    Args:
        lr: peak learning rate of AdamW.
        epochs: passes over the examples (paper: 1 for preference learning).
        batch_size: examples (pairs, or demonstrations) per optimizer step, over all devices.
        warmup: share of the steps in which the rate rises linearly.
        schedule: what follows the warm-up: "constant", or "linear" or "cosine" towards zero, which
            would be reached one step after the last.
        weight_decay: AdamW's decoupled weight decay, on all weights.
        clip_norm: the gradient is scaled down to this norm where it is larger.
        token_budget: tokens per forward pass and device, padding included; memory grows
            with it. A step takes as many passes as it needs.
        checkpoints: how many checkpoints to keep, evenly spaced, the last step included.
        betas: AdamW's decay rates of the first and second moment.
        precision: "fp32", "bf16" or "fp16": what the forward pass computes in. Weights,
            gradients and moments stay in float32; fp16 scales its loss.
        recompute_every: activation checkpointing. The backward pass computes the activations
            of every n-th layer again instead of keeping them: 1 all, 2 half of them, 0 none.
        processes: how many train together, started for each stage: at most one per GPU, or per
            CPU thread. Under `accelerate launch` and `torchrun` theirs train, and no others.
        shard: several processes share weights, gradients and moments out (FSDP2) instead of
            each having them whole (DDP). Also set by `accelerate launch --use_fsdp`.
        lora: adapters to train instead of the weights; off by default.
    """

    lr: Positive = 1e-5
    epochs: Count = 1
    batch_size: Count = 32
    warmup: Share = 0.1
    schedule: str = "cosine"
    weight_decay: NotNegative = 0.0
    clip_norm: PositiveOrInf = 1.0
    token_budget: Count = 8192
    checkpoints: Count = 3
    betas: tuple[ShareBelow1, ShareBelow1] = (0.9, 0.999)
    precision: str = "fp32"
    recompute_every: CountFrom0 = 0
    processes: Count = 1
    shard: bool = False
    lora: LoRA = field(default_factory=LoRA)

    def __post_init__(self) -> None:
        check_settings(self)
        for name, known in (("schedule", _SCHEDULES), ("precision", _PRECISIONS)):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"no {name} is called {getattr(self, name)!r}: there are {', '.join(known)}"
                )


@dataclass(frozen=True, slots=True)
class Method:
    """How a learner learns.

    Args:
        loss: settings of the loss and of which trajectories it is given.
        train: settings of the training loop.
    """

    loss: LearnerConfig = field(default_factory=LearnerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, slots=True)
class IterateConfig:
    """One run of the online loop. Defaults follow the paper where it says something.

    Args:
        iterations: rounds of sampling and training (paper: 3).
        current_samples: samples per problem from the current policy (paper: 20).
        previous_samples: samples per problem from the policy before it (paper: 10).
        reference: "last" moves the reference to the newest policy after every iteration
            (paper's default), a number k after every k iterations, and "first" keeps the
            policy that the run started from.
        sampling: how the mixture samples (paper: temperature 1).
        collect: episodes in flight, horizon and so on.
        engine: what samples and evaluates, one engine at a time and none while training.
        rendering: how conversations are written, in demonstrations too.
        interpreter: what runs the code, in demonstrations too: this machine's sandbox or Docker.
        min_tier: the weakest tier of its sandbox that will do; left out: any that works.
        ray: sample and evaluate with several workers, each with its own engine: the address of
            a Ray cluster, `auto`, or `local` to start one here. Left out: in this process.
        workers, worker_cpus, worker_gpus: how many, and what Ray reserves for each.
        seed: fixes sampling, pairing and the order of training.
    """

    iterations: Count = 3
    current_samples: CountFrom0 = 20
    previous_samples: CountFrom0 = 10
    reference: ReferenceMoves = "last"
    sampling: SamplingParams = field(default_factory=SamplingParams)
    collect: CollectConfig = field(default_factory=CollectConfig)
    engine: EngineOptions = field(default_factory=EngineOptions)
    rendering: RenderOptions = field(default_factory=RenderOptions)
    interpreter: Literal["local", "docker"] = "local"
    min_tier: SandboxTier | None = None
    ray: str | None = None
    workers: Count = 2
    worker_cpus: NotNegative = 1.0
    worker_gpus: NotNegative = 0.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        every = type(self.reference) is int and self.reference > 0
        if not every and self.reference not in ("last", "first"):
            raise ConfigError(
                "reference must be 'last', 'first' or after how many iterations it moves, not "
                f"{self.reference!r}"
            )
        check_settings(self)
        if self.current_samples + self.previous_samples < 1:
            raise ConfigError("current_samples and previous_samples cannot both be 0")
