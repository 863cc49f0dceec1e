"""A disk that is full or read-only while a stage trains: one sentence, and nothing is lost."""

import errno
import os
import re
import resource
import shutil
import sqlite3
import subprocess
from contextlib import contextmanager

import pytest
import torch

from learners import make_learner
from learners.learner import LearnerConfig
from learners.preferences import PairRules
from learners.training.checkpoint import step_folders, writing
from learners.training.reference import LogProbCache
from learners.training.train import Stage, TrainConfig, train
from mathenv import notices
from mathenv.errors import ConfigError, StorageError

CONFIG = TrainConfig(lr=3e-3, batch_size=4, checkpoints=3)


@pytest.fixture(scope="module")
def given(make_trajectory):
    learner = make_learner("mdpo", LearnerConfig(pairs=PairRules(per_problem=2)))
    trajectories = [make_trajectory(f"p{p}", i < 2, sample=i) for p in range(6) for i in range(4)]
    examples, _ = learner.examples(trajectories, seed=0)
    return learner, examples


@pytest.fixture(scope="module")
def whole(given, policy, reference, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "train"
    train(*given, CONFIG, Stage(policy, out, reference))
    return {p.name: (p / "model.safetensors").read_bytes() for _, p in step_folders(out)}


@contextmanager
def largest_file(size):
    """Files may grow to so many bytes: as on a full disk, writing ends in the middle."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def checked(caught, out):
    said = str(caught.value)
    assert str(out) in said
    assert re.search("what is finished is kept|choose another place|give the same command", said)
    assert "\n" not in said


# Of the micro model: weights of 89 kB, moments of twice that, and little files.
@pytest.mark.parametrize("size", [300, 20_000, 100_000])
def test_a_full_disk_leaves_the_earlier_checkpoints_and_the_run_goes_on(
    given, whole, policy, reference, tmp_path, size
):
    out = tmp_path / "train"
    stage = Stage(policy, out, reference)

    def fill(step, *_):
        if step == 2:
            limits.enter()

    class Limits:
        def enter(self):
            self.context = largest_file(size)
            self.context.__enter__()

    limits = Limits()
    try:
        with pytest.raises(StorageError) as caught:
            train(*given, CONFIG, stage, on_step=fill)
    finally:
        limits.context.__exit__(None, None, None)
    checked(caught, out)
    assert "what is finished is kept" in str(caught.value)
    assert [p.name for _, p in step_folders(out)] == ["step-1"]
    assert not list(out.glob(".step*"))  # its space is given back
    assert (out / "step-1/model.safetensors").read_bytes() == whole["step-1"]
    train(*given, CONFIG, stage)
    found = {p.name: (p / "model.safetensors").read_bytes() for _, p in step_folders(out)}
    assert found == whole


def test_a_full_disk_under_tasks_that_run_side_by_side_is_told_too(tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StorageError, match="No space left"):
        with writing(tmp_path):
            raise ExceptionGroup("tasks", [ValueError("other"), ExceptionGroup("more", [full])])
    for other in (ValueError("x"), OSError(errno.ECONNRESET, "reset"), ConfigError("told")):
        with pytest.raises(type(other)), writing(tmp_path):
            raise other


@contextmanager
def small_disk(folder, megabytes):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_really_full(given, whole, policy, reference, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, 2):
        stage = Stage(policy, disk / "train", reference)
        ballast = disk / "ballast"

        def fill(step, *_):
            if step == 2:
                free = shutil.disk_usage(disk).free
                ballast.write_bytes(bytes(max(0, free - 150_000)))

        with pytest.raises(StorageError, match=r"No space left|as on a full disk") as caught:
            train(*given, CONFIG, stage, on_step=fill)
        checked(caught, disk)
        ballast.unlink()
        train(*given, CONFIG, stage)
        found = {p.name: (p / "model.safetensors").read_bytes() for _, p in step_folders(stage.out)}
        assert found == whole


@pytest.mark.parametrize("number", [errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_disk_that_becomes_read_only_or_breaks(
    given, whole, policy, reference, tmp_path, monkeypatch, number
):
    stage, real = Stage(policy, tmp_path / "train", reference), torch.save

    def save(*arguments):
        if step_folders(stage.out):
            raise OSError(number, os.strerror(number))
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", save)
        with pytest.raises(StorageError) as caught:
            train(*given, CONFIG, stage)
    checked(caught, stage.out)
    assert os.strerror(number) in str(caught.value)
    train(*given, CONFIG, stage)
    found = {p.name: (p / "model.safetensors").read_bytes() for _, p in step_folders(stage.out)}
    assert found == whole


def test_a_disk_that_is_read_only_from_the_start(given, policy, reference, tmp_path):
    disk = tmp_path / "disk"
    with small_disk(disk, 1):
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(StorageError, match=r"train: Read-only file system"):
            train(*given, CONFIG, Stage(policy, disk / "train", reference))


# --- the cache of log-probs


def test_a_damaged_value_is_computed_again_with_a_word(tmp_path, caplog):
    notices.notice.cache_clear()
    file = tmp_path / "reference.sqlite"
    values = {b"a": torch.tensor([1.5, -2.0]), b"b": torch.tensor([3.0]), b"c": torch.ones(4)}
    with LogProbCache(file) as kept:
        for key, value in values.items():
            kept.put(key, value)
    with sqlite3.connect(file) as database:
        (stored,) = database.execute("SELECT value FROM logps WHERE key = ?", (b"a",)).fetchone()
        flipped = bytes([*stored[:-1], stored[-1] ^ 1])  # one bit of one number
        update = "UPDATE logps SET value = ? WHERE key = ?"
        database.execute(update, (flipped, b"a"))
        (other,) = database.execute("SELECT value FROM logps WHERE key = ?", (b"c",)).fetchone()
        database.execute(update, (other, b"b"))  # whole, but of another key
        database.execute("INSERT INTO logps VALUES (?, ?)", (b"d", "text"))
    with LogProbCache(file) as kept:
        assert [kept.get(key) is None for key in (b"a", b"b", b"c", b"d", b"e")] == [
            True,
            True,
            False,
            True,
            True,
        ]
        kept.put(b"a", values[b"a"])
        assert torch.equal(kept.get(b"a"), values[b"a"])
    assert "reference.sqlite holds a damaged value, which is computed again" in caplog.text


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path):
    file = tmp_path / "reference.sqlite"
    with LogProbCache(file) as kept, largest_file(20_000), pytest.raises(StorageError) as caught:
        kept.put(b"a", torch.zeros(50_000))
    assert str(file) in str(caught.value)
    assert "delete" not in str(caught.value)
