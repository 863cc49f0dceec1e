"""The `mathenv` command.

A sub-command is a dataclass: fields are flags, docstrings are help, `run()` does the work. Its
module is imported when it is called. Where the work needs torch it stands in a module of its own
(`Command.work`), which is imported once the flags are read: no `--help` waits for torch.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from typing import Any

import tyro
from rich.table import Table
from rich.text import Text

from benchmarks.console import ResultConsole, drop_output
from benchmarks.failures import EXIT_BUG, EXIT_ERROR, EXIT_INTERRUPTED, explain, interrupted
from benchmarks.start import prepare, versions
from mathenv.errors import did_you_mean
from mathenv.files import writing

_FLAG = re.compile(r"--[a-z][\w.-]*")


@dataclass(frozen=True, slots=True)
class Command:
    """Where a sub-command is and what it is for.

    `work` is MODULE:FUNCTION of what takes the parsed flags and does the work, where that is not
    the dataclass's own `run()`.
    """

    module: str
    type_name: str
    about: str
    example: str
    work: str = ""

    @property
    def is_installed(self) -> bool:
        """False for a study in an installed wheel, which holds none."""
        return not self.module.startswith(STUDIES) or find_spec(STUDIES) is not None


STUDIES = "benchmarks.studies"  # studies of this project itself: in the repository only

COMMANDS: dict[str, Command] = {
    "demo": Command(
        "benchmarks.commands.iterate",
        "Demo",
        "the whole method in minutes on two CPU cores",
        "mathenv demo --out runs/demo",
        "benchmarks.work.iterate:demo",
    ),
    "iterate": Command(
        "benchmarks.commands.iterate",
        "Iterate",
        "run the online loop of a recipe, for one or more learners",
        "mathenv iterate --recipe tiny --learners mdpo raft sft --seeds 0 1 2 --out runs/table",
        "benchmarks.work.iterate:run",
    ),
    "ablate": Command(
        "benchmarks.studies.ablation.command",
        "Ablate",
        "every table of the paper again, on the embedded model",
        "mathenv ablate --quick --out runs/ablate-quick",
        "benchmarks.studies.ablation.work:run",
    ),
    "plan": Command(
        "benchmarks.commands.plan",
        "PlanCommand",
        "say what a recipe needs on given GPUs: memory and time",
        "mathenv plan mistral-7b-v0.3 --gpus 8xA100-80G",
        "benchmarks.work.plan:run",
    ),
    "doctor": Command(
        "benchmarks.commands.doctor",
        "Doctor",
        "check the sandbox and the grader on this machine",
        "mathenv doctor",
    ),
    "bench": Command(
        "benchmarks.commands.bench",
        "Bench",
        "measure an agent on one or more suites",
        "mathenv bench words --limit 100",
    ),
    "compare": Command(
        "benchmarks.commands.compare",
        "Compare",
        "compare two benchmark runs problem by problem",
        "mathenv compare runs/bench/gsm8k-sft runs/bench/gsm8k-mdpo",
    ),
    "tables": Command(
        "benchmarks.commands.tables",
        "Tables",
        "print finished benchmark runs as a markdown or LaTeX table",
        "mathenv tables runs/bench --format latex",
    ),
    "view": Command(
        "benchmarks.commands.view",
        "View",
        "make an HTML page of a run and open it",
        "mathenv view runs/demo",
    ),
    "solve": Command(
        "benchmarks.commands.solve",
        "Solve",
        "watch one problem being solved",
        "mathenv solve --suite words --index 3",
    ),
    "collect": Command(
        "benchmarks.commands.collect",
        "Collect",
        "sample trajectories into a file",
        "mathenv collect words --agent transformers --model DIR --n 4 --out rollouts",
    ),
    "convert": Command(
        "benchmarks.commands.convert",
        "Convert",
        "turn written solutions into demonstrations",
        "mathenv convert gsm8k.jsonl --from gsm8k --model DIR --out demonstrations",
        "benchmarks.work.convert:run",
    ),
    "grade": Command(
        "benchmarks.commands.grade",
        "GradeCommand",
        "grade stored answers again, without a model",
        "mathenv grade rollouts/trajectories.jsonl --policy paper",
    ),
    "export": Command(
        "benchmarks.commands.export",
        "Export",
        "write trajectories or pairs for other trainers (OpenAI chat, TRL)",
        "mathenv export rollouts --format trl --out pairs.jsonl",
    ),
    "import": Command(
        "benchmarks.commands.export",
        "Import",
        "read conversations or pairs of other trainers",
        "mathenv import pairs.jsonl --out rollouts",
    ),
    "train": Command(
        "benchmarks.commands.train",
        "TrainCommand",
        "train a learner on stored trajectories",
        "mathenv train mdpo --trajectories rollouts --policy DIR --reference DIR --out OUT",
        "benchmarks.work.train:run",
    ),
    "replay": Command(
        "benchmarks.studies.replay_command",
        "Replay",
        "run recorded cells again: does this sandbox behave like the record?",
        "mathenv replay runs/words/trajectories.jsonl --limit 100",
    ),
    "throughput": Command(
        "benchmarks.studies.throughput.command",
        "Throughput",
        "measure speed beside what people use instead",
        "mathenv throughput interpreter --json throughput.json",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 1 a bug, 2 wrong use or data, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    prepare()
    try:
        status = _run(words)
    except SystemExit as stop:  # of the reader of flags, and of a command with its own status
        status = stop.code if isinstance(stop.code, int) else EXIT_ERROR
    except BaseException as error:
        status = _failed(error)
    sys.exit(_flushed(status))


def _flushed(status: int) -> int:
    """Write out what is still buffered, and return the exit status after that."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has gone: nobody is left to be told
        drop_output()
    except OSError as error:
        drop_output()
        return _failed(OSError(error.errno, error.strerror, "standard output"))
    return status


