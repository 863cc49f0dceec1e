"""Files that cannot be made or written: what the system says, as a sentence with what to do."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mathenv.errors import StorageError

_KEPT = "what is finished is kept, and the same command continues"
_ELSEWHERE = "choose another place"
_ADVICE = {
    errno.ENOSPC: f"make room there or {_ELSEWHERE}; {_KEPT}",
    errno.EDQUOT: f"your quota is used up: make room or {_ELSEWHERE}; {_KEPT}",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: f"change its permissions or {_ELSEWHERE}",
    errno.EPERM: f"change its permissions or {_ELSEWHERE}",
    errno.ENOENT: f"check the spelling, or {_ELSEWHERE}",
    errno.ENOTDIR: f"a part of this path is no folder: {_ELSEWHERE}",
    errno.EEXIST: f"something that is no folder stands there: {_ELSEWHERE}",
    errno.EISDIR: "it is a folder, and a file is needed",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EINVAL: f"its file system does not take this: {_ELSEWHERE}",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.EFBIG: f"the file is larger than is allowed (`ulimit -f`); {_KEPT}",
    errno.EIO: f"the disk or its connection fails; {_KEPT}",
    errno.EMFILE: "raise the limit with `ulimit -n`, or do less at the same time",
    errno.ENFILE: "this machine has too many open files: close other programs",
    errno.ENOMEM: "close other programs, or use a smaller model or smaller batches",
    errno.EAGAIN: "this machine starts no more processes: see `ulimit -u`",
}
# Libraries that write weights say it in texts of their own: safetensors, torch.
_SYSTEM_ERROR = re.compile(r"\(os error (\d+)\)")
_TORCH_FAILED = re.compile(r"file write failed|PytorchStreamWriter failed|unexpected pos")


def sentence(error: OSError, path: object = None) -> str | None:
    """Return what is wrong with a file and what to do; None for what is about no file.

    Args:
        path: the file or folder. Left out: the one that the error names.
    """
    if error.errno not in _ADVICE:
        return None
    named = error.filename if path is None else path
    where = os.fsdecode(named) if isinstance(named, str | bytes | os.PathLike) else ""
    return f"{where}{': ' if where else ''}{os.strerror(error.errno)}: {_ADVICE[error.errno]}"


def storage_error(error: Exception, path: object) -> StorageError | None:
    """Return the error to raise where a write failed for lack of room or permission, else None."""
    if isinstance(error, StorageError):
        return error
    if isinstance(error, ExceptionGroup):  # of tasks that run side by side
        every = (storage_error(one, path) for one in error.exceptions)
        return next((known for known in every if known is not None), None)
    if not isinstance(error, OSError) and isinstance(error.__context__, OSError):
        error = error.__context__  # torch tells what came after the system's error
    if not isinstance(error, OSError):
        code = _SYSTEM_ERROR.search(str(error))
        if code is not None:
            error = OSError(int(code[1]), "")
        elif _TORCH_FAILED.search(str(error)):
            error = OSError(errno.ENOSPC, "")  # torch does not say why; this is the usual cause
        else:
            return None
    text = sentence(error, path)
    return None if text is None else StorageError(text)


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn a failure to make or write `path` into a `StorageError` that names it.

    Raises:
        StorageError: no room, no permission, no such place. Other errors pass as they are.
    """
    try:
        yield
    except Exception as error:
        known = storage_error(error, path)
        if known is None or known is error:
            raise
        raise known from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Try whether a file can be written at `path`, before the work whose result it is to hold.

    Raises:
        StorageError: it cannot.
    """
    file = Path(path)
    with writing(file):
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, "", str(file))
        if file.exists() and not file.is_file():  # a device or a pipe, such as /dev/stdout
            with open(file, "wb"):
                return
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name[:50]}."):
            return
