"""One model on one or several devices, on accelerate.

Each process trains on its share of a step's examples. The model is whole in each of them
(DDP) or shared out over them (FSDP2). FSDP2 is torch's `fully_shard`, called here and not by
accelerate, whose plug-in passes over processes on CPUs without a word.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from accelerate.utils.fsdp_utils import disable_fsdp_ram_efficient_loading
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from learners.numerics.attention import can_pack
from learners.numerics.logprobs import summed_logps, token_logps
from learners.numerics.model_check import head_use
from learners.preferences import Example, Sample
from learners.settings import TrainConfig
from mathenv.errors import ConfigError, MathEnvError
from mathenv.locking import hold

T = TypeVar("T")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Devices:
    """The processes that train together; one, where none were launched.

    Every process must call `gather`, `together` and `wait` equally often.
    """

    def __init__(self) -> None:
        # Each process reads the whole checkpoint: transformers would give empty weights to
        # all but the first.
        disable_fsdp_ram_efficient_loading()
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",  # `Policy` does it; accelerate's is fixed for a process
            # Buffers are constants, and sending them would make processes wait in passes
            # that not all of them have.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        self.rank: int = self.accelerator.process_index
        self.count: int = self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def gather(self, item: T) -> list[T]:
        """Return what all processes gave, by rank. Tensors must be on the CPU."""
        found: list[T] = gather_object([item])
        return found

    def together(self, work: Callable[[], T]) -> list[T]:
        """Run each process's work and gather the results; one's error is raised in all.

        Raises:
            MathEnvError: the first process's that had one.
        """
        mine: T | MathEnvError
        try:
            mine = work()
        except MathEnvError as error:
            mine = error
        found: list[T] = []
        for one in self.gather(mine):
            if isinstance(one, MathEnvError):
                raise one
            found.append(one)
        return found

    @contextmanager
    def holding(self, folder: Path) -> Iterator[None]:
        """Keep other runs out of a folder; the first process does it for all.

        Raises:
            ConfigError: another run is in it.
        """
        with ExitStack() as stack:

            def lock() -> None:
                if self.is_main:
                    stack.enter_context(hold(folder))

            self.together(lock)
            yield

    def wait(self) -> None:
        """Return when every process is here."""
        self.accelerator.wait_for_everyone()

    def close(self) -> None:
        """End the connection to the other processes."""
        self.accelerator.state.destroy_process_group()


def shares(examples: Sequence[Example], count: int) -> list[list[Example]]:
    """Deal examples to processes so that each has about as many tokens."""
    if count == 1:
        return [list(examples)]
    dealt: list[list[Example]] = [[] for _ in range(count)]
    tokens = [0] * count
    for example in sorted(examples, key=lambda e: e.tokens, reverse=True):
        least = tokens.index(min(tokens))
        dealt[least].append(example)
        tokens[least] += example.tokens
    return dealt


class LogProbModel(torch.nn.Module):
    """All that a forward pass does with weights, as one module.

    The head is applied outside the model's own forward, and DDP and FSDP2 act when a module
    is called: weights that are used beside such a call would be shards, or not averaged.
    """

    def __init__(self, model: Any, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self._dtype = dtype

    def forward(self, samples: Sequence[Sample], per_token: bool) -> Tensor:
        evaluate = token_logps if per_token else summed_logps
        with autocast(self.model.device, self._dtype):
            return evaluate(self.model, samples)


def autocast(
    device: torch.device, precision: torch.dtype | str | None
) -> AbstractContextManager[None]:
    """Compute in a dtype, or in a `TrainConfig.precision`, what can be computed in it."""
    dtype = _DTYPES.get(precision) if isinstance(precision, str) else precision
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


class Policy:
    """A model in training on all devices.

    `parameters` are those that the optimizer moves: shards, where the model is shared out.
    """

    def __init__(self, model: Any, devices: Devices, config: TrainConfig) -> None:
        _check_launch(config)
        self.model, self._devices = model, devices
        layers = _layers(model, config)
        for layer in layers[:: config.recompute_every] if config.recompute_every else ():
            _recompute(layer)
        dtype = _DTYPES.get(config.precision)
        self.sharded = devices.count > 1 and shards(config)
        # What shards are gathered in, and so all is computed in; others compute in autocast.
        self.gathered = dtype if self.sharded else None
        self._module: Any
        if self.sharded:
            head_use(model)  # while the weights are whole
            self._module = _shard(LogProbModel(model), layers, devices, dtype)
        else:
            with warnings.catch_warnings():  # torch's new name is not accelerate's yet
                warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
                self._module = devices.accelerator.prepare_model(LogProbModel(model, dtype))
            head_use(model)  # where it computes: a large one takes long on the CPU
        self.parameters = [p for p in self._module.parameters() if p.requires_grad]

    @property
    def packed(self) -> bool:
        """Say whether sequences are laid behind each other, without padding."""
        return can_pack(self.model)

    def logps(self, samples: Sequence[Sample], *, per_token: bool = False) -> Tensor:
        """Return log-probs of one pass, as `summed_logps` or `token_logps` do.

        Where the model is shared out, every process must make as many passes.
        """
        found: Tensor = self._module(samples, per_token)
        return found

    def backward(self, *, last: bool) -> AbstractContextManager[None]:
        """Return the context of a pass and its backward: gradients are sent in the `last`.

        Shards are sent in every pass: kept until the last they would be whole gradients.
        """
        if last or self.sharded:
            return nullcontext()
        found: AbstractContextManager[None] = self._devices.accelerator.no_sync(self._module)
        return found

    def clip(self, norm: float) -> Tensor:
        """Scale the gradient down to a norm where it is larger; return what it was."""
        found = self._devices.accelerator.clip_grad_norm_(self.parameters, norm)
        return found.full_tensor() if isinstance(found, DTensor) else found

    def weights(self) -> dict[str, Tensor] | None:
        """Return the whole weights in the main process, None where the model has them itself.

        Every process must call it.
        """
        if not self.sharded:
            return None
        whole: dict[int, Tensor] = {}  # tied weights once
        state = self.model.state_dict(keep_vars=True)
        for value in state.values():
            if id(value) not in whole:
                whole[id(value)] = self._whole(value)
        return {name: whole[id(value)] for name, value in state.items()}

    def whole(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return an optimizer's state, whole in the main process. Every process must call it."""
        values = {
            index: {name: self._whole(value) for name, value in one.items()}
            for index, one in state["state"].items()
        }
        return {**state, "state": values}

    def part(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return this process's part of an optimizer's whole state."""
        values = {
            index: {name: _like(value, self.parameters[index]) for name, value in one.items()}
            for index, one in state["state"].items()
        }
        return {**state, "state": values}

    def _whole(self, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        return full.detach().cpu() if self._devices.is_main else None


def shards(config: TrainConfig) -> bool:
    """Say whether several processes share the model out, by config or launcher."""
    return config.shard or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _check_launch(config: TrainConfig) -> None:
    said = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if said not in ("no", config.precision):
        raise ConfigError(
            f"accelerate was launched with {said}, but the settings say {config.precision}: "
            f"leave it out there and set precision = {said!r} (--precision {said})"
        )
    if os.environ.get("ACCELERATE_USE_FSDP", "false") == "true":
        version = os.environ.get("FSDP_VERSION", "2")
        if version != "2":
            raise ConfigError(f"this trainer has no FSDP{version}: launch with --fsdp_version 2")


def _layers(model: Any, config: TrainConfig) -> list[torch.nn.Module]:
    """Return the decoder's layers: what transformers says must not be split."""
    names = set(getattr(model, "_no_split_modules", None) or ())
    named = {n: m for n, m in model.named_modules() if type(m).__name__ in names}
    # The outermost: some models (Mamba) name a layer's parts as well.
    found = [m for n, m in named.items() if not any(n.startswith(f"{other}.") for other in named)]
    if not found and (config.recompute_every or shards(config)):
        raise ConfigError(
            f"{type(model).__name__} does not say what its layers are: leave out recompute_every "
            "and shard"
        )
    return found


def _recompute(layer: torch.nn.Module) -> None:
    # transformers' own switch acts in training mode only, and there is dropout in it.
    layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)


def _shard(
    module: LogProbModel,
    layers: Sequence[torch.nn.Module],
    devices: Devices,
    dtype: torch.dtype | None,
) -> FSDPModule:
    """Share out each layer, and the rest (embeddings, last norm, head) as one."""
    mesh = init_device_mesh(devices.device.type, (devices.count,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype and torch.float32)
    for part in (*layers, module):
        try:
            shared = fully_shard(part, mesh=mesh, mp_policy=policy)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            raise ConfigError(
                f"{type(module.model).__name__} cannot be shared out over processes ({error}): "
                "leave out shard, so that each has the whole model"
            ) from error
        if devices.device.type == "cpu":
            shared.set_force_sum_reduction_for_comms(True)  # gloo has no mean
    return shared


def _like(value: Any, parameter: Tensor) -> Any:
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    # Every process has read the same file, so nothing needs to be sent.
    return distribute_tensor(
        value.to(parameter.device), parameter.device_mesh, parameter.placements, src_data_rank=None
    )
