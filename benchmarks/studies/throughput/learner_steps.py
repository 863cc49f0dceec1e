"""One way to take optimizer steps, in a process of its own: what a step costs and gives.

    python -m benchmarks.studies.throughput.learner_steps JOB.json

Prints one JSON object. `learners` starts it; TRL is needed for its own settings only.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

from agents.models.hf import load_causal_lm, load_tokenizer
from agents.tiny import make_tiny
from learners import KTOConfig, LearnerConfig, make_learner
from learners.preferences import Example, Sample
from learners.training.train import Stage, TrainConfig, train

ETA, RATE = 0.1, 1e-5
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


@dataclass(frozen=True, slots=True)
class Workload:
    """A model's shape and a batch of synthetic trajectories of several turns.

    Lengths are log-normal with a standard deviation of 0.45; a fifth of what follows the
    prompt is interpreter output.
    """

    hidden: int = 384
    layers: int = 6
    vocabulary: int = 4096
    pairs: int = 4
    tokens: int = 495
    seed: int = 0
    steps: int = 3


@dataclass(frozen=True, slots=True)
class Job:
    """How the steps are taken. `folder` holds both models and gets the weights.

    Args:
        learner: "mdpo" or "mkto".
        peer: TRL's trainer instead of ours, with the settings below.
        checkpointing, precompute, compact: TRL's gradient checkpointing, its reference once
            before training, and its head at target positions only, as on a GPU.
        batch: TRL's pairs, or trajectories, per forward pass; 0 for all.
        token_budget: our tokens per forward pass.
        recompute_every: our activation checkpointing, see `TrainConfig`.
        memory: measure memory instead of time.
    """

    workload: Workload
    folder: str
    learner: str = "mdpo"
    peer: bool = False
    checkpointing: bool = True
    precompute: bool = False
    compact: bool = False
    batch: int = 0
    token_budget: int = 8192
    recompute_every: int = 0
    memory: bool = False

    @staticmethod
    def read(text: str) -> Job:
        values = json.loads(text)
        return Job(**{**values, "workload": Workload(**values["workload"])})

    def text(self) -> str:
        return json.dumps(asdict(self))


@dataclass(slots=True)
class Steps:
    """What each step cost and gave. CPU seconds of this process, megabytes (10^6 bytes)."""

    cpu: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    grad_norm: list[float] = field(default_factory=list)
    above_resident: list[float] = field(default_factory=list)
    peak: list[float] = field(default_factory=list)


# --------------------------------------------------------------------------- the data


def make_models(workload: Workload, folder: Path) -> None:
    """Write a random policy and a random reference."""
    for seed, name in enumerate(("policy", "reference")):
        make_tiny(folder / name)  # for its tokenizer
        config = LlamaConfig(
            vocab_size=workload.vocabulary,
            hidden_size=workload.hidden,
            intermediate_size=workload.hidden * 8 // 3 // 64 * 64,
            num_hidden_layers=workload.layers,
            num_attention_heads=workload.hidden // 64,
            num_key_value_heads=workload.hidden // 64,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        )
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder / name)


def make_pairs(workload: Workload) -> list[Example]:
    """Return pairs (chosen, rejected) that have their prompt in common."""
    rng = random.Random(workload.seed)
    found = []
    for i in range(workload.pairs):
        prompt = _tokens(rng, rng.randint(60, 160), workload)
        sides = tuple(_trajectory(rng, prompt, f"{i}{side}", workload) for side in "wl")
        found.append(Example(sides))
    return found


def _trajectory(
    rng: random.Random, prompt: tuple[int, ...], key: str, workload: Workload
) -> Sample:
    length = workload.tokens * rng.lognormvariate(-(0.45**2) / 2, 0.45)
    length = int(min(max(length, len(prompt) + 40), 2 * workload.tokens))
    ids, mask = list(prompt), [False] * len(prompt)
    turns = rng.randint(2, 4)
    for turn in range(turns):
        share = (length - len(prompt)) // turns
        output = 0 if turn == turns - 1 else int(0.2 * share * turns / (turns - 1))
        ids += _tokens(rng, share, workload)
        mask += [True] * (share - output) + [False] * output
    return Sample(key, tuple(ids), tuple(mask))


def _tokens(rng: random.Random, count: int, workload: Workload) -> tuple[int, ...]:
    return tuple(rng.randrange(5, workload.vocabulary) for _ in range(count))


def singles(pairs: Sequence[Example]) -> list[Example]:
    """Return labelled trajectories, each with another's completion after its prompt."""
    labelled = [(s, float(i == 0)) for pair in pairs for i, s in enumerate(pair.samples)]
    examples = []
    for i, (sample, score) in enumerate(labelled):
        other = labelled[i - 2][0]  # of another prompt, with the same label
        begin, cut = sample.mask.index(True), other.mask.index(True)
        ids = (*sample.ids[:begin], *other.ids[cut:])
        mask = (*sample.mask[:begin], *other.mask[cut:])
        examples.append(Example((sample,), score, Sample(f"{i}|{other.key}", ids, mask)))
    return examples


# --------------------------------------------------------------------------- measuring


class _Meter:
    """Measures from each `begin` to the next `end`."""

    def __init__(self, memory: bool) -> None:
        self.steps = Steps()
        self._memory = memory
        self._libc = ctypes.CDLL("libc.so.6")
        if not memory:  # keep what is freed: page faults are not what is compared
            self._libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
            self._libc.mallopt(_M_TRIM_THRESHOLD, -1)
        self._resident = self._started = 0.0

    def begin(self) -> None:
        if self._memory:
            self._libc.malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
            self._resident = _status("VmRSS")
        self._started = time.process_time()

    def end(self) -> None:
        self.steps.cpu.append(time.process_time() - self._started)
        if self._memory:
            self.steps.peak.append(_status("VmHWM"))
            self.steps.above_resident.append(self.steps.peak[-1] - self._resident)


