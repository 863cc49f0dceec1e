"""What training and sampling cost on GPUs: memory, FLOPs and seconds, as pure arithmetic.

Times are ranges: the low end has the high efficiency. The constants say where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from learners.planning.shapes import Device, Shape

GB = 1e9
USABLE = 0.92  # of a GPU's memory; the rest is fragmentation and other processes' contexts
RUNTIME_GB = 2.0  # CUDA context, communication and work buffers

# Model FLOP utilisation: 33% eager and 39% compiled are published for an 8B model under FSDP2
# (torchtitan, 8 H100), 45% is the goal. Forward passes alone do better.
TRAIN_MFU = (0.30, 0.45)
FORWARD_MFU = (0.35, 0.50)

# Decoding: the shares of published bandwidth and peak that one H200 reached in a copy (80% of
# 4.3 TB/s) and in matrix products (75% of 790 TFLOP/s), 1 ms per step besides. What an engine's
# scheduler leaves of that rate is not measured here.
DECODE_BANDWIDTH, DECODE_PEAK, DECODE_OVERHEAD = 3.4 / 4.8, 590 / 989, 1e-3
ENGINE_SHARE = (0.55, 0.80)
ENGINE_START = (30.0, 180.0)  # seconds to load weights and start an engine; a guess
MOST_SLOTS = 512
TENSOR_PARALLEL_SHARE = 0.8  # what communication leaves when one model spans several GPUs

CELL_SECONDS = (0.05, 0.10)  # CPU of a code run in the warm sandbox, without and with time-outs
PAIRED = (0.75, 1.0)  # problems that give a pair (paper: 15,000 to 20,000 of 20,000 prompts)
SOLVED = (0.60, 0.93)  # problems with a right sample (paper: 60% with N = 6, 92.5% with N = 30)

LORA_RANK = 16


@dataclass(frozen=True, slots=True)
class Range:
    """From the optimistic to the pessimistic end; seconds where nothing else is said."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> Range:
        return Range(self.low * factor, self.high * factor)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Mean lengths in tokens. Trajectories: 2.65 turns, as in GSM8K and MATH with code.

    `demonstration` is a whole one. With 350, four epochs of Gemma-1.1-7B on eight A100 come to
    9 to 13 hours; the paper reports 10 to 15.
    """

    prompt: float = 150
    generated: float = 470
    observation: float = 50
    turns: float = 2.65
    demonstration: float = 350

    @property
    def trajectory(self) -> float:
        return self.prompt + self.generated + self.observation * (self.turns - 1)

    @property
    def target_share(self) -> float:
        return self.generated / self.trajectory

    def within(self, max_tokens: int) -> Lengths:
        """Scale all lengths so that a trajectory fills half of a lower token limit."""
        factor = min(1.0, max_tokens / 2 / self.trajectory)
        names = ("prompt", "generated", "observation", "demonstration")
        return replace(self, **{name: getattr(self, name) * factor for name in names})


@dataclass(frozen=True, slots=True)
class Setup:
    """How weights are trained: bytes per trained and per frozen parameter."""

    name: str
    trained_bytes: float = 16  # float32 weight, gradient and both moments of AdamW
    frozen_bytes: float = 0
    lora_rank: int = 0
    checkpointing: bool = False


FULL = Setup("full fine-tune, AdamW in float32")
CHECKPOINTED = replace(FULL, name="activation checkpointing", checkpointing=True)
EIGHT_BIT = replace(
    CHECKPOINTED, name="8-bit Adam states and activation checkpointing", trained_bytes=10
)


def lora_setup(rank: int, dtype: str) -> Setup:
    """Return LoRA on frozen weights of a type: float32, bfloat16 or float16."""
    size = 4 if dtype == "float32" else 2
    return Setup(f"LoRA (rank {rank}) on {dtype} weights", frozen_bytes=size, lora_rank=rank)


LORA = lora_setup(LORA_RANK, "bfloat16")
LORA_CHECKPOINTED = replace(LORA, name=f"{LORA.name} and checkpointing", checkpointing=True)
# Of each group the first that fits is worth naming.
ALTERNATIVES = ((CHECKPOINTED, EIGHT_BIT), (LORA, LORA_CHECKPOINTED))


@dataclass(frozen=True, slots=True)
class Engine:
    """Sampling: `count` engines of `gpus_each`, with `slots` sequences in flight in each.

    `rate`: tokens per second of one engine by the decode model, before `ENGINE_SHARE`.
    """

    count: int
    gpus_each: int
    slots: int
    rate: float
    memory: dict[str, float]


# --- memory


def training_memory(
    shape: Shape, gpus: int, tokens: float, setup: Setup = FULL
) -> dict[str, float]:
    """Return GB per GPU while training on forward passes of `tokens`.

    On several GPUs weights, gradients and optimizer are sharded over all (FSDP), and two
    layers and the embeddings are whole at a time. On one GPU autocast keeps a bfloat16 copy
    of what is trained. Activations without checkpointing: 2 bytes x layers x (10 hidden + 4
    intermediate) per token; with it one hidden state per layer and one layer in full.
    """
    n, full = shape.parameters, setup.lora_rank == 0
    states = state_bytes(shape, setup) / gpus
    copies = 0.0
    if gpus > 1:  # bfloat16 weights, and float32 gradients on their way to the others
        copies = _whole_at_once(shape) * (6 if full else 2)
    elif full:  # bfloat16 weights, and a gradient of the head before it is added
        copies = 2 * n + 4 * shape.head_parameters
    per_token = shape.layers * _layer_bytes(shape)
    if setup.checkpointing:
        per_token = shape.layers * 2 * shape.hidden + _layer_bytes(shape)
    return {
        "weights, gradients, optimizer": states / GB,
        "working copies": copies / GB,
        "activations": per_token * tokens / GB,
        "runtime": RUNTIME_GB,
    }


def trained_parameters(shape: Shape, setup: Setup) -> int:
    """Return how many parameters the optimizer moves."""
    return shape.lora_parameters(setup.lora_rank) if setup.lora_rank else shape.parameters


def state_bytes(shape: Shape, setup: Setup) -> float:
    """Return bytes of weights, gradients and optimizer, over all GPUs."""
    trained = trained_parameters(shape, setup) * setup.trained_bytes
    return trained + shape.parameters * setup.frozen_bytes


def reference_memory(
    shape: Shape, gpus: int, tokens: float, setup: Setup = FULL, *, models: int = 2
) -> dict[str, float]:
    """Return GB per GPU of the reference pass: the models, and one layer's activations.

    On several GPUs the policy is sharded, and each has the reference whole in bfloat16.
    """
    size = setup.frozen_bytes or 4
    held = models * size if gpus == 1 else size / gpus + 2
    return {
        "policy and reference": held * shape.parameters / GB,
        "working copies": 2 * shape.parameters / GB if gpus == 1 else 0.0,
        "activations": _layer_bytes(shape) * tokens / GB,
        "runtime": RUNTIME_GB,
    }


def _whole_at_once(shape: Shape) -> int:
    """Return parameters that FSDP gathers at a time: two layers and the embeddings."""
    return 2 * shape.layer_parameters + shape.head_parameters * (1 if shape.tied else 2)


def _layer_bytes(shape: Shape) -> int:
    """Return bytes of one layer's activations per token, in bfloat16."""
    return 2 * (10 * shape.hidden + 4 * shape.intermediate)


