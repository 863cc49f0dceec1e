"""vLLM in this process as an engine: token ids in and out of its asynchronous v1 engine.

Needs a `vllm` package (extra `vllm`; agents/README.md says how to install the build for
CPUs). The engine core runs in a process of its own and batches continuously, so which
requests share a step depends on timing: a seed repeats a sample only up to the last bits
of floating-point sums.
"""

from __future__ import annotations

import gc
import itertools
import os
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch

from agents.base import Completion, CompletionRequest
from agents.models.location import check_model
from agents.models.threaded import ThreadedModel, finish_reason
from mathenv.errors import ConfigError, InfraError, install_hint
from mathenv.settings import Count, Positive, PositiveShare, check_settings

_KV_SPACE = "VLLM_CPU_KVCACHE_SPACE"
_GIB = 1 << 30
_SHUTDOWN_SECONDS = 20


@dataclass(frozen=True, slots=True)
class VLLMOptions:
    """How vLLM runs the model.

    Args:
        dtype: type of weights and activations.
        max_sequences: requests decoded together at most; more of them wait.
        block_size: tokens per block of the prefix cache, which finds whole blocks only.
            Left out: vLLM's choice on a GPU; 32 on a CPU, where its own 128 would be longer
            than most prompts.
        kv_cache_gib: memory for keys and values. Left out: on a GPU what `gpu_memory`
            leaves, on a CPU the variable VLLM_CPU_KVCACHE_SPACE, or 1.
        gpu_memory: share of a GPU's memory to use.
        tensor_parallel: GPUs that share one model.
        context: most tokens of a request, prompt included. Left out: what the model allows.
        eager: do not compile. Left out: compile on a GPU, where it pays.
    """

    dtype: str = "auto"
    max_sequences: Count = 256
    block_size: Count | None = None
    kv_cache_gib: Positive | None = None
    gpu_memory: PositiveShare = 0.9
    tensor_parallel: Count = 1
    context: Count | None = None
    eager: bool | None = None

    def __post_init__(self) -> None:
        check_settings(self)


class VLLMModel(ThreadedModel):
    """Engine over `vllm.v1.engine.async_llm.AsyncLLM`; implements `LanguageModel`.

    `context` is the most tokens of a request, prompt included; `slots` is how many requests
    are decoded together.
    """

    def __init__(self, engine_args: Any, *, name: str) -> None:
        super().__init__(name)
        self._vllm, self._inputs = import_module("vllm"), import_module("vllm.inputs")
        self._numbers = itertools.count()
        others = set(active_children())
        try:
            self._engine = self._thread.wait(self._start(engine_args))
        except BaseException:
            self._thread.close()
            raise
        self._processes = [child for child in active_children() if child not in others]
        self.context: int = self._engine.model_config.max_model_len
        self.slots: int = engine_args.max_num_seqs

    @classmethod
    def load(
        cls, path: str | Path, *, name: str | None = None, options: VLLMOptions | None = None
    ) -> VLLMModel:
        """Start an engine on a folder or hub id: seconds to minutes.

        Raises:
            ConfigError: vLLM is not installed, or cannot run this model with these options.
        """
        check_model(path)
        _give_back_gpu_memory()
        try:
            return cls(_engine_args(path, options or VLLMOptions()), name=name or str(path))
        except (ValueError, RuntimeError, OSError) as error:
            raise ConfigError(
                f"vLLM cannot run {path}: {error} (its own messages are above; on a CPU too "
                f"small a {_KV_SPACE} is one cause, head sizes its kernels lack another)"
            ) from error

    async def _start(self, engine_args: Any) -> Any:
        module = import_module("vllm.v1.engine.async_llm")
        return module.AsyncLLM.from_engine_args(engine_args)

    async def _answer(self, request: CompletionRequest) -> Completion:
        room = self.context - len(request.ids)
        if room < 1:
            raise InfraError(
                f"{self.name}: a prompt of {len(request.ids)} tokens does not fit into the "
                f"model's {self.context}; lower max_tokens"
            )
        params = self._params(request, min(request.max_new_tokens, room))
        prompt = self._inputs.tokens_input(list(request.ids))
        last = None
        async for output in self._engine.generate(prompt, params, str(next(self._numbers))):
            last = output
        return _completion(self.name, last)

    def _params(self, request: CompletionRequest, max_tokens: int) -> Any:
        return self._vllm.SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed if request.temperature > 0 else None,
            max_tokens=max_tokens,
            logprobs=0,  # of the sampled token alone
            # Nothing but the request ends a turn: not the model's own list either.
            ignore_eos=True,
            stop_token_ids=sorted(request.stop_ids),
            stop=list(request.stop_strings),
            detokenize=bool(request.stop_strings),
            include_stop_str_in_output=True,
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY,
        )

    async def _shut_down(self) -> None:
        engine, self._engine = self._engine, None  # its destructor would run at exit, too late
        engine.shutdown(timeout=_SHUTDOWN_SECONDS)
        for process in self._processes:  # it may only have been told: its memory is not free yet
            process.join(_SHUTDOWN_SECONDS)


