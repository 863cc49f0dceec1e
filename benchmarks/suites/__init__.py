"""Suites: which problems a benchmark runs. Adding one is a module like the others here.

Everything else `mathenv.problems.load_problems` knows is a suite as well: a source that a
package registered, a `.jsonl` file, a folder with `<split>.jsonl`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from benchmarks.suites import (
    aime24,
    aime25,
    amc23,
    asdiv,
    gsm8k,
    gsm_hard,
    math,
    math500,
    mawps,
    svamp,
    words,
    words_ood,
)
from benchmarks.suites.base import Published, Suite
from mathenv.errors import ConfigError, did_you_mean
from mathenv.problems import problem_sources
from mathenv.problems.files import KINDS, file_stem, file_suffix

__all__ = ["SUITES", "Published", "Suite", "find_suite", "find_suites", "suite_names"]

SUITES: dict[str, Suite] = {
    module.SUITE.name: module.SUITE
    for module in (
        gsm8k,
        math,
        math500,
        svamp,
        asdiv,
        mawps,
        gsm_hard,
        aime24,
        aime25,
        amc23,
        words,
        words_ood,
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
    if suite is None and (file_suffix(name) or Path(name).exists()):
        suite = Suite(file_stem(Path(name)), str(Path(name)))
        if Path(name).exists() and "/" not in suite.source:
            suite = replace(suite, source=f"./{suite.source}")
    if suite is None:
        raise ConfigError(
            f"no suite is called {name!r}{did_you_mean(name, suite_names())}: use "
            f"{', '.join(suite_names())}, the path of {KINDS}, or of a folder with <split>.jsonl"
        )
    if split is None or split == suite.split:
        return suite
    published = tuple(number for number in suite.published if number.split == split)
    return replace(suite, split=split, size=0, published=published)


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
