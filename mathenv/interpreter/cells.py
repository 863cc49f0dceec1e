"""The process of a session: runs one cell after another, and splits in two on request.

Standard library only; `runner.py` loads this file by path. It sends and takes frames:
4 bytes of length, big-endian, then JSON. Everything here can be replaced by the code that
runs in a cell, so nothing that protects others may depend on it: see `sandbox.py`.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # in C, and has no stubs; see _set_handler
import ast
import builtins
import contextlib
import ctypes
import errno
import fcntl
import gc
import io
import json
import linecache
import mmap
import os
import random
import resource
import signal
import socket
import stat
import struct
import sys
import threading
import tokenize
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO

MAX_FRAME = 1 << 20
REPORT_BYTES = 64 << 20  # address space a session may use to report that it has run out
ERROR_CHARS = 4000
CHANNEL, OUTPUT, FIRST_FREE = 3, 4, 5  # descriptors of a session


def display(*objects: object, **_: object) -> None:
    """Print the `repr` of each object, as notebooks do where they have nothing but text."""
    for thing in objects:
        print(_repr(thing))


vars(builtins)["display"] = display

# Code that runs in a cell may replace any of these in their modules.
_repr, _settrace, _setprofile = repr, sys.settrace, sys.setprofile
_set_handler, _ignore = _signal.signal, _signal.SIG_IGN  # in C: not seen by a trace hook
_raise_interrupt = signal.default_int_handler
_saved_builtins = dict(vars(builtins))
_restore_builtins = vars(builtins).update
if sys.version_info < (3, 13):
    # PyDictObject.ma_version_tag. To restore 155 names writes to some 100 pages, so that is done
    # only where a cell has changed one.
    _tag = ctypes.c_uint64.from_address(id(vars(builtins)) + 24)
    _unchanged = _tag.value
else:
    _tag, _unchanged = ctypes.c_uint64(1), 0


def place_descriptors(channel: int, output: int, *others: int) -> Iterator[int]:
    """Put the frame channel at 3, the output at 1, 2 and 4, others at 5 on; close the rest.

    Returns the new numbers of `others`.
    """
    raised = [fcntl.fcntl(fd, fcntl.F_DUPFD, 16) for fd in (channel, output, *others)]
    targets = (CHANNEL, OUTPUT, *range(FIRST_FREE, FIRST_FREE + len(others)))
    for source, target in zip(raised, targets, strict=True):
        os.dup2(source, target)
    os.dup2(OUTPUT, 1)
    os.dup2(OUTPUT, 2)
    os.closerange(FIRST_FREE + len(others), 1 << 16)
    return iter(targets[2:])


def one_line(error: BaseException) -> str:
    """Name and text of an error, for a message to the host."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:ERROR_CHARS]


def send(message: dict[str, Any]) -> None:
    """Send a frame to the host."""
    body = json.dumps(message).encode()
    data = struct.pack(">I", len(body)) + body
    while data:
        data = data[os.write(CHANNEL, data) :]


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(CHANNEL, size - len(data))
        if not chunk:
            os._exit(0)  # the host closed the session
        data += chunk
    return data


def _receive() -> dict[str, Any]:
    (size,) = struct.unpack(">I", _read_exactly(4))
    request: dict[str, Any] = json.loads(_read_exactly(size))
    return request


def _receive_descriptors(channel: socket.socket, count: int) -> list[int]:
    """Take the descriptors that come with one byte after a frame."""
    data, fds, _, _ = socket.recv_fds(channel, 1, count)
    if not data:
        os._exit(0)
    if len(fds) < count:
        for fd in fds:
            os.close(fd)
        raise OSError(errno.EMFILE, "too many files are open")
    return fds