def fits(memory: dict[str, float], device: Device) -> bool:
    """Say whether this fits into one GPU."""
    return sum(memory.values()) <= USABLE * device.gigabytes


def remedies(shape: Shape, gpus: int, device: Device, budget: int, least: int) -> list[str]:
    """Return what would make training fit: other set-ups on these GPUs, or more GPUs."""
    found = []
    if least < budget and fits(training_memory(shape, gpus, least), device):
        found.append(f"token_budget = {least}")
    for group in ALTERNATIVES:
        names = [s.name for s in group if fits(training_memory(shape, gpus, budget, s), device)]
        found += names[:1]
    for count in (2**k for k in range(1, 11)):
        if count > gpus and fits(training_memory(shape, count, budget), device):
            found.append(f"{count} x {device.name}")
            break
    return found


# --- time


def training_flops(shape: Shape, length: float, target_share: float, setup: Setup = FULL) -> float:
    """Return FLOPs per token of a training step: 6 per parameter, the head at targets only.

    With LoRA frozen matrices have no gradient of their own: 4, and 6 for the adapters.
    Activation checkpointing adds a forward pass of the layers.
    """
    matrices = shape.body_parameters + shape.head_parameters * target_share
    rest = 3 * _attention_flops(shape, length)
    if setup.checkpointing:
        rest += forward_flops(shape, length, 0.0)
    if setup.lora_rank == 0:
        return 6 * matrices + rest
    return 4 * matrices + 6 * shape.lora_parameters(setup.lora_rank) + rest


