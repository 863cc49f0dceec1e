"""One process at a time: locks on files and run folders that a kill sets free.

They are the kernel's (`flock`): a lock goes when its process ends, however it ends, and nothing
is left that must be removed by hand. On NFS Linux asks the server, so a lock holds between
machines too. A file system that knows no locks is used without one, and a warning says so.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from mathenv.errors import ConfigError
from mathenv.files import writing
from mathenv.notices import notice

LOCK_NAME = ".lock"
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL})
# A holder writes down who it is right after it got the lock; one who asks meanwhile waits.
_TRIES, _PAUSE_SECONDS = 5, 0.01

# What this thread of execution holds: a command locks its folder, and so does what it calls.
_HELD: ContextVar[frozenset[Path]] = ContextVar("_HELD", default=frozenset())


def lock_file(stream: BinaryIO) -> bool:
    """Lock an open file for as long as it stays open; say whether this succeeded.

    Where the file system knows no locks this warns and returns True.
    """
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        notice(
            f"{stream.name} lies on a file system without locks ({error.strerror}): see to it "
            "yourself that no second process writes there"
        )
    return True


@contextmanager
def hold(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Be the only process that writes into a run folder, which is made where missing.

    Whoever holds it already, in the same thread or coroutine, may hold it again.

    Raises:
        ConfigError: another process or thread holds it; the message says which process.
        StorageError: nothing can be written there.
    """
    place = Path(os.path.realpath(folder))
    if place in _HELD.get():
        yield
        return
    with _locked(Path(folder)) as stream:
        _sign(stream)
        token = _HELD.set(_HELD.get() | {place})
        try:
            yield
        finally:
            _HELD.reset(token)
            (place / LOCK_NAME).unlink(missing_ok=True)


def _locked(folder: Path) -> BinaryIO:
    while True:
        stream = _open(folder)
        try:
            if not lock_file(stream):
                raise ConfigError(
                    f"{folder} is in use by {_holder(stream)}: two runs in one folder would "
                    "damage each other's files. Wait for that one, stop it, or choose another "
                    "folder"
                )
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), os.stat(stream.name)):
                    return stream
        except BaseException:
            stream.close()
            raise
        stream.close()  # whoever held it has just removed this file, and a new one counts


def _open(folder: Path) -> BinaryIO:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / LOCK_NAME, "a+b", buffering=0)


def _sign(stream: BinaryIO) -> None:
    who = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    try:
        stream.truncate(0)
        stream.write(json.dumps(who).encode() + b"\n")
    except OSError:  # a full disk: the lock holds all the same, only its holder has no name
        stream.truncate(0)


def _holder(stream: BinaryIO) -> str:
    for _ in range(_TRIES):
        stream.seek(0)
        try:
            who = json.loads(stream.read())
            return f"process {who['pid']} on {who['host']} since {who['since']}"
        except (ValueError, KeyError, TypeError):
            time.sleep(_PAUSE_SECONDS)
    return "another process"