def prepare_process() -> None:
    """What is the same in every session: the nursery does it once."""
    sys.argv[:] = sys.orig_argv[:] = [""]
    sys.set_int_max_str_digits(0)  # the time limit bounds long conversions
    sys.unraisablehook = _show_unraisable
    threading.excepthook = _show_thread_error
    warnings.formatwarning = _format_warning
    for category in (DeprecationWarning, FutureWarning, SyntaxWarning):
        warnings.simplefilter("ignore", category)


class Session:
    """Runs cells in one namespace and answers each with a frame.

    `confine(home, forks)` restricts a copy to its own folder; `fork()` splits the process.
    """

    def __init__(
        self,
        home: str,
        memory: int,
        fork: Callable[[], int],
        confine: Callable[[str, int], None],
    ) -> None:
        self.home, self.memory, self.fork, self.confine = home, memory, fork, confine
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=CHANNEL)
        self.count = 0
        self.runner = sys.modules["__main__"]
        self.module = sys.modules["__main__"] = types.ModuleType("__main__")
        self.streams: dict[str, TextIO] = {}
        self.shown: object = object()  # the value that `_` has, unless a cell has set it

    def serve(self) -> None:
        """Answer requests until the host closes the channel."""
        while True:
            try:
                request = _receive()
                if "code" in request:
                    send({"nonce": request["nonce"], **self.run_cell(request["code"])})
                elif "seed" in request:
                    _seed(request["seed"])
                else:
                    self._split(request["nonce"])
            except KeyboardInterrupt:  # too late to stop the cell: the host will decide
                continue

    def run_cell(self, code: str) -> dict[str, Any]:
        """Run one cell; the reply holds status, text, omitted, lost."""
        self.count += 1
        self._prepare()
        status, text, lost = "ok", "", False
        try:
            try:
                # The C handler leaves no frame of ours in a traceback.
                _set_handler(signal.SIGINT, _raise_interrupt)
                text = self._evaluate(code, f"<cell {self.count}>")
            finally:
                _set_handler(signal.SIGINT, _ignore)
                if _tag.value != _unchanged:
                    _restore_builtins(_saved_builtins)
                _settrace(None)
                _setprofile(None)
        except MemoryError as error:
            status, text, lost = "memory", *self._report_memory(error)
        except BaseException as error:
            _set_handler(signal.SIGINT, _ignore)
            _restore_builtins(_saved_builtins)
            status, text = "error", _report(error)
        self._flush()
        text, omitted = _cut(text, ERROR_CHARS if status != "ok" else MAX_FRAME // 16)
        return {"status": status, "text": text, "omitted": omitted, "lost": lost}

    def _prepare(self) -> None:
        """Undo what an earlier cell may have done to the process."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())  # without the enums of `signal`
        for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
            stream = self.streams.get(name)
            if stream is None or stream.closed:
                if number:
                    os.dup2(OUTPUT, number)
                self.streams[name] = stream = _open_stream(number)
            setattr(sys, name, stream)
        with contextlib.suppress(OSError):  # the cell removed it
            os.chdir(self.home)
        namespace = vars(self.module)
        namespace["__name__"], namespace["__builtins__"] = "__main__", builtins

    def _evaluate(self, code: str, name: str) -> str:
        code = code.removeprefix("\ufeff")  # the byte order mark with which some files begin
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        tree = ast.parse(code, name)
        last = tree.body[-1] if tree.body else None
        echo = isinstance(last, ast.Expr) and not _ends_with_semicolon(code)
        if isinstance(last, ast.Expr) and echo:
            tree.body.pop()
        namespace = vars(self.module)
        exec(compile(tree, name, "exec", dont_inherit=True), namespace)
        if not (isinstance(last, ast.Expr) and echo):
            return ""
        value = eval(
            compile(ast.Expression(last.value), name, "eval", dont_inherit=True), namespace
        )
        if value is None:
            return ""
        if namespace.get("_", self.shown) is self.shown:
            namespace["_"] = self.shown = value
        return _repr(value)

    def _report_memory(self, error: MemoryError) -> tuple[str, bool]:
        """Describe the error with some spare memory; say whether the session is still usable."""
        hard = self.memory + REPORT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
        text = _report(error)
        error.__traceback__ = None  # frees what the failed call had built
        gc.collect()
        resource.setrlimit(resource.RLIMIT_AS, (self.memory, hard))
        try:
            mmap.mmap(-1, self.memory // 4, mmap.MAP_PRIVATE).close()
        except OSError:
            return text, True
        return text, False

    def _flush(self) -> None:
        for name in ("stdout", "stderr"):
            with contextlib.suppress(OSError, ValueError):  # closed by the cell
                self.streams[name].flush()

    def _split(self, nonce: str) -> None:
        """Become two: the copy goes on with the channel and the output sent along."""
        descriptors: list[int] = []
        try:
            descriptors = _receive_descriptors(self.channel, 2)
            copy = self.fork()
        except OSError as error:
            copy, answer = -1, {"error": str(error)}
        if copy == 0:
            self._become_copy(*descriptors)
            return
        for fd in descriptors:
            os.close(fd)
        send({"nonce": nonce, **(answer if copy < 0 else {"pid": copy})})

    def _become_copy(self, channel: int, output: int) -> None:
        try:
            for source, targets in ((channel, (CHANNEL,)), (output, (OUTPUT, 1, 2))):
                for target in targets:
                    os.dup2(source, target)
                if source not in targets:
                    os.close(source)
            request = _receive()
            (forks,) = _receive_descriptors(self.channel, 1)
            inherited = {fd for fd in range(FIRST_FREE, 128) if fd != forks and _is_open(fd)}
            copied = copy_files(self.home, request["home"])
            for fd in inherited:
                _own_copy(fd, copied, request["home"])
            self._move(request["home"])
            self.confine(self.home, forks)
            os.close(forks)
        except OSError as error:
            text = "too many copies of copies" if error.errno == errno.E2BIG else one_line(error)
            send({"setup_error": text})
            os._exit(1)
        send({"ready": True})

    def _move(self, home: str) -> None:
        os.chdir(home)
        for name in ("HOME", "TMPDIR"):
            if os.environ.get(name) == self.home:
                os.environ[name] = home
        tempfile: Any = sys.modules.get("tempfile")
        if tempfile is not None and tempfile.tempdir == self.home:
            tempfile.tempdir = home
        self.home = home


def _seed(seed: int) -> None:
    """Set the generators of the libraries, which the nursery has imported."""
    random.seed(seed)
    sys.modules["numpy"].random.seed(seed % 2**32)
    sys.modules["sympy.core.random"].seed(seed)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def copy_files(source: str, target: str) -> dict[tuple[int, int], str]:
    """Copy what is in a folder into another; (device, inode) -> path of each file's copy."""
    copied: dict[tuple[int, int], str] = {}
    pending = [(source, target)]
    while pending:
        folder, into = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                path, info = f"{into}/{entry.name}", entry.stat(follow_symlinks=False)
                if entry.is_symlink():
                    os.symlink(os.readlink(entry.path), path)
                elif entry.is_dir():
                    os.mkdir(path)
                    pending.append((entry.path, path))
                else:
                    with open(entry.path, "rb") as data:
                        _copy_content(data.fileno(), path, stat.S_IMODE(info.st_mode))
                    copied[info.st_dev, info.st_ino] = path
    return copied


def _copy_content(fd: int, path: str, mode: int = 0o600) -> None:
    new = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode | 0o600)
    try:
        position, size = 0, os.fstat(fd).st_size
        while position < size:
            sent = os.sendfile(new, fd, position, min(size - position, 1 << 24))
            if not sent:
                break
            position += sent
    finally:
        os.close(new)


