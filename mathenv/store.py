"""Trajectories on disk: one JSON object per line, appended, safe against a kill.

`to_json` and `from_json` are pure and follow the dataclasses of `mathenv.types`, so a field
added there with a default is stored, and files without it stay readable.
"""

from __future__ import annotations

import json
import operator
import os
import threading
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Union

from mathenv.errors import ConfigError, DataError
from mathenv.files import writing
from mathenv.locking import lock_file
from mathenv.types import SCHEMA_VERSION, Trajectory

FILE_NAME = "trajectories.jsonl"


class TrajectoryStore:
    """An append-only file of finished trajectories, held by one process at a time.

    `path` is a `.jsonl` file or a folder (then `trajectories.jsonl` in it); both are made
    where missing. Opening reads the file once: a last line that a kill cut short is cut
    off, anything else that is not a trajectory is an error, and the keys of what is there
    are kept, so that a collector resumes with `if key not in store`. Thread safe.

    Args:
        path: file or folder.
        fsync: wait for the disk at each append. Without it a killed process loses nothing,
            but a power cut may lose the last trajectories.

    Raises:
        ConfigError: another process, or another store in this one, holds the file.
        StorageError: the file cannot be made or opened.
        DataError: naming file and line, for a bad line, another schema or a key seen twice.
    """

    def __init__(self, path: str | os.PathLike[str], *, fsync: bool = False) -> None:
        self.path = _file(path)
        self._fsync = fsync
        self._guard = threading.Lock()
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered and O_APPEND: one write call per trajectory, always at the end.
            self._stream: BinaryIO = open(self.path, "a+b", buffering=0)  # noqa: SIM115 - until close()
        try:
            if not lock_file(self._stream):
                raise ConfigError(
                    f"{self.path} is being written by another collector: wait for it or choose "
                    "another path"
                )
            _mend(self._stream)
            self._keys = {trajectory.key: None for trajectory in read_trajectories(self.path)}
        except BaseException:
            self._stream.close()
            raise

    def append(self, trajectory: Trajectory) -> None:
        """Write one finished trajectory. It is on file when this returns.

        Raises:
            ConfigError: the store is closed.
            StorageError: the disk is full, or fails. The file is as it was.
            DataError: the store holds this key already, or the trajectory holds what JSON
                cannot (see `to_json`).
        """
        line = _line(trajectory)
        with self._guard:
            if self._stream.closed:
                raise ConfigError(f"{self.path} is closed: open a new TrajectoryStore")
            if trajectory.key in self._keys:
                raise DataError(
                    f"{self.path} already holds {trajectory.key!r}: check `key in store` before"
                )
            with writing(self.path):
                _write(self._stream, line)
                if self._fsync:
                    os.fsync(self._stream.fileno())
            self._keys[trajectory.key] = None

    def keys(self) -> tuple[str, ...]:
        """Return the keys of all stored trajectories, in the order of the file."""
        with self._guard:
            return tuple(self._keys)

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        with self._guard:
            self._stream.close()

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Trajectory]:
        return read_trajectories(self.path)

    def __enter__(self) -> TrajectoryStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_trajectories(path: str | os.PathLike[str]) -> Iterator[Trajectory]:
    """Yield the trajectories of a file or folder, without the lock, while others write.

    A last line that is still being written is left out.

    Raises:
        DataError: naming file and line, for a missing file, a bad line, another schema or
            a key seen twice.
    """
    file = _file(path)
    seen: dict[str, int] = {}
    try:
        stream = open(file, "rb")  # noqa: SIM115 - closed by `with` below
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    with stream:
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                trajectory = from_json(json.loads(line))
            except (DataError, ValueError) as error:
                raise DataError(
                    f"{file}:{number}: {error}. Restore the file from a copy, or remove that line: "
                    "a run that goes on plays the episode again"
                ) from None
            first = seen.setdefault(trajectory.key, number)
            if first != number:
                raise DataError(
                    f"{file}:{number}: {trajectory.key!r} stands in line {first} already"
                )
            yield trajectory


def to_json(trajectory: Trajectory) -> dict[str, Any]:
    """Return the trajectory as plain dicts, lists, strings, numbers, None.

    `key` is added for readers in other languages.

    Raises:
        DataError: where `problem.metadata` holds what JSON would not give back as it was.
    """
    metadata = trajectory.problem.metadata
    try:
        faithful = not metadata or json.loads(json.dumps(dict(metadata))) == metadata
    except (TypeError, ValueError):
        faithful = False
    if not faithful:
        raise DataError(
            f"problem {trajectory.problem.id!r}: metadata must be plain JSON values (text keys, "
            f"lists and no tuples), got {metadata!r}"
        )
    return {"key": trajectory.key, **_encode(trajectory)}


def from_json(row: Mapping[str, Any]) -> Trajectory:
    """Return the trajectory that `to_json` wrote.

    Raises:
        DataError: naming the field, for another schema, unknown or missing fields, wrong
            types, or a `key` that does not belong to the rest.
    """
    if not isinstance(row, Mapping):
        raise DataError(f"expected an object, got {type(row).__name__}")
    if row.get("schema") != SCHEMA_VERSION:
        raise DataError(
            f"schema {row.get('schema')!r} is not {SCHEMA_VERSION}: written by another version "
            "of mathenv, or no trajectory"
        )
    rest = {name: value for name, value in row.items() if name != "key"}
    trajectory: Trajectory = _decode(Trajectory, rest, "trajectory")
    if row.get("key", trajectory.key) != trajectory.key:
        raise DataError(f"key is {row['key']!r}, but the fields give {trajectory.key!r}")
    return trajectory


