"""`mathenv export` and `mathenv import`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.console import ResultConsole
from learners.interchange import Format, Row, kto_row, openai_row, trajectories_from, trl_row
from learners.preferences import PairRules, preference_pairs
from mathenv.errors import ConfigError, DataError
from mathenv.problems.files import read_file
from mathenv.settings import Count, Seed, check_settings
from mathenv.store import TrajectoryStore, read_trajectories, write_atomic
from mathenv.types import Trajectory


@dataclass(frozen=True, slots=True)
class Export:
    """Write stored trajectories in a format that other trainers read, one JSON object a line.

    Episodes in which the machinery failed, and those without a turn, are left out.

    Args:
        runs: .jsonl files or folders with trajectories (of collect, bench or iterate).
        out: the file to write.
        format: openai: conversations with masks per message and per token. trl: preference
            pairs (prompt, chosen, rejected). kto: prompt, completion and label.
        pairs: pairs per problem at most (format trl).
        seed: which trajectories are paired (format trl).
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    out: Path
    format: Format = "openai"
    pairs: Count = 1
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_settings(self)

    def run(self) -> None:
        """Read, convert and write the file at once."""
        if not self.runs:
            raise ConfigError("nothing to export: name a .jsonl file or a folder with trajectories")
        stored = [t for run in self.runs for t in read_trajectories(run)]
        rows = list(self._rows([t for t in stored if t.counts and t.turns]))
        if not rows:
            raise DataError(
                f"no row for the format {self.format} in {len(stored)} trajectories"
                + (": pairs need a right and a wrong one of a problem" * (self.format == "trl"))
            )
        write_atomic(self.out, "".join(json.dumps(row) + "\n" for row in rows))
        ResultConsole().say(f"{len(rows)} rows of {len(stored)} trajectories: {self.out}")

    def _rows(self, trajectories: list[Trajectory]) -> Iterable[Row]:
        if self.format == "trl":
            # Length is the business of whoever trains.
            rules = PairRules(per_problem=self.pairs, max_tokens=2**31)
            return map(trl_row, preference_pairs(trajectories, rules, seed=self.seed)[0])
        return map(openai_row if self.format == "openai" else kto_row, trajectories)


@dataclass(frozen=True, slots=True)
class Import:
    """Read conversations or preference pairs into a folder of trajectories.

    Takes what `mathenv export` writes, and files of others: OpenAI conversations (`messages`)
    and TRL's `prompt` with `chosen` and `rejected`, or with `completion`. These need the
    reference answer in `answer` and are graded; `mathenv convert --from trajectories` then
    gives them tokens, which learners need.

    Pairs are not kept: learners pair right with wrong trajectories of a problem themselves.
    Rows without an `id` are a problem each, so of those every chosen one that is right stays
    with its rejected one that is wrong.

    Args:
        file: .jsonl file.
        out: the store to add to, a .jsonl file or a folder.
    """

    file: Annotated[Path, tyro.conf.Positional]
    out: Path

    def run(self) -> None:
        """Convert every row, then write: a bad row leaves no half of a file."""
        rows = [row.fields for row in read_file(self.file)]
        if not rows:
            raise DataError(f"{self.file} is empty: there is nothing to import")
        try:
            trajectories = list(trajectories_from(rows))
        except DataError as error:
            raise DataError(f"{self.file}, {error}") from None
        with TrajectoryStore(self.out) as store:
            new = [trajectory for trajectory in trajectories if trajectory.key not in store]
            for trajectory in new:
                store.append(trajectory)
        right = sum(trajectory.grade.correct for trajectory in new)
        known = len(trajectories) - len(new)
        ResultConsole().say(
            f"{len(new)} trajectories, {right} of them right: {self.out}"
            + f"; {known} were there already" * bool(known)
        )
