"""Where problems come from: a registry of sources with one shape, and rows on disk or hub.

A source is a function `(split, *, data, limit, seed) -> Iterable[Problem]`. `data` is a
local file or folder (None: the source's own place, usually the Hugging Face hub). `limit`
and `seed` are hints for sources that generate problems; `load_problems` applies `limit`
itself to all others.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

from mathenv.errors import ConfigError, DataError, did_you_mean, install_hint
from mathenv.hub import offline, reachable
from mathenv.problems.files import KINDS, SUFFIXES, Row, read_file
from mathenv.types import Problem

ENTRY_POINT_GROUP = "mathenv.problems"


class ProblemSource(Protocol):
    """Loads one split. Raises `ConfigError` for wrong arguments, `DataError` for bad rows."""

    def __call__(
        self, split: str, *, data: Path | None, limit: int | None, seed: int
    ) -> Iterable[Problem]: ...


_SOURCES: dict[str, ProblemSource] = {}


def register_problems(name: str) -> Callable[[ProblemSource], ProblemSource]:
    """Register a problem source under `name`. Packages may use an entry point instead.

    The entry-point group is `mathenv.problems`; the object is the same kind of function.
    Raises `ConfigError` if the name is taken by another function.
    """

    def decorate(source: ProblemSource) -> ProblemSource:
        if _SOURCES.get(name, source) is not source:
            raise ConfigError(f"problem source {name!r} is already registered: choose another name")
        _SOURCES[name] = source
        return source

    return decorate


def problem_sources() -> tuple[str, ...]:
    """Return the names that `load_problems` knows, sorted."""
    installed = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    return tuple(sorted({*_SOURCES, *(entry.name for entry in installed)}))


def find_source(name: str) -> ProblemSource:
    """Return the source called `name`. Raises `ConfigError` listing the known names."""
    if name in _SOURCES:
        return _SOURCES[name]
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name):
        source: ProblemSource = entry.load()
        return source
    raise ConfigError(
        f"unknown problem source {name!r}{did_you_mean(name, problem_sources())}: use one of "
        f"{', '.join(problem_sources())}, or the path of {KINDS} or of a folder with <split>.jsonl"
    )


def select(problems: Sequence[Problem], limit: int | None, seed: int) -> tuple[Problem, ...]:
    """Return `limit` problems drawn with `seed`, in their original order (None: all).

    A draw, not the first ones: MATH is sorted by subject.
    """
    if limit is None or limit >= len(problems):
        return tuple(problems)
    chosen = sorted(random.Random(seed).sample(range(len(problems)), limit))
    return tuple(problems[index] for index in chosen)


def require_distinct_ids(problems: Iterable[Problem]) -> None:
    """Raise `DataError` if two problems share an id: runs resume by id."""
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise DataError(f"two problems have the id {problem.id!r}: make ids distinct")
        seen.add(problem.id)


def read_rows(
    split: str,
    data: Path | None,
    hub_id: str,
    configs: Sequence[str] = ("",),
    splits: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[tuple[str, Row]]:
    """Yield (config, row) of one split from a file, a folder or the hub.

    A folder holds `<split>.jsonl` (or .csv etc.), or the files of the hub repository (then it is
    read by `datasets`, exactly as the hub id would be). `config` is empty for files and for
    repositories with one configuration. `splits` says which of the repository's splits make
    up one of ours (left out: the one of the same name).

    Raises:
        ConfigError: missing data, or a split that the repository does not make up.
    """
    if data is not None:
        path = split_file(data, split)
        if path is not None:
            yield from (("", row) for row in read_file(path))
            return
    location = hub_id if data is None else str(data)
    if splits is not None and split not in splits:
        raise ConfigError(f"{location} has the splits {', '.join(splits)}, not {split!r}")
    for config in configs:
        for part in (split,) if splits is None else splits[split]:
            yield from ((config, row) for row in read_dataset(location, config, part))


def split_file(data: Path, split: str) -> Path | None:
    """Return the file of rows that `data` means, or None for another kind of folder.

    In a folder it is `<split>.jsonl`, else the first of the other suffixes of `SUFFIXES`.
    """
    if data.is_file():
        return data
    if not data.is_dir():
        raise ConfigError(f"{data} does not exist: give {KINDS}, or a folder")
    paths = (data / f"{split}{suffix}" for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def read_dataset(location: str, config: str, split: str, **options: Any) -> Iterator[Row]:
    """Yield the rows of one split that `datasets` finds at `location`, a hub id or a folder.

    An empty `config` is the repository's only one. `options` go to `load_dataset`.

    Raises:
        ConfigError: `datasets` is not installed, or cannot load this.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError as error:
        raise ConfigError(
            f"reading {location} needs the package `datasets`: {install_hint('data')}, "
            "or pass data= with a local .jsonl file or a folder with <split>.jsonl"
        ) from error
    try:
        # A builder's name, such as "json", comes with the places of its files.
        known = "data_files" in options or Path(location).exists()
        known = known or reachable(location, "dataset")
        with nullcontext() if known else offline():
            rows = datasets.load_dataset(location, config or None, split=split, **options)
    except (OSError, ValueError) as error:  # datasets' own errors derive from these two
        raise ConfigError(
            f"cannot load split {split!r} of {location} (config {config!r}): {error}. "
            "Without a connection pass data= with a local .jsonl file or a folder "
            "with <split>.jsonl or the repository's files"
        ) from error
    for index, fields in enumerate(rows):
        yield Row(f"{location} {config}/{split}[{index}]", index, fields)
