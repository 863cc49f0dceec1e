"""A run as plain JSON data for the page; read `build` first.

What the page says about a run is computed here from the run's own files, so that a run that is
still going, or was stopped, can be looked at too.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from agents.rollout import read_collected
from benchmarks.metrics import outcomes
from benchmarks.pages import tables
from benchmarks.pages.index import CHOSEN, CHUNK, REJECTED, SHOWN, TrajectoryIndex, Use
from benchmarks.pages.overview import Scored, chart_groups, key, result_tables, stage_name
from benchmarks.pages.pieces import TokenTexts, piece_texts
from benchmarks.pages.sources import RunFiles, SeedFolder, Source, find_run
from benchmarks.pages.tables import Stage, Table
from benchmarks.progress import Advance
from benchmarks.results import read_result
from learners.training.records import selected
from mathenv.settings import Count, CountFrom0, check_settings
from mathenv.types import Trajectory

FORMAT = 1


@dataclass(frozen=True, slots=True)
class PageOptions:
    """What goes into a page.

    Args:
        limit: trajectories of the whole run; large files are cut to equal shares. Those that
            were trained on come first, then a fixed random draw.
        ratios: examples (pairs) per iteration whose tokens' log-ratios are computed. Takes two
            forward passes each; 0 is off.
        tokenizer: folder with tokenizer.json, for trajectories whose run does not hold it.
    """

    limit: Count = 20_000
    ratios: CountFrom0 = 64
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True, slots=True)
class PageData:
    """`summary` is read at once, `chunks` (lists of trajectories) one by one. JSON values."""

    title: str
    summary: dict[str, Any]
    chunks: list[list[dict[str, Any]]]


@dataclass(slots=True)
class _Build:
    """What is gathered while files are read one after the other."""

    files: RunFiles
    options: PageOptions
    training: ModuleType | None
    share: int  # most trajectories of one file
    index: TrajectoryIndex = field(default_factory=TrajectoryIndex)
    sources: list[dict[str, Any]] = field(default_factory=list)
    pairs: list[list[int]] = field(default_factory=list)
    stages: dict[tuple[str, int], Stage] = field(default_factory=dict)  # (file, seed): scored
    notes: list[str] = field(default_factory=list)


def build(
    path: Path, options: PageOptions | None = None, advance: Advance | None = None
) -> PageData:
    """Gather everything that the page of a run shows.

    Args:
        advance: called with the number of trajectory files read and their number.

    Raises:
        ConfigError: there is nothing to show, or no tokenizer where the options say.
        DataError: a file of the run is damaged.
    """
    files = find_run(path)
    options = options or PageOptions()
    build = _Build(files, options, _training_module(files), _share(files, options.limit))
    for number, source in enumerate(files.sources):
        _add_source(build, number, source)
        if advance is not None:
            advance(number + 1, len(files.sources))
    index, scored = build.index, Scored(files, build.stages)
    summary = {
        "format": FORMAT,
        "title": _title(path),
        "about": _about(files),
        "tables": list(result_tables(scored)),
        "charts": list(chart_groups(scored)),
        "settings": _settings(files),
        "sources": build.sources,
        "pairs": build.pairs,
        **index.data(),
        **_pieces(build),
    }
    summary["notes"] = [*_left_out(build), *build.notes]  # last: the others add to them
    chunks = [index.details[i : i + CHUNK] for i in range(0, len(index), CHUNK)]
    return PageData(_title(path), summary, chunks)


def _training_module(files: RunFiles) -> ModuleType | None:
    if not files.seeds or find_spec("torch") is None or find_spec("transformers") is None:
        return None
    return import_module("benchmarks.pages.training")


def _share(files: RunFiles, limit: int) -> int:
    """Return the most trajectories of one file with which all files stay within `limit`."""
    sizes = sorted(_lines(source.path) for source in files.sources)
    left = limit
    for number, size in enumerate(sizes):
        share = left // (len(sizes) - number)
        if size > share:  # so are all that follow
            return max(1, share)
        left -= size
    return max(sizes, default=1)


def _lines(file: Path) -> int:
    with file.open("rb") as stream:
        return sum(1 for _ in stream)


def _title(path: Path) -> str:
    resolved = path.resolve()
    return f"{resolved.parent.name}/{resolved.name}".lstrip("/")


def _about(files: RunFiles) -> str:
    """Say in a line what was run."""
    if not files.seeds:
        return ""
    recipe = files.seeds[0].manifest["recipe"]
    learners = sorted({name for seed in files.seeds for name in seed.learners})
    seeds = ", ".join(str(seed.seed) for seed in files.seeds)
    parts = (
        f"Problems: {recipe['problems']['source']}",
        f"model: {recipe['model']}",
        f"learners: {', '.join(learners) or 'none yet'}",
        f"seeds: {seeds}",
    )
    return "; ".join(parts) + "."


def _left_out(build: _Build) -> Iterator[str]:
    kept, total = (sum(source[name] for source in build.sources) for name in ("kept", "total"))
    if kept < total:
        yield (
            f"{kept:,} of {total:,} trajectories can be read here: those that were trained on "
            "first, then a random draw of each large file. Tables and curves are of all. "
            "More: mathenv view --limit."
        )


def _add_source(build: _Build, number: int, source: Source) -> None:
    episodes = read_collected(source.path)
    counting = outcomes(episodes)
    excluded = sum(not t.counts for t in episodes)
    build.stages[key(source), source.seed or 0] = Stage(stage_name(source), counting, excluded)
    training, uses, pairs = _uses(build, source, episodes)
    kept = _kept(episodes, uses, pairs, build.share)
    if source.phase == "demonstrations" and build.training is not None:
        kept = build.training.with_tokens(_seed_of(build, source), kept)
        uses = {t.key: _demonstrated(t) for t in kept}
    rows = {t.key: build.index.add(number, t, uses.get(t.key, Use())) for t in kept}
    build.pairs += [[rows[w], rows[r]] for w, r in pairs if w in rows and r in rows]
    build.sources.append(
        {
            "phase": source.phase,
            "learner": source.learner,
            "seed": source.seed,
            "iteration": source.iteration,
            "name": source.name,
            "kept": len(kept),
            "total": len(episodes),
            **training,
        }
    )


def _uses(
    build: _Build, source: Source, episodes: Sequence[Trajectory]
) -> tuple[dict[str, Any], dict[str, Use], list[tuple[str, str]]]:
    """Return what training did with a file's trajectories: facts, uses by key, pairs of keys."""
    if source.phase == "demonstrations":
        return {}, {t.key: _demonstrated(t) for t in episodes}, []
    if source.phase != "rollouts":
        return {}, {}, []
    provenance = selected(source.path.parent) or []
    roles: dict[str, int] = {}
    for row in provenance:
        for side, bit in (("chosen", CHOSEN), ("rejected", REJECTED)):
            if side in row:
                roles[row[side]] = roles.get(row[side], 0) | bit
    pairs = [(row["chosen"], row["rejected"]) for row in provenance if len(row) > 1]
    if build.training is None:
        uses = {key: Use(role) for key, role in roles.items()}
        return {"note": "PyTorch was not there: no log-ratios"}, uses, pairs
    assert source.iteration is not None
    found = build.training.training_of(
        _seed_of(build, source), source.learner, source.iteration, episodes, build.options.ratios
    )
    uses = {
        key: Use(role, found.masks.get(key), found.ratios.get(key, ()))
        for key, role in roles.items()
    }
    facts: dict[str, Any] = {
        name: getattr(found, name) for name in ("policy", "reference", "eta", "note")
    }
    facts |= {"ratios": len(found.ratios), "scale": _scale(found.ratios.values())}
    return facts, uses, pairs


