"""Stored trajectories as a Hugging Face data set.

`datasets.load_dataset("json", data_files="rollouts/trajectories.jsonl")` reads a store as it is.
It takes the columns' types from the first 10 MB, though: where a field is null or empty all
through those and filled later (`parent`, `tokens`, `metadata`), it stops with a cast error.
Naming the types avoids that, for files of any size:

    load_dataset("json", data_files=FILE, features=trajectory_features())

`problem.metadata` may hold anything, so it comes as a `Json` column. Needs datasets 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import StrEnum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from datasets import Features, Json, List, Value

from mathenv.types import Trajectory

_PLAIN = {bool: "bool", int: "int64", float: "float64", str: "string"}


def trajectory_features() -> Features:
    """Return the types of a stored trajectory's columns, derived from `mathenv.types`."""
    return Features({"key": Value("string"), **_feature(Trajectory)})


def _feature(kind: Any) -> Any:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        (kind,) = (arm for arm in get_args(kind) if arm is not NoneType)
        return _feature(kind)
    if origin is tuple:
        return List(_feature(get_args(kind)[0]))
    if origin is Mapping:
        return Json()
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return {field.name: _feature(hints[field.name]) for field in fields(kind)}
    return Value("string" if issubclass(kind, StrEnum) else _PLAIN[kind])