def _completion(name: str, output: Any) -> Completion:
    if output is None or not output.finished:
        raise InfraError(f"{name}: vLLM ended a request without an answer")
    (answer,) = output.outputs
    ids = tuple(answer.token_ids)
    return Completion(
        ids,
        tuple(float(at[token].logprob) for at, token in zip(answer.logprobs, ids, strict=True)),
        finish_reason(name, answer.finish_reason, answer.stop_reason),
    )


def _engine_args(path: str | Path, options: VLLMOptions) -> Any:
    if find_spec("vllm") is None:
        raise ConfigError(
            f"the vLLM engine needs the package vllm: {install_hint('vllm')}, on a machine "
            "with a GPU; agents/README.md says how to install its build for CPUs"
        )
    # Read when vLLM is first imported. It reports its use to its authors unless told not to.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    cpu = import_module("vllm.platforms").current_platform.is_cpu()
    return import_module("vllm").AsyncEngineArgs(
        model=str(path),
        dtype=options.dtype,
        max_num_seqs=options.max_sequences,
        max_model_len=options.context,
        block_size=options.block_size or (32 if cpu else None),
        kv_cache_memory_bytes=kv_cache_bytes(options, cpu=cpu),
        gpu_memory_utilization=options.gpu_memory,
        tensor_parallel_size=options.tensor_parallel,
        enforce_eager=cpu if options.eager is None else options.eager,
        enable_prefix_caching=True,
        # On a CPU vLLM takes back a seeded request's random number after each part of a prompt,
        # which torch's generator for CPUs cannot do: the engine would die (release 0.32).
        # Without parts a step has room for the longest request, and further ones wait.
        enable_chunked_prefill=False if cpu else None,
        logprobs_mode="raw_logprobs",  # before temperature and top-p
        generation_config="vllm",  # no sampling defaults from the model's folder
        disable_log_stats=True,
    )


def kv_cache_bytes(options: VLLMOptions, *, cpu: bool) -> int | None:
    """Return the size of the cache, None for what vLLM takes of a GPU.

    On a CPU its own default would be most of the memory, so there is one here.

    Raises:
        ConfigError: a size that cannot be.
    """
    if options.kv_cache_gib is not None:
        if options.kv_cache_gib <= 0:
            raise ConfigError(f"kv_cache_gib must be more than 0, got {options.kv_cache_gib}")
        os.environ.pop(_KV_SPACE, None)  # vLLM would prefer it
        return int(options.kv_cache_gib * _GIB)
    if not cpu:
        return None
    told = os.environ.get(_KV_SPACE, "")
    if told and (not told.isdecimal() or int(told) < 1):
        raise ConfigError(f"{_KV_SPACE} must be a whole number of GiB, at least 1, not {told!r}")
    return int(told or 1) * _GIB


def _give_back_gpu_memory() -> None:
    """Let the engine's process have what training in this one left in torch's cache."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
