"""What two runs must share for a difference between them to say something about the agents.

A run at temperature 0 against one at temperature 1 measures the temperature; two horizons, prompts
or graders likewise. Such runs are compared only by name of what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.results import BenchResult
from mathenv.errors import ConfigError

_SCRIPTED = ("OracleAgent", "ReplayAgent")  # they neither sample nor read a prompt
_PROMPT = ("instruction", "system", "tool_role", "dialect", "stop_strings")
_SAMPLING = ("temperature", "top_p", "max_turn_tokens", "max_tokens")

Read = Callable[[BenchResult], Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting that differs, as each run has it.

    `matters` is False where it is no reason to refuse: a package's version, or a setting that one
    of the runs, written by an earlier version, did not record.
    """

    name: str
    first: str
    second: str
    matters: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.first} against {self.second}"


def settings_that_differ(first: BenchResult, second: BenchResult) -> list[Setting]:
    """Return the settings in which two runs differ, those that matter first."""
    scripted = any(_agent(run).get("kind") in _SCRIPTED for run in (first, second))
    tables = [(_SHARED, True), (_NOTED, False), ({} if scripted else _OF_MODELS, True)]
    found = []
    for table, matters in tables:
        for name, read in table.items():
            old, new = read(first), read(second)
            if old != new:
                matters_here = matters and old is not None and new is not None
                found.append(Setting(name, _text(old), _text(new), matters_here))
    return sorted(found, key=lambda setting: not setting.matters)


def check_comparable(found: Iterable[Setting], despite: Sequence[str]) -> None:
    """Refuse runs that differ in what they should share.

    Raises:
        ConfigError: naming every such setting that `despite` does not name.
    """
    unknown = [name for name in despite if name not in SETTING_NAMES]
    if unknown:
        raise ConfigError(
            f"--despite {unknown[0]}: no such setting; there are {', '.join(SETTING_NAMES)}"
        )
    left = [setting for setting in found if setting.matters and setting.name not in despite]
    if left:
        raise ConfigError(
            f"these runs differ in what they should share ({'; '.join(map(str, left))}), so a "
            "difference between them may be that of the settings. Repeat one run with the settings "
            "of the other, or compare them all the same with --despite "
            f"{' '.join(setting.name for setting in left)}"
        )


def _agent(run: BenchResult) -> Mapping[str, Any]:
    found: Mapping[str, Any] = run.config.get("agent", {})
    return found


def _sampling(name: str) -> Read:
    return lambda run: _agent(run).get("sampling", {}).get(name)


def _prompt(run: BenchResult) -> str | None:
    """Return what an agent is told beside the question; None for an agent that does not say."""
    if "sampling" not in _agent(run):
        return None
    said = {name: _agent(run).get(name) for name in _PROMPT if _agent(run).get(name)}
    return (
        ", ".join(f"{k} {v!r}" for k, v in said.items() if (k, v) != ("tool_role", "user"))
        or "plain"
    )


def _problems(run: BenchResult) -> str:
    config = run.config
    return f"{config['problems']} of {config['split']} ({config['problems_sha256']})"


def _runner(name: str) -> Read:
    return lambda run: run.environment.get("interpreter", {}).get(name)


def _version(package: str) -> Read:
    return lambda run: run.environment.get("packages", {}).get(package)


def _limits(run: BenchResult) -> str | None:
    limits = run.environment.get("limits")
    return None if limits is None else ", ".join(f"{k} {v:g}" for k, v in limits.items())


_SHARED: dict[str, Read] = {
    "problems": _problems,
    "samples": lambda run: run.config.get("samples"),
    "protocol": lambda run: run.config.get("protocol"),
    "grading": lambda run: f"{run.policy['name']} ({run.policy['digest']})",
    "interpreter": _runner("host"),
    "limits": _limits,
}
_OF_MODELS: dict[str, Read] = {
    "horizon": lambda run: run.config.get("horizon"),  # a script's is raised to what it needs
    **{name: _sampling(name) for name in _SAMPLING},
    "prompt": _prompt,
    "template": lambda run: _agent(run).get("tokenizer"),  # with the tokenizer's vocabulary
}
_NOTED: dict[str, Read] = {
    "sandbox tier": _runner("tier"),
    "Python of cells": _runner("python"),
    "dtype": lambda run: _agent(run).get("dtype"),
    "engine": lambda run: _agent(run).get("engine"),
    **{f"version of {name}": _version(name) for name in ("mathenv", "sympy", "math-verify")},
}
SETTING_NAMES = (*_SHARED, *_OF_MODELS)


def _text(value: Any) -> str:
    return "not recorded" if value is None else str(value)
