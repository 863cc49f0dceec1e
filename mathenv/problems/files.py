"""Rows of a file: JSON lines, a JSON array, CSV, TSV or Parquet, each but Parquet also gzipped.

Text is UTF-8, with or without a byte order mark. Parquet needs pyarrow (extra `data`).
"""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mathenv.errors import ConfigError, DataError

_TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
SUFFIXES = (*_TEXT_SUFFIXES, ".parquet", *(f"{suffix}.gz" for suffix in _TEXT_SUFFIXES))
KINDS = "a .jsonl, .json, .csv, .tsv (each also .gz) or .parquet file"
_LONGEST_FIELD = 1 << 27  # characters of a CSV field; the module's own limit is 131,072


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


def file_suffix(path: str | Path) -> str:
    """Return the suffix that says what kind of rows a file holds, or "" for none we know."""
    name = str(path).lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default="")


def file_stem(path: Path) -> str:
    """Return a file's name without such a suffix."""
    suffix = file_suffix(path)
    return path.name[: -len(suffix)] if suffix else path.stem


def read_file(path: Path) -> Iterator[Row]:
    """Yield the rows of a file; its suffix says what it is, and .jsonl is what has none we know.

    Raises:
        DataError: naming the file and the line (or the row, where there are no lines).
        ConfigError: Parquet without pyarrow.
    """
    suffix = file_suffix(path)
    if suffix == ".parquet":
        yield from _parquet(path)
        return
    read = _READERS.get(suffix.removesuffix(".gz"), _json_lines)
    try:
        with _open(path, zipped=suffix.endswith(".gz")) as stream:
            yield from read(path, stream)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: cannot be read: {error}: save it as UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _open(path: Path, *, zipped: bool) -> TextIO:
    # `newline=""` keeps line ends inside of CSV fields; JSON takes any white space.
    raw = gzip.open(path) if zipped else path.open("rb")  # noqa: SIM115 - closed by the wrapper
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def _json_lines(path: Path, stream: TextIO) -> Iterator[Row]:
    index = 0
    for number, line in enumerate(stream, start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield Row(where, index, _object(where, _parse(where, line)))
            index += 1


def _json_array(path: Path, stream: TextIO) -> Iterator[Row]:
    """Read an array of objects. A .json file that holds JSON lines is common, and read as such."""
    text = stream.read()
    if not text.lstrip().startswith("["):
        yield from _json_lines(path, io.StringIO(text))
        return
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not valid JSON: {error}") from error
    for index, value in enumerate(values):
        where = f"{path}[{index}]"
        yield Row(where, index, _object(where, value))


def _parse(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: not valid JSON: {error}") from error


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _comma_separated(path: Path, stream: TextIO) -> Iterator[Row]:
    """Read CSV with a header. Without a comma in it, semicolons or tabs separate the columns."""
    header = stream.readline()
    stream.seek(0)
    others = [mark for mark in ";\t" if mark in header and "," not in header]
    yield from _table(path, stream, others[0] if others else ",")


def _tab_separated(path: Path, stream: TextIO) -> Iterator[Row]:
    yield from _table(path, stream, "\t")


def _table(path: Path, stream: TextIO, delimiter: str) -> Iterator[Row]:
    before = csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.DictReader(stream, delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if len(set(names)) < len(names):
            raise DataError(f"{path}:1: two columns have one name: {names}")
        reader.fieldnames = names
        for index, fields in enumerate(reader):
            where = f"{path}:{reader.line_num}"
            if None in fields or None in fields.values():
                raise DataError(f"{where}: has more or fewer fields than the header: {names}")
            yield Row(where, index, fields)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.reader.line_num}: not valid CSV: {error}") from error
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> Iterator[Row]:
    try:
        pyarrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"reading {path} needs the package pyarrow, which the extra `data` brings: "
            "pip install pyarrow, or save the file as .jsonl or .csv"
        ) from error
    index = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for fields in batch.to_pylist():
                    plain = {name: _plain(value) for name, value in fields.items()}
                    yield Row(f"{path}[{index}]", index, plain)
                    index += 1
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def _plain(value: Any) -> Any:
    """Return what JSON can say: dates and the like as text, a missing number as None."""
    if isinstance(value, float) and math.isnan(value):
        return None
    return json.loads(json.dumps(value, default=str))


_READERS: Mapping[str, Callable[[Path, TextIO], Iterator[Row]]] = {
    ".json": _json_array,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
}