def _demonstrated(trajectory: Trajectory) -> Use:
    """Return what SFT makes of a demonstration: wrong ones are left out (`learners.run`)."""
    if not trajectory.grade.correct:
        return Use()
    return Use(SHOWN, trajectory.tokens.action_mask if trajectory.tokens else None)


def _scale(ratios: Iterable[Sequence[float]]) -> float:
    """Return the log-ratio that is drawn in the full colour: of 100 tokens, 95 have less."""
    sizes = sorted(abs(value) for values in ratios for value in values)
    return round(sizes[int(0.95 * len(sizes))], 3) or 0.001 if sizes else 0.0


def _seed_of(build: _Build, source: Source) -> SeedFolder:
    return next(s for s in build.files.seeds if s.seed == source.seed)


def _kept(
    episodes: Sequence[Trajectory],
    uses: Mapping[str, Use],
    pairs: Sequence[tuple[str, str]],
    share: int,
) -> list[Trajectory]:
    """Return at most `share` episodes in the order of the file, trained ones first.

    The ones with ratios come before other trained ones, and both sides of a pair together.
    """
    if len(episodes) <= share:
        return list(episodes)
    order = [t.key for t in episodes]
    random.Random(0).shuffle(order)
    paired = [key for pair in pairs for key in pair]
    wanted = dict.fromkeys([*(k for k in paired if k in uses), *uses, *order])
    ranked = sorted(wanted, key=lambda key: not (key in uses and uses[key].ratios))
    chosen = set(ranked[:share])
    return [t for t in episodes if t.key in chosen]


def _settings(files: RunFiles) -> list[Table]:
    if files.seeds:
        manifest = files.seeds[0].manifest
        return [
            tables.settings("Recipe", manifest["recipe"]),
            tables.settings("Environment", manifest.get("environment", {})),
        ]
    results = [read_result(folder) for folder in files.bench]
    found = [tables.settings(f"{r.suite}: what was asked for", r.config) for r in results]
    found += [tables.settings(f"{r.suite}: grading policy", r.policy) for r in results]
    return found + [tables.settings("Environment", r.environment) for r in results[:1]]


def _pieces(build: _Build) -> dict[str, Any]:
    """Return token ids and texts by piece. Where texts are missing a note says what to do."""
    index = build.index
    if not index.pieces:
        return {"pieces": {"ids": [], "texts": []}}
    place, texts = build.options.tokenizer or _own_tokenizer(build.files), None
    if place is not None and (build.options.tokenizer or find_spec("tokenizers")):
        texts = TokenTexts(place)
    found, unknown = piece_texts(index.pieces, index.records, texts)
    if unknown:
        build.notes.append(
            "Tokens are shown as numbers where their tokenizer is not known: build the page with "
            "--tokenizer and the model's folder."
        )
    return {"pieces": {"ids": [token for _, token in index.pieces], "texts": found}}


def _own_tokenizer(files: RunFiles) -> Path | None:
    for seed in files.seeds:
        for place in (seed.path / "base", *sorted(seed.path.glob("sft/train/step-*"))):
            if (place / "tokenizer.json").is_file():
                return place
    return None