def _failed(error: BaseException) -> int:
    """Say in one line what went wrong, with a traceback only for what is no user's doing."""
    if interrupted(error):
        # Ending takes a moment. Who is impatient in it shall see no traceback either.
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
        _complain("interrupted; what is finished is kept: the same command continues")
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        drop_output()
        return 0
    sentence = explain(error)
    if sentence is not None:
        _complain(sentence)
        return EXIT_ERROR
    traceback.print_exception(error)
    _complain(
        "this is an error in mathenv itself: please report the lines above, with the command and "
        "what `mathenv --version` prints"
    )
    return EXIT_BUG


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        if len(words) < 2:
            _print_help()
            return 0
        words = [words[1], "--help"]
    if words[0] in ("-V", "--version", "version"):
        ResultConsole().say(versions())
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        here = [name for name, known in COMMANDS.items() if known.is_installed]
        near = did_you_mean(words[0], here)
        _complain(f"no command is called {words[0]!r}{near}: use {', '.join(here)}")
        return EXIT_ERROR
    if not command.is_installed:
        _complain(
            f"`mathenv {words[0]}` is a study of this project, which an installed package does not "
            "hold: run it from a copy of the repository"
        )
        return EXIT_ERROR
    request = _parse(words[0], command, words[1:])
    if command.work:
        module, _, function = command.work.partition(":")
        getattr(import_module(module), function)(request)
    else:
        request.run()
    return 0


def _parse(name: str, command: Command, words: list[str]) -> Any:
    """Return the flags as the command's dataclass; help and wrong flags end the program."""
    kind: Any = getattr(import_module(command.module), command.type_name)
    about = (inspect.getdoc(kind) or "").split("Args:")[0].rstrip()
    defaults = getattr(kind, "defaults", None)
    # A recipe's flags keep their prefixes: `lr` alone would not say whose.
    has_recipe = hasattr(kind, "settings")
    read = partial(
        tyro.cli,
        kind,
        prog=f"mathenv {name}",
        description=f"{about}\n\nExample:\n    {command.example}",
        default=defaults(words) if defaults else None,
        config=(
            tyro.conf.DisallowNone,
            tyro.conf.PositionalMetavarFromFieldName,
            *(() if has_recipe else (tyro.conf.OmitArgPrefixes,)),
        ),
    )
    try:
        with writing("standard output"):
            return read(args=words)
    except SystemExit as stop:
        if stop.code:
            _name_unknown_flags(read, words)
        raise


def _name_unknown_flags(read: Callable[..., Any], words: list[str]) -> None:
    """Say which flags there are not: the reader of flags does not, where others are missing."""
    shown = StringIO()
    with redirect_stdout(shown), suppress(SystemExit):
        read(args=["--help"])
    known = set(_FLAG.findall(shown.getvalue()))
    for word in words:
        flag = word.partition("=")[0].replace("_", "-")
        if _FLAG.fullmatch(flag) and flag not in known:
            _complain(f"there is no flag {flag}{did_you_mean(flag, known)}")


def _print_help() -> None:
    console = ResultConsole()
    console.say("usage: mathenv COMMAND [flags]     mathenv COMMAND --help\n")
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, command in COMMANDS.items():
        if not command.is_installed:
            continue
        table.add_row(Text(name, style="bold"), Text(command.about))
        table.add_row("", Text(command.example, style="dim"))
    console.print(table)


def _complain(text: str) -> None:
    with suppress(OSError):  # standard error is full or closed: the exit status still says it
        print(f"mathenv: {' '.join(text.split())}", file=sys.stderr)
