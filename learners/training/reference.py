"""Log-probabilities under policies that are not trained, evaluated once and kept on disk.

A value is found by everything that it was computed from: the bytes of the weights, the token
ids, masks and weights of the samples that shared its forward pass, the kind of number, the
device and the code. So nothing is ever out of date, and what is found has the same bits as
what would be computed.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig
from transformers.utils import CONFIG_NAME, cached_file

from agents.models.hf import load_causal_lm
from learners.numerics import attention, batching, head, logprobs, model_check
from learners.numerics.attention import packs
from learners.numerics.logprobs import evaluate_once, summed_logps, token_logps
from learners.numerics.model_check import check_lengths
from learners.preferences import Example, Sample
from mathenv.errors import DataError, MathEnvError, StorageError
from mathenv.notices import notice

Load = Callable[[], AbstractContextManager[Any]]

_DISK = frozenset(
    {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN}
)
_WEIGHTS = ("*.safetensors", "*.bin")
# Whoever changes how log-probs are computed need not think of the cache.
_CODE = (
    attention.__file__,
    batching.__file__,
    head.__file__,
    logprobs.__file__,
    model_check.__file__,
    __file__,
)


class LogProbCache:
    """Tensors by key in one SQLite file, for several processes at once.

    A kill leaves each value whole or not there. The file may be deleted at any time between
    runs: what it held is computed again.

    A value that is not what was stored counts as missing, and a notice says so.

    Raises:
        DataError: the file is something else, or broken. StorageError: the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # isolation_level: every statement is a transaction of its own.
            self._database = sqlite3.connect(path, timeout=60, isolation_level=None)
        except sqlite3.OperationalError as error:
            raise self._explained(error) from error
        try:
            self._run("CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, value BLOB)")
        except (DataError, StorageError):
            self.close()
            raise

    def get(self, key: bytes) -> Tensor | None:
        """Return the tensor of this key, on the CPU, or None where it is not there, or damaged."""
        rows = self._run("SELECT value FROM logps WHERE key = ?", key)
        if not rows:
            return None
        found = _unsealed(key, rows[0][0])
        if found is None:
            notice(f"{self._path} holds a damaged value, which is computed again")
        return found

    def put(self, key: bytes, logps: Tensor) -> None:
        """Keep a tensor. It is on file when this returns."""
        value = safetensors.torch.save({"logps": logps.detach().cpu().contiguous()})
        sealed = _digest(key, value) + value
        self._run("INSERT OR REPLACE INTO logps VALUES (?, ?)", key, sealed)

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        self._database.close()

    def __enter__(self) -> LogProbCache:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _run(self, statement: str, *values: bytes) -> list[Any]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise self._explained(error) from error

    def _explained(self, error: sqlite3.DatabaseError) -> MathEnvError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says where exactly
        if code in _DISK:
            return StorageError(
                f"{self._path} could not be written or read: {error}. Make room, or make it "
                "writable, and give the same command again"
            )
        return DataError(
            f"{self._path}: {error}. It keeps log-probs that are computed again if you "
            "delete it, while no run uses it"
        )


def _digest(key: bytes, value: bytes) -> bytes:
    return hashlib.sha256(key + value).digest()


def _unsealed(key: bytes, sealed: object) -> Tensor | None:
    """Return a stored tensor if it is what was stored under this key."""
    if not isinstance(sealed, bytes):
        return None
    size = hashlib.sha256().digest_size
    digest, value = sealed[:size], sealed[size:]
    if digest != _digest(key, value):
        return None
    found: Tensor = safetensors.torch.load(value)["logps"]
    return found


@torch.no_grad()
def frozen_logps(
    policy: Path,
    examples: Sequence[Example],
    file: Path,
    *,
    budget: int,
    per_token: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
    load: Load | None = None,
) -> dict[Sample, Tensor]:
    """Return the log-probability of every sample and control, from `file` where it is known.

    The same as `reference_logps` of the loaded policy, bit for bit. The model is loaded when
    the first forward pass is needed, and released before this returns.

    Args:
        policy: a model folder or hub id.
        file: of the cache; made where missing.
        dtype: of the weights in memory.
        load: gives the policy, of this dtype on this device, in a context. Default: reads it.

    Raises:
        TrainingError: log-probs are not finite; the message names the trajectories.
        DataError: the cache cannot be read, or the folder holds no weights.
    """
    load = load or (lambda: nullcontext(load_causal_lm(policy, dtype=dtype, device=device)))
    evaluate = token_logps if per_token else summed_logps
    with LogProbCache(file) as kept, ExitStack() as stack:
        model = cache(partial(_enter, stack, load))
        if not policy.is_dir():  # a hub id: only once it is loaded are its files here for sure
            model()
        config = AutoConfig.from_pretrained(policy)
        every = [s for e in examples for s in (*e.samples, e.control) if s]
        check_lengths(config, every, policy)
        packed = packs(config)
        setting = _setting(policy, dtype, device) | {"packed": packed, "per_token": per_token}

        def remembered(samples: Sequence[Sample]) -> Tensor:
            key = _key(setting, samples)
            found = kept.get(key)
            if found is None:
                found = evaluate(model(), samples)
                kept.put(key, found)
            return found.to(device)

        return evaluate_once(remembered, examples, budget=budget, packed=packed)


def weights_hash(policy: Path) -> str:
    """Return a hash of the content of a model's weights and configuration.

    Raises:
        DataError: the folder holds no weights.
    """
    folder = policy
    if not policy.is_dir():
        folder = Path(str(cached_file(str(policy), CONFIG_NAME))).parent
    weights = sorted(f for pattern in _WEIGHTS for f in folder.glob(pattern))
    if not weights:
        raise DataError(f"{policy} holds no weights ({' or '.join(_WEIGHTS)})")
    digest = hashlib.sha256()
    for file in (folder / CONFIG_NAME, *sorted(folder.glob("*.index.json")), *weights):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _enter(stack: ExitStack, load: Load) -> Any:
    return stack.enter_context(load())


def _setting(policy: Path, dtype: str, device: str) -> dict[str, Any]:
    """Return all that a log-prob depends on beside the samples."""
    kind = torch.device(device).type
    autocast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
    if kind == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:  # sums are cut at other places for another number of threads
        processor = f"{torch.backends.cpu.get_cpu_capability()} x {torch.get_num_threads()}"
    return {
        "weights": weights_hash(policy),
        "dtype": dtype,
        "autocast": autocast,
        "device": f"{kind} {processor}",
        "precision": torch.get_float32_matmul_precision(),
        "versions": [torch.__version__, transformers.__version__],
        "code": [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in _CODE],
    }


def _key(setting: dict[str, Any], samples: Sequence[Sample]) -> bytes:
    digest = hashlib.sha256(json.dumps(setting, sort_keys=True).encode())
    for sample in samples:
        digest.update(repr((sample.ids, sample.mask, sample.weights)).encode())
    return digest.digest()
