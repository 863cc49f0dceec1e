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
    return [*finished, *read_trajectories(failed)] if failed.exists() else finished


class EpisodeLog:
    """Files episodes as they end, and gives up where most of them fail.

    Args:
        todo: keys of the episodes to come. Their earlier failures are dropped.
        progress: called after each episode with its trajectory, the number of episodes
            there are (earlier ones in the store included) and how many there will be.
    """

    def __init__(
        self, store: TrajectoryStore, todo: set[str], progress: Progress | None = None
    ) -> None:
        self._store, self._progress = store, progress
        self._done, self._total = len(store), len(store) + len(todo)
        self._new = self._failed = 0
        self._last = ""
        self._failures = ExitStack()
        self._failed_store: TrajectoryStore | None = None
        self._forget(todo)

    def __enter__(self) -> EpisodeLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self._failures.close()

    def __contains__(self, key: object) -> bool:
        """Whether an episode was filed, among the finished ones or among the failed ones."""
        failed = self._failed_store
        return key in self._store or (failed is not None and key in failed)

    def add(self, trajectory: Trajectory) -> None:
        """File one episode. It is on disk when this returns.

        Raises:
            InfraError: most of the first ones failed.
        """
        self._done += 1
        self._new += 1
        # A reference answer that cannot be graded is excluded too, but would be next time.
        if trajectory.grade.status is GradeStatus.INFRA:
            self._failed += 1
            self._last = trajectory.grade.detail
            self._failures_file().append(trajectory)
        else:
            self._store.append(trajectory)
        if self._new >= _FIRST:
            self.check()
        if self._progress is not None:
            self._progress(trajectory, self._done, self._total)

    def check(self) -> int:
        """Return how many failed. Raises `InfraError` where that is most of them."""
        if self._failed > self._new / 2:
            raise InfraError(
                f"{self._failed} of {self._new} episodes failed in the machinery, the last one "
                f"with: {self._last or 'no reason given'}. They are in "
                f"{failed_path(self._store.path)}, the others are kept: mend it and run the same "
                "command again"
            )
        return self._failed

    def _failures_file(self) -> TrajectoryStore:
        if self._failed_store is None:
            failed = TrajectoryStore(failed_path(self._store.path))
            self._failed_store = self._failures.enter_context(failed)
        return self._failed_store

    def _forget(self, todo: set[str]) -> None:
        """Drop the earlier failures that are tried again now; the store's lock covers both."""
        file = failed_path(self._store.path)
        if not file.exists():
            return
        kept = [
            t for t in read_trajectories(file) if t.key not in todo and t.key not in self._store
        ]
        if kept:
            write_atomic(file, "".join(json.dumps(to_json(t)) + "\n" for t in kept))
        else:
            file.unlink()
