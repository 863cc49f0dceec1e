"""Training in memory: one optimizer step of any learner per call, on a list of trajectories.

    model, tokenizer = load_causal_lm("DIR"), load_tokenizer("DIR")
    agent = LLMAgent(TransformersModel(model, tokenizer, name="current"), ChatRenderer(tokenizer))
    trainer = Trainer(model, tokenizer, "mdpo", lr=1e-6)
    for problems in batches:
        trajectories = play(agent, problems, n=8)   # sampled from the weights as they are now
        print(trainer.step(trajectories))           # which this changes in place
    trainer.save("checkpoint")

This is for experiments with a loop of your own. `train.train` does what a long run needs beside
that: epochs, checkpoints to go on from, several processes, and log-probs of the reference that
are computed once and kept on disk.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from learners.learner import Learner, make_learner
from learners.numerics.logprobs import reference_logps
from learners.preferences import Example
from learners.settings import TrainConfig
from learners.training.checkpoint import save_checkpoint
from learners.training.loop import Frozen, Loop, Metrics
from learners.training.parallel import Devices, Policy, autocast
from mathenv.errors import TrainingError
from mathenv.manifest import environment
from mathenv.types import Trajectory


class Trainer:
    """A model in training, its optimizer and the learner's reference. Deterministic for a seed.

    Args:
        model: a causal language model in float32, as `load_causal_lm` gives it. Its weights are
            changed in place, so an engine that holds the same model samples from what was
            learned so far.
        tokenizer: its tokenizer, which is saved beside the weights.
        learner: a learner or the name of one.
        reference: the reference model, where the learner uses one. Left out: a copy of `model`
            as it is now.
        lr: the learning rate of AdamW, the same in every step.
        weight_decay, betas, clip_norm, token_budget, precision: as in `TrainConfig`.
        seed: fixes which pairs are drawn.

    Raises:
        ConfigError: no learner has that name, or a number cannot be.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        learner: Learner | str,
        *,
        reference: Any = None,
        lr: float = 1e-6,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        clip_norm: float = 1.0,
        token_budget: int = 8192,
        precision: str = "fp32",
        seed: int = 0,
    ) -> None:
        self.learner = make_learner(learner) if isinstance(learner, str) else learner
        self.model, self.steps, self._tokenizer, self._seed = model, 0, tokenizer, seed
        self._config = TrainConfig(
            lr=lr,
            schedule="constant",
            warmup=0.0,
            weight_decay=weight_decay,
            betas=betas,
            clip_norm=clip_norm,
            token_budget=token_budget,
            precision=precision,
        )
        self.reference = reference
        if reference is None and self.learner.uses_reference:
            self.move_reference()
        devices = Devices()
        policy = Policy(model, devices, self._config)
        optimizer = torch.optim.AdamW(
            policy.parameters, lr=lr, betas=betas, weight_decay=weight_decay
        )
        self._loop = Loop(
            self.learner, policy, optimizer, devices, self._config, seed=seed, steps=1
        )

    def step(self, trajectories: Sequence[Trajectory]) -> Metrics:
        """Take one optimizer step on what the learner makes of the trajectories.

        Returns:
            What `metrics.jsonl` holds for a step: loss, gradient norm and the learner's own
            figures under TRL's names, and how many `examples` there were.

        Raises:
            TrainingError: the learner finds nothing in them to train on, or the loss is not
                finite; nothing has changed then.
        """
        number = self.steps + 1
        examples, selection = self.learner.examples(
            trajectories, seed=self._seed * 1_000_003 + number
        )
        if not examples:
            counts = ", ".join(f"{name} {count}" for name, count in selection.counts().items())
            raise TrainingError(
                f"{self.learner.name} finds nothing to train on in {len(trajectories)} "
                f"trajectories ({counts}): most learners need right and wrong ones of one problem"
            )
        metrics = self._loop.step(number, examples, self._frozen(examples))
        self.steps = number
        del metrics["epoch"]  # there is no data set to go through
        return {**metrics, "examples": len(examples)}

    def move_reference(self) -> None:
        """Make the reference a frozen copy of the model as it is now."""
        self.reference = copy.deepcopy(self.model).requires_grad_(False)

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint that `load_policy`, vLLM and `train` can load; return its folder."""
        manifest = {
            "learner": self.learner.name,
            "loss": asdict(self.learner.config),
            "step": self.steps,
            "seed": self._seed,
            "environment": environment(),
        }
        save_checkpoint(Path(folder), self.model, self._tokenizer, manifest)
        return Path(folder)

    def _frozen(self, examples: Sequence[Example]) -> Frozen:
        """Evaluate what the step holds fixed: the reference, and the policy before the step."""
        reference = self._logps(self.reference, examples) if self.learner.uses_reference else None
        start = self._logps(self.model, examples) if self.learner.uses_start else None
        return Frozen(reference, start, [e.control for e in examples if e.control])

    def _logps(self, model: Any, examples: Sequence[Example]) -> dict[Any, torch.Tensor]:
        per_token, budget = self.learner.per_token, self._config.token_budget
        with autocast(model.device, self._config.precision):
            return reference_logps(model, examples, budget=budget, per_token=per_token)
