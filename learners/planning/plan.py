"""What a recipe costs on given GPUs: memory per GPU and a range of time for each stage.

Nothing is loaded or measured. What is assumed is part of the result (`Plan.assumptions`), and
so is what the code here does not do yet (`Plan.gaps`). The arithmetic is in `costs`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from learners.learner import Learner, make_learner
from learners.planning.costs import (
    CELL_SECONDS,
    DECODE_BANDWIDTH,
    DECODE_PEAK,
    ENGINE_SHARE,
    ENGINE_START,
    FORWARD_MFU,
    FULL,
    GB,
    PAIRED,
    RUNTIME_GB,
    SOLVED,
    TRAIN_MFU,
    USABLE,
    Engine,
    Lengths,
    Range,
    Setup,
    best_engine,
    compute_seconds,
    fits,
    forward_flops,
    lora_setup,
    reference_memory,
    remedies,
    sampling_seconds,
    trained_parameters,
    training_flops,
    training_memory,
)
from learners.planning.shapes import Device, Shape, shape_of
from learners.recipe import Recipe
from learners.settings import Method
from learners.training.train import TrainConfig
from mathenv.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the run.

    Args:
        runs: how often it comes in the whole run.
        work: what is done in one of them, for people.
        memory: GB per GPU by what it holds, at the peak.
        seconds: time of one of them.
        advice: what would make it fit; empty where it does.
    """

    name: str
    runs: int
    work: str
    memory: dict[str, float]
    seconds: Range
    advice: tuple[str, ...] = ()

    @property
    def gigabytes(self) -> float:
        return sum(self.memory.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe on given GPUs. `refusals` says what does not fit; empty where all does.

    `disk_gigabytes` is the most that checkpoints take, optimizer states included;
    `interpreter_cores` how many keep code runs from holding up the engines.
    """

    model: str
    parameters: int
    learner: str
    gpus: int
    device: str
    usable_gigabytes: float
    stages: tuple[Stage, ...]
    seconds: Range
    disk_gigabytes: float
    interpreter_cores: Range
    assumptions: tuple[str, ...]
    gaps: tuple[str, ...]
    refusals: tuple[str, ...]


def make_plan(
    recipe: Recipe,
    gpus: int,
    device: Device,
    *,
    learner: str | None = None,
    cores: int | None = None,
    lengths: Lengths | None = None,
) -> Plan:
    """Plan a whole recipe for one learner (default: the recipe's).

    Args:
        cores: CPU cores that run the model's code; None: as many as needed.
        lengths: mean lengths; default: the paper's setting, shorter under a low `max_tokens`.

    Raises:
        ConfigError: the model's shape is not known, or there is no such learner.
    """
    case = _Case(recipe, gpus, device, learner or recipe.learner, cores, lengths or Lengths())
    stages = _stages(case)
    total = Range(0, 0)
    for stage in stages:
        total += stage.seconds.times(stage.runs)
    return Plan(
        model=case.shape.name,
        parameters=case.shape.parameters,
        learner=case.learner.name,
        gpus=gpus,
        device=device.name,
        usable_gigabytes=USABLE * device.gigabytes,
        stages=stages,
        seconds=total,
        disk_gigabytes=_disk(case),
        interpreter_cores=_cores_needed(case),
        assumptions=_assumptions(case),
        gaps=_gaps(case, stages),
        refusals=tuple(_refusals(case, stages)),
    )


@dataclass(frozen=True)
class _Case:
    """What is planned, and what follows from it."""

    recipe: Recipe
    gpus: int
    device: Device
    learner_name: str
    cores: int | None
    means: Lengths

    @cached_property
    def shape(self) -> Shape:
        return shape_of(self.recipe)

    @cached_property
    def learner(self) -> Learner:
        return make_learner(self.learner_name, self.method.loss)

    @property
    def method(self) -> Method:
        return self.recipe.methods.get(self.learner_name, Method())

    @property
    def limit(self) -> int:
        return self.recipe.iterate.sampling.max_tokens

    @cached_property
    def lengths(self) -> Lengths:
        return self.means.within(self.limit)

    @property
    def prompts(self) -> int:
        """Problems of one iteration."""
        return self.recipe.problems.prompts // self.recipe.iterate.iterations

    @cached_property
    def engine(self) -> Engine | None:
        most = self.recipe.iterate.collect.concurrency
        return best_engine(self.shape, self.gpus, self.device, self.lengths, self.limit, most)


@dataclass(frozen=True, slots=True)
class _Examples:
    """What one run of a training stage trains on: `count` examples of so many `sequences`.

    `length` is their mean in tokens, `longest` the limit over which they are left out.
    """

    count: Range
    sequences: int
    length: float
    longest: int
    controls: int = 0


def _stages(case: _Case) -> tuple[Stage, ...]:
    recipe, learner, iterations = case.recipe, case.learner, case.recipe.iterate.iterations
    examples = _examples(case)
    found = [_training(case, "SFT", 1, _demonstrations(case), recipe.sft)]
    if not learner.from_demonstrations:
        found.append(_sampling(case))
    if learner.uses_reference or learner.uses_start:
        found.append(_reference(case, examples))
    found.append(_training(case, learner.name, iterations, examples, case.method.train))
    policies = case.method.train.checkpoints + 1
    found.append(_greedy(case, "validation", iterations, policies, recipe.problems.validation))
    found.append(_greedy(case, "test", iterations + 1, 1, recipe.problems.test))
    return tuple(found)


def _demonstrations(case: _Case) -> _Examples:
    shown = case.recipe.problems.demonstrations
    longest = case.recipe.methods.get("sft", Method()).loss.pairs.max_tokens
    return _Examples(Range(shown, shown), 1, case.lengths.demonstration, longest)


def _examples(case: _Case) -> _Examples:
    """Return what the learner trains on in one iteration.

    Raises:
        ConfigError: the learner's unit is none of those known.
    """
    learner = case.learner
    if learner.from_demonstrations:
        return _demonstrations(case)
    most = case.prompts * learner.config.pairs.per_problem
    every = case.prompts * case.recipe.iterate.current_samples
    counts = {
        "pair": Range(*PAIRED).times(most),
        "side": Range(*PAIRED).times(2 * most),
        "right": Range(*SOLVED).times(most),
        "sample": Range(*PAIRED).times(every),
    }
    if learner.unit not in counts:
        known = ", ".join(counts)
        raise ConfigError(f"{learner.name}: unit is one of {known}, not {learner.unit!r}")
    return _Examples(
        counts[learner.unit],
        2 if learner.unit == "pair" else 1,
        case.lengths.trajectory,
        min(learner.config.pairs.max_tokens, case.limit),
        learner.controls,
    )


def _training(case: _Case, name: str, runs: int, examples: _Examples, config: TrainConfig) -> Stage:
    share, length, setup = case.lengths.target_share, examples.length, setup_of(config)
    each = examples.sequences * length * training_flops(case.shape, length, share, setup)
    controls = examples.controls / config.batch_size * length
    each += controls * forward_flops(case.shape, length, share)
    flops = examples.count.times(config.epochs * each)
    steps = examples.count.times(config.epochs / config.batch_size)
    tokens = config.batch_size * examples.sequences * length
    # An example is never split, so a forward pass may be larger than the budget.
    least = examples.sequences * examples.longest
    budget = max(config.token_budget, least)
    memory = training_memory(case.shape, case.gpus, budget, setup)
    advice: tuple[str, ...] = ()
    if not fits(memory, case.device):
        found = remedies(case.shape, case.gpus, case.device, budget, least)
        advice = tuple(found) or ("nothing that is modelled here",)
    return Stage(
        name,
        runs,
        f"{_span(steps)} steps of {tokens:,.0f} tokens",
        memory,
        compute_seconds(flops, case.gpus, case.device, TRAIN_MFU),
        advice,
    )


def setup_of(config: TrainConfig) -> Setup:
    """Return what a stage's settings keep in memory."""
    setup = lora_setup(config.lora.rank, config.lora.dtype) if config.lora.rank else FULL
    return replace(setup, checkpointing=config.recompute_every == 1)


def _reference(case: _Case, examples: _Examples) -> Stage:
    """Never more than a full fine-tune needs: it comes before there is an optimizer state."""
    setup = setup_of(case.method.train)
    learner = case.learner
    # The policy without its adapters is the reference, unless that stays behind.
    own = case.recipe.iterate.reference in ("last", 1) or not learner.uses_reference
    models = 1 if setup.lora_rank and own else 2
    policies = 1 if own or not learner.uses_start else 2  # whose log-probs are asked for
    sequences = examples.sequences + (examples.controls > 0)
    tokens = examples.count.times(policies * sequences * examples.length)
    flops = forward_flops(case.shape, examples.length, case.lengths.target_share)
    return Stage(
        "reference",
        case.recipe.iterate.iterations,
        f"{_span(tokens.times(1e-6))} million tokens, forward",
        reference_memory(
            case.shape,
            case.gpus,
            max(case.method.train.token_budget, examples.sequences * examples.longest),
            setup,
            models=models,
        ),
        compute_seconds(tokens.times(flops), case.gpus, case.device, FORWARD_MFU),
    )


def _sampling(case: _Case) -> Stage:
    config = case.recipe.iterate
    samples = (config.current_samples, config.previous_samples)
    loads = sum(count > 0 for count in samples)
    return _played(case, "sampling", config.iterations, case.prompts, sum(samples), loads)


def _greedy(case: _Case, name: str, runs: int, policies: int, problems: int) -> Stage:
    one = _played(case, name, runs, problems, 1, 1)
    work = f"{policies} policies, {one.work} each" if policies > 1 else one.work
    return Stage(name, runs, work, one.memory, one.seconds.times(policies))


def _played(case: _Case, name: str, runs: int, problems: int, samples: int, loads: int) -> Stage:
    trajectories = problems * samples
    work, engine = f"{trajectories:,} trajectories", case.engine
    if engine is None:
        weights = {"weights": 2 * case.shape.parameters / case.gpus / GB}
        return Stage(name, runs, work, weights, Range(math.inf, math.inf))
    seconds = sampling_seconds(
        case.shape, case.device, engine, case.lengths, trajectories, problems, case.cores
    )
    started = Range(*ENGINE_START).times(loads)
    return Stage(name, runs, work, engine.memory, seconds + started)


def _disk(case: _Case) -> float:
    """Weights in float32 of all checkpoints, and optimizer states of one stage's."""
    sft, method = case.recipe.sft, case.method.train
    kept = sft.checkpoints + case.recipe.iterate.iterations * method.checkpoints
    states = max(c.checkpoints * trained_parameters(case.shape, setup_of(c)) for c in (sft, method))
    return (4 * kept * case.shape.parameters + 8 * states) / GB


def _cores_needed(case: _Case) -> Range:
    if case.engine is None:
        return Range(0, 0)
    tokens = case.engine.rate * case.engine.count
    calls = tokens / case.lengths.generated * (case.lengths.turns - 1)
    return Range(
        calls * ENGINE_SHARE[0] * CELL_SECONDS[0], calls * ENGINE_SHARE[1] * CELL_SECONDS[1]
    )


def _refusals(case: _Case, stages: tuple[Stage, ...]) -> list[str]:
    usable = f"{USABLE * case.device.gigabytes:.0f} GB of a {case.device.name} can be used"
    found = []
    if case.engine is None:
        found.append(
            f"sampling: {2 * case.shape.parameters / GB:.0f} GB of bfloat16 weights and one "
            f"trajectory of {case.limit} tokens do not fit; {usable}. More or larger GPUs would do"
        )
    needs = {(tuple(s.memory.items()), s.advice): s.gigabytes for s in stages if s.advice}
    for (memory, advice), gigabytes in needs.items():
        names = [s.name for s in stages if (tuple(s.memory.items()), s.advice) == (memory, advice)]
        parts = ", ".join(f"{value:.0f} GB {name}" for name, value in memory)
        found.append(
            f"training ({', '.join(dict.fromkeys(names))}) needs {gigabytes:.0f} GB per GPU "
            f"({parts}); {usable}. Would fit: {'; or '.join(advice)}"
        )
    return found


def _assumptions(case: _Case) -> tuple[str, ...]:
    lengths, cores = case.lengths, case.cores
    return (
        f"mean tokens: prompt {lengths.prompt:.0f}, generated {lengths.generated:.0f} in "
        f"{lengths.turns} turns, whole trajectory {lengths.trajectory:.0f}, demonstration "
        f"{lengths.demonstration:.0f}",
        f"training: {_percent(TRAIN_MFU)} of the bfloat16 peak, forward passes "
        f"{_percent(FORWARD_MFU)}; packed, no padding; float32 weights, gradients and AdamW, "
        "bfloat16 activations",
        f"sampling: {_percent(ENGINE_SHARE)} of a model with {DECODE_BANDWIDTH:.0%} of the "
        f"published bandwidth, {DECODE_PEAK:.0%} of the peak and 1 ms per step",
        f"starting an engine with a policy: {ENGINE_START[0]:.0f} to {ENGINE_START[1]:.0f} s",
        f"{_percent(PAIRED)} of the problems give pairs, {_percent(SOLVED)} a right sample",
        f"a code run takes {CELL_SECONDS[0]} to {CELL_SECONDS[1]} s of CPU, on "
        + ("as many cores as needed" if cores is None else f"{cores} cores"),
        f"{USABLE:.0%} of a GPU's memory is used, {RUNTIME_GB:.0f} GB of it by the runtime",
        "none of this was measured on these GPUs",
    )


def _gaps(case: _Case, stages: tuple[Stage, ...]) -> tuple[str, ...]:
    found, config = _training_gaps(case), case.recipe.iterate
    if config.engine.kind != "vllm":
        found.append(
            "the recipe samples with the transformers engine (iterate.engine); planned is vLLM"
        )
    elif case.gpus > 1 and config.ray is None:
        found.append(
            "the recipe samples with one engine; planned is one for each GPU, which needs "
            f"--iterate.ray local --iterate.workers {case.gpus} --iterate.worker-gpus 1"
        )
    if any(stage.advice for stage in stages):
        found.append(
            "the trainer has no 8-bit optimizer states: where these are said to fit, it is their "
            "memory that was computed"
        )
    return tuple(found)


def _training_gaps(case: _Case) -> list[str]:
    configs = {"sft": case.recipe.sft, f"methods.{case.learner.name}.train": case.method.train}
    found = []
    alone = [name for name, c in configs.items() if c.processes < case.gpus or not c.shard]
    if case.gpus > 1 and alone:
        found.append(
            f"planned is FSDP over {case.gpus} GPUs, which needs processes = {case.gpus} and "
            f"shard = true in {' and '.join(alone)}"
        )
    wide = [name for name, c in configs.items() if c.precision != "bf16"]
    if wide:
        found.append(f'planned is bfloat16, which needs precision = "bf16" in {" and ".join(wide)}')
    return found


def _span(amount: Range) -> str:
    low, high = round(amount.low), round(amount.high)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _percent(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.0%} to {ends[1]:.0%}"
