"""Where collected episodes go: finished ones into the store, failed ones into a file beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from mathenv.errors import InfraError
from mathenv.store import (
    FILE_NAME,
    TrajectoryStore,
    read_trajectories,
    to_json,
    write_atomic,
)
from mathenv.types import GradeStatus, Trajectory

Progress = Callable[[Trajectory, int, int], None]
_FIRST = 20  # episodes after which a sick machine is given up on


def failed_path(path: Path) -> Path:
    """Return the file that holds the episodes that failed beside the store at `path`."""
    return path.with_suffix(".failed.jsonl")


def read_collected(path: Path) -> list[Trajectory]:
    """Return the finished episodes of a store and the failed ones, which do not count."""
    failed = failed_path(path if path.suffix == ".jsonl" else path / FILE_NAME)
    finished = list(read_trajectories(path))
    if not failed.exists():
        return finished
    # A killed run may have played one again and not yet dropped its failure.
    keys = {t.key for t in finished}
    return [*finished, *(t for t in read_trajectories(failed) if t.key not in keys)]


class EpisodeLog:
    """Files episodes as they end, and gives up where most of them fail.

    The failure of an episode stands in the file beside the store until it has been played:
    a run that is killed while it tries again still knows which those were.

    Args:
        todo: keys of the episodes to come, earlier failures among them.
        progress: called after each episode with its trajectory, the number of episodes
            there are (earlier ones in the store included) and how many there will be.
    """

    def __init__(
        self, store: TrajectoryStore, todo: set[str], progress: Progress | None = None
    ) -> None:
        self._store, self._progress = store, progress
        self._done, self._total = len(store), len(store) + len(todo)
        self._new = self._new_failed = self._again = 0
        self._failed: set[str] = set()
        self._last = ""
        self._failures = ExitStack()
        self._failed_store: TrajectoryStore | None = None
        file = failed_path(store.path)
        self._earlier = {t.key: t for t in read_trajectories(file)} if file.exists() else {}

    def __enter__(self) -> EpisodeLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self._failures.close()
        if self._again:
            self._update_failures()

    def __contains__(self, key: object) -> bool:
        """Whether an episode is finished, or has failed in this call."""
        return key in self._store or key in self._failed

    def add(self, trajectory: Trajectory) -> None:
        """File one episode. It is on disk when this returns.

        Raises:
            InfraError: most of the first ones failed.
        """
        again = trajectory.key in self._earlier
        self._done += 1
        self._new += not again
        self._again += again
        # A reference answer that cannot be graded is excluded too, but would be next time.
        if trajectory.grade.status is GradeStatus.INFRA:
            self._failed.add(trajectory.key)
            self._new_failed += not again
            self._last = trajectory.grade.detail
            if again:
                self._earlier[trajectory.key] = trajectory
            else:
                self._failures_file().append(trajectory)
        else:
            self._store.append(trajectory)
        self._stop_if_sick(_FIRST)
        if self._progress is not None:
            self._progress(trajectory, self._done, self._total)

    def check(self) -> int:
        """Return how many failed in this call.

        Raises:
            InfraError: most of those that were new to it did, or most of all that there are.
                That some fail which had failed before is no news.
        """
        # All of a few may fail: what a killed run had in flight is above all what hangs.
        self._stop_if_sick(min(_FIRST, self._done / 20))
        return len(self._failed)

    def _stop_if_sick(self, least: float) -> None:
        """Raise where most of at least so many failed."""
        for failed, played in (
            (self._new_failed, self._new),
            (len(self._failed), self._done),
        ):
            if played >= least and failed > played / 2:
                raise InfraError(
                    f"{failed} of {played} episodes failed in the machinery, the last one "
                    f"with: {self._last or 'no reason given'}. They are in "
                    f"{failed_path(self._store.path)}, the others are kept: mend it and run the "
                    "same command again"
                )

    def _failures_file(self) -> TrajectoryStore:
        if self._failed_store is None:
            failed = TrajectoryStore(failed_path(self._store.path))
            self._failed_store = self._failures.enter_context(failed)
        return self._failed_store

    def _update_failures(self) -> None:
        """Keep what is still unfinished, as it failed last; the store's lock covers both."""
        file = failed_path(self._store.path)
        rows = {t.key: t for t in read_trajectories(file)} | self._earlier
        kept = [t for key, t in rows.items() if key not in self._store]
        if kept:
            write_atomic(file, "".join(json.dumps(to_json(t)) + "\n" for t in kept))
        else:
            file.unlink()
