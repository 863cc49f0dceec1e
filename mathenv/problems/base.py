"""Where problems come from: a registry of sources with one shape, and rows on disk or hub.

A source is a function `(split, *, data, limit, seed) -> Iterable[Problem]`. `data` is a
local file or folder (None: the source's own place, usually the Hugging Face hub). `limit`
and `seed` are hints for sources that generate problems; `load_problems` applies `limit`
itself to all others.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mathenv.errors import ConfigError, DataError, did_you_mean, install_hint
from mathenv.hub import offline, reachable
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
        f"{', '.join(problem_sources())}, "
        "or the path of a .jsonl file or of a folder with <split>.jsonl"
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


@dataclass(frozen=True, slots=True)
class Row:
    """One raw record. `where` names the file and line (or data set and index) for errors."""

    where: str
    index: int
    fields: Mapping[str, Any]

    def text(self, *names: str) -> str:
        """Return the first of the columns `names` that is present, as non-blank text.

        Numbers are written as text. Raises `DataError` if all are missing or not text.
        """
        for name in names:
            value = self.fields.get(name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                raise DataError(f"{self.where}: column {name!r} must be text, not {value!r:.80}")
            if str(value).strip():
                return str(value).strip()
            raise DataError(f"{self.where}: column {name!r} is empty")
        wanted = " or ".join(repr(name) for name in names)
        raise DataError(f"{self.where}: no column {wanted}; found {sorted(self.fields)}")

    def optional(self, *names: str) -> str:
        """Return the first of the columns `names` that is present as text, or an empty string."""
        found = (self.fields.get(name) for name in names)
        return next((str(value) for value in found if value is not None), "")

    def identifier(self, prefix: str, *names: str) -> str:
        """Return `prefix/<id>`: of the first of the columns `names`, else the row's number.

        Published ids such as `60` or `test/precalculus/807.json` get the prefix; ids that
        have it already stay, so hub rows and local copies agree.
        """
        name = self.optional(*names).removesuffix(".json") or str(self.index)
        return name if name.startswith(f"{prefix}/") else f"{prefix}/{name}"


def read_jsonl(path: Path) -> Iterator[Row]:
    """Read one JSON object a line; blank lines are skipped. Raises `DataError` with the line."""
    try:
        with path.open(encoding="utf-8") as lines:
            index = 0
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield Row(f"{path}:{number}", index, _parse_object(path, number, line))
                    index += 1
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _parse_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{number}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}:{number}: expected a JSON object, found {type(value).__name__}")
    return value


def read_rows(
    split: str,
    data: Path | None,
    hub_id: str,
    configs: Sequence[str] = ("",),
    splits: Mapping[str, Sequence[str]] | None = None,
) -> Iterator[tuple[str, Row]]:
    """Yield (config, row) of one split from a file, a folder or the hub.

    A folder holds `<split>.jsonl`, or the files of the hub repository (then it is read by
    `datasets`, exactly as the hub id would be). `config` is empty for .jsonl files and for
    repositories with one configuration. `splits` says which of the repository's splits make
    up one of ours (left out: the one of the same name).

    Raises:
        ConfigError: missing data, or a split that the repository does not make up.
    """
    if data is not None:
        path = split_file(data, split)
        if path is not None:
            yield from (("", row) for row in read_jsonl(path))
            return
    location = hub_id if data is None else str(data)
    if splits is not None and split not in splits:
        raise ConfigError(f"{location} has the splits {', '.join(splits)}, not {split!r}")
    for config in configs:
        for part in (split,) if splits is None else splits[split]:
            yield from ((config, row) for row in read_dataset(location, config, part))


def split_file(data: Path, split: str) -> Path | None:
    """Return the .jsonl file that `data` means, or None for another kind of folder."""
    if data.is_file():
        return data
    if not data.is_dir():
        raise ConfigError(f"{data} does not exist: give a .jsonl file or a folder")
    path = data / f"{split}.jsonl"
    return path if path.is_file() else None


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