def _status(name: str) -> float:
    text = Path("/proc/self/status").read_text()
    return 1.024e-3 * int(text.partition(f"\n{name}:")[2].split()[0])


def ours(job: Job, examples: Sequence[Example]) -> tuple[Steps, Any]:
    """Train with the loop that everything else uses. The reference pass is in no step."""
    folder = Path(job.folder)
    meter = _Meter(job.memory)
    settings: LearnerConfig = LearnerConfig(eta=ETA)
    if job.learner == "mkto":
        settings = KTOConfig(eta=ETA, kl_sequences=len(examples))
    config = TrainConfig(
        lr=RATE,
        epochs=job.workload.steps,
        batch_size=len(examples),
        warmup=0.0,
        schedule="constant",
        token_budget=job.token_budget,
        recompute_every=job.recompute_every,
        checkpoints=1,
    )

    def on_step(step: int, steps: int, metrics: dict[str, float]) -> None:
        meter.end()
        meter.steps.loss.append(metrics["loss"])
        meter.steps.grad_norm.append(metrics["grad_norm"])
        meter.begin()

    meter.begin()
    out = folder / f"ours-{os.getpid()}"
    stage = Stage(folder / "policy", out, folder / "reference")
    (last,) = train(make_learner(job.learner, settings), examples, config, stage, on_step=on_step)
    return meter.steps, load_causal_lm(last)


def theirs(job: Job, examples: Sequence[Example]) -> tuple[Steps, Any]:
    """Train with TRL's trainer, given the same tokens and masks by a collator."""
    # Only here: without TRL our own steps are still measured.
    datasets, trl = import_module("datasets"), import_module("trl")
    if job.compact:
        utils: Any = import_module("trl.trainer.utils")
        utils._use_triton = lambda device: True
    meter = _Meter(job.memory)
    pairs = job.learner == "mdpo"
    trainer_type: Any = trl.DPOTrainer if pairs else trl.KTOTrainer
    config_type: Any = trl.DPOConfig if pairs else trl.KTOConfig

    class Metered(trainer_type):
        def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
            loss: torch.Tensor = super().training_step(*arguments, **options)
            losses.append(loss.item())
            return loss

    class Callback(TrainerCallback):
        def on_step_begin(self, *arguments: Any, **others: Any) -> None:
            losses.clear()
            meter.begin()

        def on_step_end(self, *arguments: Any, **others: Any) -> None:
            meter.end()
            meter.steps.loss.append(sum(losses))

        def on_log(self, *arguments: Any, **others: Any) -> None:
            if "grad_norm" in others["logs"]:
                meter.steps.grad_norm.append(others["logs"]["grad_norm"])

    losses: list[float] = []
    count, batch = len(examples), job.batch or len(examples)
    arguments = config_type(
        output_dir=job.folder,
        beta=ETA,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        num_train_epochs=job.workload.steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=count // batch,
        gradient_checkpointing=job.checkpointing,
        precompute_ref_log_probs=job.precompute,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_steps=1,
        disable_tqdm=True,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
    )
    texts = {"chosen": ["b"], "rejected": ["c"]} if pairs else {"completion": ["b"]}
    columns = {k: v * count for k, v in ({"prompt": ["a"]} | texts).items()}
    labels = {} if pairs else {"label": [e.score > 0 for e in examples]}
    folder = Path(job.folder)
    trainer = Metered(
        model=load_causal_lm(folder / "policy"),
        ref_model=load_causal_lm(folder / "reference"),
        args=arguments,
        train_dataset=datasets.Dataset.from_dict({**columns, **labels, "index": range(count)}),
        processing_class=load_tokenizer(folder / "policy"),
        data_collator=_Collator(examples),
        callbacks=[Callback()],
    )
    trainer.train()
    return meter.steps, trainer.model


@dataclass(frozen=True, slots=True)
class _Collator:
    """Batches in TRL's layout with our tokens and masks."""

    examples: Sequence[Example]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        chosen = [self.examples[row["index"]] for row in rows]
        if len(chosen[0].samples) == 2:
            batch = _padded([e.samples[side] for side in (0, 1) for e in chosen])
        else:
            batch = _padded([e.samples[0] for e in chosen])
            controls = [e.control for e in chosen if e.control]
            batch |= {f"KL_{key}": value for key, value in _padded(controls).items()}
            batch["label"] = torch.tensor([e.score > 0 for e in chosen])
        known = [key for key in rows[0] if key.startswith("ref_")]
        return batch | {key: torch.tensor([row[key] for row in rows]) for key in known}


def _padded(samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
    shape = len(samples), max(len(s.ids) for s in samples)
    names = ("input_ids", "attention_mask", "completion_mask")
    batch = {name: torch.zeros(shape, dtype=torch.long) for name in names}
    for row, sample in enumerate(samples):
        n = len(sample.ids)
        batch["input_ids"][row, :n] = torch.tensor(sample.ids)
        batch["attention_mask"][row, :n] = 1
        batch["completion_mask"][row, :n] = torch.tensor(sample.mask)
    return batch


def main() -> None:
    """Run the job of the file named by the only argument."""
    job = Job.read(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    pairs = make_pairs(job.workload)
    examples = pairs if job.learner == "mdpo" else singles(pairs)
    steps, model = (theirs if job.peer else ours)(job, examples)
    weights = torch.cat([p.detach().flatten() for _, p in sorted(model.named_parameters())])
    torch.save(weights, Path(sys.argv[1]).with_suffix(".pt"))
    print(json.dumps(asdict(steps)))


if __name__ == "__main__":
    main()
