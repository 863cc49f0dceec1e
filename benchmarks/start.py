"""The first lines of the `mathenv` command, which import nothing but the standard library.

Ctrl-C is one line and exit status 130 from here on, also while the rest is being imported.
"""

from __future__ import annotations

import io
import os
import platform
import shutil
import signal
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

EXIT_INTERRUPTED = 130
_LEAST_COLUMNS = 20  # in one of 1 the help is never done (tyro 1.0)
# Ours stand in their place. Each can be had back: the variables are left alone where they are set.
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # of downloads, and of transformers' loading
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TQDM_DISABLE": "1",
    "ACCELERATE_LOG_LEVEL": "ERROR",
}


def main() -> None:
    """Import the command line and run it."""
    _open_missing_streams()
    before = signal.signal(signal.SIGINT, _leave)
    run = import_module("benchmarks.cli").main
    signal.signal(signal.SIGINT, before)
    run()


def versions() -> str:
    """Return the versions that a report of an error needs, in one line, without importing torch."""
    found = [f"Python {platform.python_version()}"]
    for package in ("torch", "transformers"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    found.append(f"{platform.system()} {platform.machine()}")
    try:
        own = version("mathenv")
    except PackageNotFoundError:  # run from a folder that is not installed
        own = import_module("mathenv").__version__
    return f"mathenv {own} ({', '.join(found)})"


def prepare() -> None:
    """Make this process one in which a command runs: of no concern to users of the library."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if shutil.get_terminal_size().columns < _LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(_LEAST_COLUMNS)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what its encoding lacks is shown as an escape
            stream.reconfigure(errors="backslashreplace")


def _open_missing_streams() -> None:
    """Give closed standard streams a place: the next file that is opened would become one."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free descriptor, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _leave(*_: object) -> None:
    print("mathenv: interrupted while starting", file=sys.stderr, flush=True)
    os._exit(EXIT_INTERRUPTED)  # nothing is open yet; an exception would be lost in an import
