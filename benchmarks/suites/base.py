"""What a suite is: a named set of problems, where it comes from, what others scored on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mathenv.problems import load_problems
from mathenv.types import Problem


@dataclass(frozen=True, slots=True)
class Published:
    """A number to compare with: accuracy in percent. `split` where it is for a part alone."""

    system: str
    score: float
    setting: str
    source: str
    split: str = ""


@dataclass(frozen=True, slots=True)
class Suite:
    """A named set of problems.

    Args:
        name: what the command line and results call it.
        source: what `load_problems` takes.
        split: which split is measured.
        generated: its problems are made on the spot and need no data.
        about: one line for people.
        hub: where the rows come from when no local data are given.
        size: problems in `split` as published, 0 where that depends on the user.
        licence: of the data, as their authors state it.
        published: what others scored, each with its source.
        problems: the problems themselves, where they come from no source.
    """

    name: str
    source: str
    split: str = "test"
    generated: bool = False
    about: str = ""
    hub: str = ""
    size: int = 0
    licence: str = ""
    published: tuple[Published, ...] = ()
    problems: tuple[Problem, ...] = ()

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
        return load_problems(
            self.problems or self.source, self.split, data=place, limit=limit, seed=seed
        )
