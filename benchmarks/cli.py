"""The `mathenv` command.

A sub-command is a dataclass: fields are flags, docstrings are help, `run()` does the work.
Its module is imported when it is called, so only commands that train wait for torch.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import tyro
from rich.table import Table
from rich.text import Text

from benchmarks.console import ResultConsole
from mathenv.errors import MathEnvError

EXIT_ERROR, EXIT_INTERRUPTED = 2, 130
TRAIN_PACKAGES = frozenset(
    {"accelerate", "torch", "transformers", "tokenizers", "safetensors", "matplotlib"}
)


@dataclass(frozen=True, slots=True)
class Command:
    """Where a sub-command is and what it is for."""

    module: str
    type_name: str
    about: str
    example: str


COMMANDS: dict[str, Command] = {
    "demo": Command(
        "benchmarks.commands.iterate",
        "Demo",
        "the whole method in minutes on two CPU cores",
        "mathenv demo --out runs/demo",
    ),
    "iterate": Command(
        "benchmarks.commands.iterate",
        "Iterate",
        "run the online loop of a recipe, for one or more learners",
        "mathenv iterate --recipe tiny --learners mdpo raft sft --seeds 0 1 2 --out runs/table",
    ),
    "ablate": Command(
        "benchmarks.commands.ablate",
        "Ablate",
        "every table of the paper again, on the embedded model",
        "mathenv ablate --quick --out runs/ablate-quick",
    ),
    "plan": Command(
        "benchmarks.commands.plan",
        "PlanCommand",
        "say what a recipe needs on given GPUs: memory and time",
        "mathenv plan mistral-7b-v0.3 --gpus 8xA100-80G",
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
    ),
    "replay": Command(
        "benchmarks.commands.replay",
        "Replay",
        "run recorded cells again: does this sandbox behave like the record?",
        "mathenv replay runs/words/trajectories.jsonl --limit 100",
    ),
    "throughput": Command(
        "benchmarks.commands.throughput",
        "Throughput",
        "measure speed beside what people use instead",
        "mathenv throughput interpreter --json throughput.json",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 wrong use or data, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        sys.exit(_run(words))
    except KeyboardInterrupt:
        _complain("interrupted; what is finished is kept: the same command continues")
        sys.exit(EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        if error.name not in TRAIN_PACKAGES:
            raise
        _complain(f"this needs the package {error.name}: pip install 'mathenv[train]'")
        sys.exit(EXIT_ERROR)
    except (MathEnvError, BaseExceptionGroup) as error:
        cause = _cause(error)
        if cause is None:
            raise
        _complain(str(cause))
        sys.exit(EXIT_ERROR)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        _print_help()
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        _complain(f"no command is called {words[0]!r}: use {', '.join(COMMANDS)}")
        return EXIT_ERROR
    kind: Any = getattr(import_module(command.module), command.type_name)
    about = (inspect.getdoc(kind) or "").split("Args:")[0].rstrip()
    defaults = getattr(kind, "defaults", None)
    # A recipe's flags keep their prefixes: `lr` alone would not say whose.
    has_recipe = hasattr(kind, "settings")
    request = tyro.cli(
        kind,
        prog=f"mathenv {words[0]}",
        description=f"{about}\n\nExample:\n    {command.example}",
        args=words[1:],
        default=defaults(words[1:]) if defaults else None,
        config=(
            tyro.conf.DisallowNone,
            tyro.conf.PositionalMetavarFromFieldName,
            *(() if has_recipe else (tyro.conf.OmitArgPrefixes,)),
        ),
    )
    request.run()
    return 0


def _print_help() -> None:
    console = ResultConsole()
    console.say("usage: mathenv COMMAND [flags]     mathenv COMMAND --help\n")
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, command in COMMANDS.items():
        table.add_row(Text(name, style="bold"), Text(command.about))
        table.add_row("", Text(command.example, style="dim"))
    console.print(table)


def _cause(error: BaseException) -> MathEnvError | None:
    """Return what to tell the user: tasks that run side by side raise groups of errors."""
    if isinstance(error, MathEnvError):
        return error
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_cause, error.exceptions)), None)
    return None


def _complain(text: str) -> None:
    print(f"mathenv: {' '.join(text.split())}", file=sys.stderr)
