"""One process at a time in a run folder, and a kill sets it free."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from mathenv import locking, notices
from mathenv.errors import ConfigError, StorageError
from mathenv.locking import LOCK_NAME, hold
from mathenv.store import TrajectoryStore

HOLDER = """
import sys, time
from mathenv.locking import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder `run`."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_is_told_who_holds_it_and_a_kill_sets_it_free(holder, tmp_path):
    for _ in range(2):  # having been refused changes nothing
        with pytest.raises(ConfigError) as caught, hold(tmp_path / "run"):
            pass
        said = str(caught.value)
        assert f"is in use by process {holder.pid} on {socket.gethostname()} since 20" in said
        assert "\n" not in said
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with hold(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / LOCK_NAME).read_text()
    assert list((tmp_path / "run").iterdir()) == []


def test_who_holds_it_may_hold_it_again_and_another_thread_may_not(tmp_path):
    refused = []

    def other():
        try:
            with hold(tmp_path):
                pass
        except ConfigError as error:
            refused.append(str(error))

    def ask():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    with hold(tmp_path):
        with hold(tmp_path / "." / "x" / ".."):  # the same folder by another name
            pass
        ask()  # the inner one has not set it free
        with hold(tmp_path / "below"):  # a folder of its own
            pass
    assert len(refused) == 1
    assert f"process {os.getpid()}" in refused[0]
    ask()
    assert len(refused) == 1


def test_it_is_free_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), hold(tmp_path):
            raise ZeroDivisionError


def test_of_many_at_once_one_is_inside_at_any_time(tmp_path):
    """The file goes with its holder: whoever opened it before that must not count it as held."""
    inside, most, done = [0], [0], [0]

    def work():
        for _ in range(300):
            try:
                with hold(tmp_path):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    os.sched_yield()
                    inside[0] -= 1
                    done[0] += 1
            except ConfigError:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert done[0] > 0


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/run"):
        with pytest.raises(StorageError, match=r"file.*: .*choose another place"):
            with hold(tmp_path / name):
                pass


def test_a_holder_without_a_name_still_keeps_others_out(tmp_path):
    """Of an editor, or a copy of this class that could not write its name on a full disk."""
    with (tmp_path / LOCK_NAME).open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="in use by another process"), hold(tmp_path):
            pass


def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, caplog):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    notices.notice.cache_clear()
    monkeypatch.setattr(locking.fcntl, "flock", flock)
    with hold(tmp_path), TrajectoryStore(tmp_path):
        pass
    assert ".lock lies on a file system without locks (No locks available)" in caplog.text
    assert "trajectories.jsonl lies on a file system without locks" in caplog.text
