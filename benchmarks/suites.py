"""Suites: which problems a benchmark runs. Adding one is adding a line to `SUITES`.

Everything else `mathenv.problems.load_problems` knows is a suite as well: a source that a
package registered, a `.jsonl` file, a folder with `<split>.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from mathenv.errors import ConfigError
from mathenv.problems import load_problems, problem_sources
from mathenv.types import Problem


@dataclass(frozen=True, slots=True)
class Suite:
    """A named set of problems.

    `source` is what `load_problems` takes. `generated` suites need no data.
    """

    name: str
    source: str
    split: str = "test"
    generated: bool = False
    about: str = ""

    def load(
        self, *, data: str | Path | None = None, limit: int | None = None, seed: int = 0
    ) -> tuple[Problem, ...]:
        """Return the problems.

        `data` is the folder or file of this suite, or a folder with one folder per suite;
        generated suites ignore it. `limit` draws that many problems with `seed`.

        Raises:
            ConfigError, DataError: as in `load_problems`.
        """
        place = None if self.generated or data is None else Path(data)
        if place is not None and (place / self.name).is_dir():
            place = place / self.name
        return load_problems(self.source, self.split, data=place, limit=limit, seed=seed)


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("gsm8k", "gsm8k", about="grade-school word problems, 1,319 test problems"),
        Suite("math", "math", about="competition mathematics, 5,000 test problems"),
        Suite("words", "words", generated=True, about="made on the spot, 1,000 test problems"),
        Suite("words_ood", "words_ood", generated=True, about="words, larger and longer"),
    )
}


def find_suite(name: str, split: str | None = None) -> Suite:
    """Return the suite called `name`, or one around a path or a registered source.

    Raises:
        ConfigError: nothing has this name.
    """
    suite = SUITES.get(name)
    if suite is None and name in problem_sources():
        suite = Suite(name, name)
    if suite is None and (name.endswith(".jsonl") or Path(name).exists()):
        suite = Suite(Path(name).stem, str(Path(name)))
        if Path(name).exists() and "/" not in suite.source:
            suite = replace(suite, source=f"./{suite.source}")
    if suite is None:
        raise ConfigError(
            f"no suite is called {name!r}: use {', '.join(suite_names())}, the path of a .jsonl "
            "file, or of a folder with <split>.jsonl"
        )
    return replace(suite, split=split) if split else suite


def find_suites(names: str, split: str | None = None) -> list[Suite]:
    """Return the suites of a comma-separated list, refusing two of one name."""
    suites = [find_suite(name.strip(), split) for name in names.split(",") if name.strip()]
    if not suites:
        raise ConfigError(f"no suite named in {names!r}: use {', '.join(suite_names())}")
    if len({suite.name for suite in suites}) < len(suites):
        raise ConfigError(f"{names}: two suites have one name, their results would mix")
    return suites


def suite_names() -> Iterable[str]:
    """Return all names that `find_suite` knows, ours first."""
    return [*SUITES, *(name for name in problem_sources() if name not in SUITES)]
