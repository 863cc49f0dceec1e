"""Files that cannot be written: the error names the place, and what was there is as it was."""

import errno
import os
import threading
from pathlib import Path

import pytest

from mathenv.errors import MathEnvError, StorageError
from mathenv.files import check_writable, storage_error
from mathenv.store import TrajectoryStore, write_atomic


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "results.json"
    write_atomic(file, "old")
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"results\.json: No space left on device: make room"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["results.json"]


@pytest.mark.parametrize("below", ["file/x", "file/x/y.jsonl", "loop/x.jsonl"])
def test_places_that_cannot_be(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for attempt in (lambda p: write_atomic(p, ""), TrajectoryStore, check_writable):
        with pytest.raises(StorageError, match=r"choose another place|circle") as failed:
            attempt(tmp_path / below)
        assert str(tmp_path) in str(failed.value)
        assert isinstance(failed.value, MathEnvError)
        assert isinstance(failed.value, OSError)


def test_what_is_no_ordinary_file_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_atomic(pipe, "through")
    reader.join(60)
    assert read == ["through"]
    assert pipe.is_fifo()


def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "real" / "file.json")
    write_atomic(link, "1")
    assert link.is_symlink()
    assert (tmp_path / "real" / "file.json").read_text() == "1"


def test_trying_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("kept")
    check_writable(tmp_path / "old")
    check_writable(tmp_path / "new")
    assert (tmp_path / "old").read_text() == "kept"
    assert os.listdir(tmp_path) == ["old"]
    with pytest.raises(StorageError, match="it is a folder"):
        check_writable(tmp_path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("PytorchStreamWriter failed writing file data/0"),
            "make room",
        ),
        (Exception("Error while serializing: I/O error: ... (os error 28)"), "make room"),
        (OSError(errno.EROFS, ""), "Read-only file system"),
        (RuntimeError("size mismatch"), None),
        (OSError(errno.ECONNREFUSED, ""), None),
    ],
)
def test_what_libraries_say_of_a_failed_write(error: Exception, said: str | None) -> None:
    found = storage_error(error, "out/step-3")
    assert (found is None) is (said is None)
    if said:
        assert str(found).startswith("out/step-3: ")
        assert said in str(found)