def forward_flops(shape: Shape, length: float, target_share: float) -> float:
    """Return FLOPs per token of a forward pass."""
    matrices = shape.body_parameters + shape.head_parameters * target_share
    return 2 * matrices + _attention_flops(shape, length)


def _attention_flops(shape: Shape, length: float) -> float:
    """Scores and weighted sum over half of the length on average, for one token, forward."""
    return 2 * length * shape.layers * shape.heads * shape.head_dim


def compute_seconds(flops: Range, gpus: int, device: Device, mfu: tuple[float, float]) -> Range:
    """Return the time of so many FLOPs spread over the GPUs."""
    peak = gpus * device.teraflops * 1e12
    return Range(flops.low / peak / mfu[1], flops.high / peak / mfu[0])


def decode_rate(
    shape: Shape, device: Device, sequences: float, context: float, gpus: int = 1
) -> float:
    """Return tokens per second of one engine with `sequences` in flight.

    A step takes 1 ms, and the longer of reading the weights and multiplying with them, and
    reading keys and values of `context` tokens for every sequence.
    """
    share = gpus if gpus == 1 else gpus * TENSOR_PARALLEL_SHARE
    bandwidth = device.bandwidth * 1e9 * DECODE_BANDWIDTH * share
    peak = device.teraflops * 1e12 * DECODE_PEAK * share
    n = shape.body_parameters + shape.head_parameters
    weights = max(2 * n / bandwidth, 2 * n * sequences / peak)
    return sequences / (
        DECODE_OVERHEAD + weights + sequences * context * shape.kv_bytes / bandwidth
    )


def best_engine(
    shape: Shape, gpus: int, device: Device, lengths: Lengths, max_tokens: int, most: int
) -> Engine | None:
    """Return the fastest way to spread engines over the GPUs, None if the model fits none.

    Slots are what keys and values of mean length leave room for, at most `most`.
    """
    candidates = [
        engine
        for each in (1, 2, 4, 8, 16)
        if each <= gpus
        and (engine := _engine(shape, gpus, device, lengths, max_tokens, most, each)) is not None
    ]
    return max(candidates, key=lambda e: e.count * e.rate, default=None)


def _engine(
    shape: Shape,
    gpus: int,
    device: Device,
    lengths: Lengths,
    max_tokens: int,
    most: int,
    each: int,
) -> Engine | None:
    weights = 2 * shape.parameters / each / GB
    room = (USABLE * device.gigabytes - weights - RUNTIME_GB) * each * GB
    if room < shape.kv_bytes * max_tokens:
        return None
    slots = min(most, MOST_SLOTS, max(1, int(room / (shape.kv_bytes * lengths.trajectory))))
    context = (lengths.prompt + lengths.trajectory) / 2
    cache = slots * shape.kv_bytes * lengths.trajectory / each / GB
    memory = {"weights": weights, f"keys and values, {slots} slots": cache, "runtime": RUNTIME_GB}
    rate = decode_rate(shape, device, slots, context, each)
    return Engine(gpus // each, each, slots, rate, memory)


def sampling_seconds(
    shape: Shape,
    device: Device,
    engine: Engine,
    lengths: Lengths,
    trajectories: int,
    prompts: int,
    cores: int | None,
) -> Range:
    """Return the time to sample: decoding and prefill, or the interpreter where it is slower.

    A prompt is prefilled once for all its samples; later turns prefill the observation and
    a block of 16 tokens.
    """
    in_flight = max(1.0, min(engine.slots, trajectories / engine.count))
    context = (lengths.prompt + lengths.trajectory) / 2
    rate = decode_rate(shape, device, in_flight, context, engine.gpus_each) * engine.count
    calls = trajectories * (lengths.turns - 1)
    prefilled = prompts * lengths.prompt + calls * (lengths.observation + 16)
    flops = prefilled * forward_flops(shape, lengths.trajectory, 0)
    peak = engine.count * engine.gpus_each * device.teraflops * 1e12 * DECODE_PEAK
    seconds = trajectories * lengths.generated / rate + flops / peak
    busy = Range(seconds / ENGINE_SHARE[1], seconds / ENGINE_SHARE[0])
    if cores is None:
        return busy
    return Range(
        max(busy.low, calls * CELL_SECONDS[0] / cores),
        max(busy.high, calls * CELL_SECONDS[1] / cores),
    )