def _own_copy(fd: int, copied: dict[tuple[int, int], str], home: str) -> None:
    """Give an open file its own copy of the content and position; close anything else."""
    with contextlib.suppress(OSError):
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode):
            flags = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND)
            path = copied.get((info.st_dev, info.st_ino))
            name = path or f"{home}/.open-{fd}"  # a library's file, or one already removed
            if path is None:
                _copy_content(fd, name)
            new = os.open(name, flags)
            os.lseek(new, os.lseek(fd, 0, os.SEEK_CUR), os.SEEK_SET)
            if path is None:
                os.unlink(name)
            os.dup2(new, fd, inheritable=False)
            os.close(new)
            return
    os.close(fd)


def _show_unraisable(event: Any) -> None:
    """Report an exception from a finaliser without frames of ours."""
    print(f"Exception ignored: {_report(event.exc_value)}", file=sys.stderr)


def _show_thread_error(event: Any) -> None:
    """Report what has ended a thread without frames and paths of the host."""
    if event.exc_type is not SystemExit and event.exc_value is not None:
        name = event.thread.name if event.thread else "?"
        print(f"Exception in thread {name}:\n{_report(event.exc_value)}", file=sys.stderr)


def _format_warning(
    message: object, category: type, filename: str, lineno: int, line: str | None = None
) -> str:
    """The text of a warning as Python has it, but for the folders of libraries.

    One that is blamed on a caller beyond the cell is shown as where there is no such caller.
    """
    if filename.startswith("<mathenv>"):
        filename, lineno = "sys", 1
    place = f"{_short_path(filename)}:{lineno}"
    source = (linecache.getline(filename, lineno) if line is None else line).strip()
    text = f"{place}: {category.__name__}: {_short_path(str(message))}\n"
    return text + (f"  {source}\n" if source else "")


