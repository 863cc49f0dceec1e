"""Reading back what Weights and Biases keeps offline."""

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_BLOCK = 32768


@dataclass
class Logged:
    """What one start of a command logged: the run's id and settings, and the rows in order."""

    id: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    x_axes: dict[str, str] = field(default_factory=dict)

    def values(self, key: str) -> list[Any]:
        return [row[key] for row in self.rows if key in row]

    @property
    def keys(self) -> set[str]:
        return {key for row in self.rows for key in row if not key.startswith("_")}


def records(file: Path) -> Iterator[Any]:
    """Yield wandb's own messages. The file has the format of LevelDB's logs, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = file.read_bytes()
    assert data.startswith(b":W&B")
    at, message = 7, b""
    while at < len(data):
        if _BLOCK - at % _BLOCK < 7:  # no room for a header: filled up
            at += _BLOCK - at % _BLOCK
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        message += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(message)
            message = b""


def read(file: Path) -> Logged:
    found = Logged()
    for record in records(file):
        if record.HasField("run"):
            found.id = record.run.run_id
            found.settings |= {c.key: json.loads(c.value_json) for c in record.run.config.update}
        elif record.HasField("history"):
            items = record.history.item
            found.rows.append(
                {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
            )
        elif record.HasField("metric"):
            found.x_axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
    return found


@pytest.fixture
def logged_offline() -> Callable[[Path], list[Logged]]:
    """Return what each start of a command in a folder logged, in order."""

    def in_folder(folder: Path) -> list[Logged]:
        files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
        return [read(file) for file in files]

    return in_folder