def write_atomic(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Replace the file at once: after a kill it is the old one or the new one, whole.

    What is no ordinary file, such as /dev/stdout or a pipe, is written to as it is.

    Raises:
        StorageError: it cannot be written; the old one is as it was.
    """
    content = data.encode() if isinstance(data, str) else data
    with writing(path):
        target = Path(path)
        if target.exists() and not target.is_file() and not target.is_dir():
            target.write_bytes(content)
        else:
            _replace(Path(os.path.realpath(target)), content)


def _replace(target: Path, content: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(target.parent)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Bring the names in a folder to the disk, so that new ones survive a power cut."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def read_object(path: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """Return the JSON object in a file that this package wrote.

    Raises:
        DataError: the file cannot be read, was cut off or garbled, or holds something else; the
            message names it and ends with `remedy`, what to do.
    """
    try:
        found = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): {remedy}") from None
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        raise DataError(f"{path} is damaged ({error}): {remedy}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged (it holds no JSON object): {remedy}")
    return found


def _file(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    return file if file.suffix == ".jsonl" else file / FILE_NAME


def _mend(stream: BinaryIO) -> None:
    """Finish a last line that lacks only its newline; cut one off that is not whole."""
    start, tail = stream.seek(0, os.SEEK_END), b""
    while start and b"\n" not in tail:
        step = min(start, 1 << 16)
        start -= step
        stream.seek(start)
        tail = stream.read(step) + tail
    last = tail[tail.rfind(b"\n") + 1 :]
    if not last:
        return
    try:
        from_json(json.loads(last))
    except (DataError, ValueError):
        stream.truncate(stream.seek(0, os.SEEK_END) - len(last))
    else:
        _write(stream, b"\n")


def _write(stream: BinaryIO, line: bytes) -> None:
    """Write all of `line`, or leave the file as it was (a full disk, an interrupt)."""
    end = os.fstat(stream.fileno()).st_size
    rest = memoryview(line)
    try:
        while rest:
            rest = rest[stream.write(rest) :]
    except BaseException:
        stream.truncate(end)
        raise


def _line(trajectory: Trajectory) -> bytes:
    row = to_json(trajectory)
    try:
        # ASCII only: a lone surrogate in an output survives, and no reader breaks the
        # line at U+2028. NaN is not JSON and would poison training later.
        # NumPy's integers become plain ones.
        text = json.dumps(row, allow_nan=False, separators=(",", ":"), default=operator.index)
        return text.encode() + b"\n"
    except ValueError as error:
        raise DataError(f"{trajectory.key!r} cannot be stored: {error}") from None


def _encode(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple):
        plain = not value or isinstance(value[0], int | float | str)
        return list(value) if plain else [_encode(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


class _Mismatch(Exception):
    """A value that its annotation does not allow; every level adds its part of the path."""

    def __init__(self, problem: str) -> None:
        self.problem, self.path = problem, ""


_Decoder = Callable[[Any], Any]


def _decode(kind: Any, value: Any, where: str) -> Any:
    """Check `value` against the annotation `kind` and rebuild it; `where` names it in errors."""
    try:
        return _decoder(kind)(value)
    except _Mismatch as error:
        raise DataError(f"{where}{error.path} {error.problem}") from None


# Runs hold tens of thousands of trajectories of a hundred values each: what an annotation
# means is worked out once, not for every value.
@lru_cache
def _decoder(kind: Any) -> _Decoder:
    origin = typing.get_origin(kind)
    if origin in (Union, types.UnionType):  # only `X | None` occurs
        (inner,) = (arm for arm in typing.get_args(kind) if arm is not types.NoneType)
        decode = _decoder(inner)
        return lambda value: None if value is None else decode(value)
    if origin is tuple:
        return _tuple_decoder(typing.get_args(kind)[0])
    if is_dataclass(kind):
        return _fields_decoder(kind)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _enum_decoder(kind)
    expected = dict if origin is Mapping else kind

    def plain(value: Any) -> Any:
        if kind is float and type(value) is int:
            return float(value)
        _expect(expected, value)
        return value

    return plain


def _tuple_decoder(item: Any) -> _Decoder:
    simple = item in (int, float, str)
    decode = _decoder(item)

    def entries(values: Any) -> Any:
        _expect(list, values)
        if simple and all(type(entry) is item for entry in values):
            return tuple(values)
        found = []
        for index, value in enumerate(values):
            try:
                found.append(decode(value))
            except _Mismatch as error:
                error.path = f"[{index}]{error.path}"
                raise
        return tuple(found)

    return entries


def _enum_decoder(kind: type[StrEnum]) -> _Decoder:
    members = {member.value: member for member in kind}

    def member(value: Any) -> Any:
        if not isinstance(value, str) or value not in members:
            raise _Mismatch(f"is {value!r}, expected one of {list(members)}")
        return members[value]

    return member


def _fields_decoder(kind: Any) -> _Decoder:
    decoders = {name: _decoder(hint) for name, hint in typing.get_type_hints(kind).items()}
    required = frozenset(
        f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING
    )

    def rebuilt(values: Any) -> Any:
        _expect(dict, values)
        if unknown := values.keys() - decoders.keys():
            raise _Mismatch(f"has unknown fields: {', '.join(sorted(unknown))}")
        if missing := required - values.keys():
            raise _Mismatch(f"lacks {', '.join(sorted(missing))}")
        found = {}
        for name, value in values.items():
            try:
                found[name] = decoders[name](value)
            except _Mismatch as error:
                error.path = f".{name}{error.path}"
                raise
        return kind(**found)

    return rebuilt


def _expect(kind: type, value: Any) -> None:
    if type(value) is not kind:
        raise _Mismatch(f"must be {kind.__name__}, got {type(value).__name__}")
