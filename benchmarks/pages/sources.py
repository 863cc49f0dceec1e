"""Which trajectory files a path holds, and what each of them is in its run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathenv.errors import ConfigError, DataError
from mathenv.store import FILE_NAME, read_object

RESULTS = "results.json"
_TEST_FILE = re.compile(r"(.+)-(\d+)")


@dataclass(frozen=True, slots=True)
class Source:
    """One file of trajectories.

    `phase` is demonstrations, rollouts, validation or test in a training run, else episodes.
    `iteration` is 0 for what belongs to the fine-tuned policy that a run starts from, None
    outside of training runs. `name` is a checkpoint or a suite.
    """

    path: Path
    phase: str = "episodes"
    learner: str = ""
    seed: int | None = None
    iteration: int | None = None
    name: str = ""


@dataclass(frozen=True, slots=True)
class SeedFolder:
    """One seed of a training run (see `learners.run`) and its manifest."""

    path: Path
    seed: int
    manifest: dict[str, Any]

    @property
    def learners(self) -> tuple[str, ...]:
        """Names of the learners that have begun an iteration here."""
        folders = sorted({p.parent for p in self.path.glob("*/iteration-*")})
        return tuple(folder.name for folder in folders)

    def iterations(self, learner: str) -> list[tuple[int, Path]]:
        """Return (number, folder) of a learner's iterations, in order."""
        found = (self.path / learner).glob("iteration-*")
        return sorted((int(p.name.removeprefix("iteration-")), p) for p in found if p.is_dir())


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What was found. `seeds` is empty for anything that is not a training run."""

    path: Path
    sources: tuple[Source, ...]
    seeds: tuple[SeedFolder, ...] = ()
    bench: tuple[Path, ...] = ()  # folders that `mathenv bench` finished


def find_run(path: Path) -> RunFiles:
    """Look at a run folder, a benchmark's folder, or a trajectory file.

    Raises:
        ConfigError: there is nothing to show; the message says what can be shown.
        DataError: a manifest is damaged.
    """
    seeds = tuple(_seed_folders(path))
    if seeds:
        sources = tuple(source for seed in seeds for source in _training_sources(seed))
        return RunFiles(path, sources, seeds)
    if path.suffix == ".jsonl" and path.is_file():
        return RunFiles(path, (Source(path, name=path.stem),))
    if (path / FILE_NAME).is_file():
        folders = [path]
    else:
        folders = sorted(file.parent for file in path.glob(f"*/{FILE_NAME}"))
    if not folders:
        raise ConfigError(
            f"{path} holds no run: give the --out folder of mathenv iterate, demo, bench or "
            "collect, or a .jsonl file of trajectories"
        )
    sources = tuple(Source(f / FILE_NAME, name=f.name) for f in folders)
    return RunFiles(path, sources, bench=tuple(f for f in folders if (f / RESULTS).is_file()))


def _seed_folders(path: Path) -> Iterator[SeedFolder]:
    candidates = [p for p in path.glob("seed-*") if p.name.removeprefix("seed-").isdecimal()]
    for folder in sorted(candidates, key=lambda p: int(p.name.removeprefix("seed-"))) or [path]:
        file = folder / "manifest.json"
        remedy = f"restore it from a copy, or remove {folder} and make the run again"
        manifest = read_object(file, remedy) if file.is_file() else {}
        if "recipe" not in manifest:
            continue
        try:
            seed = int(manifest["recipe"].get("seed", 0))
        except (AttributeError, TypeError, ValueError):
            raise DataError(f"{file} is damaged (its recipe is none): {remedy}") from None
        yield SeedFolder(folder, seed, manifest)


def _training_sources(seed: SeedFolder) -> Iterator[Source]:
    """Yield the files of one seed in the order in which they were written."""
    yield from _existing(
        Source(seed.path / "sft" / "demonstrations.jsonl", "demonstrations", "", seed.seed, 0)
    )
    yield from _existing(Source(seed.path / "test" / "sft.jsonl", "test", "", seed.seed, 0, "SFT"))
    for learner in seed.learners:
        for number, folder in seed.iterations(learner):
            place = (learner, seed.seed, number)
            yield from _existing(Source(folder / "rollouts.jsonl", "rollouts", *place))
            checked = folder / "validation"
            for file in sorted(checked.glob("*.jsonl"), key=_validation_order):
                if not file.name.endswith(".failed.jsonl"):
                    yield Source(file, "validation", *place, file.stem)
    for file in sorted((seed.path / "test").glob("*-*.jsonl")):
        match = _TEST_FILE.fullmatch(file.stem)
        if match and match[1] in seed.learners:
            yield Source(file, "test", match[1], seed.seed, int(match[2]))


def _validation_order(file: Path) -> tuple[int, str]:
    number = file.stem.removeprefix("step-")
    return (int(number) if number.isdecimal() else -1, file.stem)


def _existing(source: Source) -> Iterator[Source]:
    if source.path.is_file():
        yield source