def _open_stream(number: int) -> TextIO:
    if number == 0:
        return open(0, encoding="utf-8", closefd=False)
    # Line-buffered: a cell that is killed has shown what it printed until then.
    return open(number, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)


def _report(error: BaseException) -> str:
    """Traceback from the cell's own frame on: its first two frames and the last four."""
    try:
        frames = list(traceback.walk_tb(error.__traceback__))
        while frames and not frames[0][0].f_code.co_filename.startswith("<cell "):
            frames.pop(0)
        lines = ["Traceback (most recent call last):\n"] if frames else []
        skipped = max(0, len(frames) - 6)
        shown = frames[:2] + frames[2 + skipped :] if skipped else frames
        for position, (frame, line) in enumerate(shown):
            if skipped and position == 2:
                lines.append(f"  [... {skipped} frames cut ...]\n")
            code = frame.f_code
            lines.append(
                f'  File "{_short_path(code.co_filename)}", line {line}, in {code.co_name}\n'
            )
            source = linecache.getline(code.co_filename, line).strip()
            lines += [f"    {source}\n"] if source else []
        return "".join(lines + _message(error)).rstrip("\n")
    except Exception:  # the exception's own code failed while being shown
        return type(error).__name__


def _message(error: BaseException) -> list[str]:
    return [_short_path(line) for line in traceback.format_exception_only(error)]


def _short_path(text: str) -> str:
    """The text without the folders of libraries, which differ from host to host."""
    folders = [f for f in sys.path if isinstance(f, str) and f.startswith("/") and f != "/"]
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(folder + "/", "")
    return text


def _ends_with_semicolon(code: str) -> bool:
    """Whether the last token is `;`, comments aside: the sign not to show the value."""
    if ";" not in code:
        return False
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(code).readline)
    try:
        return [t.string for t in tokens if t.type not in blank][-1:] == [";"]
    except (tokenize.TokenError, SyntaxError):  # the compiler accepts more than `tokenize`
        return code.rstrip().endswith(";")


def _cut(text: str, limit: int) -> tuple[str, int]:
    """Keep head and tail; the cut is between the halves. Returns the characters left out."""
    if len(text) <= limit:
        return text, 0
    half = limit // 2
    return text[:half] + text[-half:], len(text) - 2 * half
