"""Problems: `load_problems("gsm8k")`, `load_problems("my.jsonl")`, or your own sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mathenv.errors import ConfigError, DataError, whole
from mathenv.problems import (
    aime24,
    aime25,
    amc23,
    asdiv,
    gsm8k,
    gsm_hard,
    math500,
    mawps,
    svamp,
    words,
)
from mathenv.problems import hendrycks_math as math
from mathenv.problems.base import (
    ProblemSource,
    find_source,
    problem_sources,
    register_problems,
    require_distinct_ids,
    select,
)
from mathenv.problems.files import file_suffix
from mathenv.problems.jsonl import load_jsonl
from mathenv.problems.label_issues import flag_label_issue, has_label_issue
from mathenv.types import Problem

__all__ = [
    "ProblemSource",
    "aime24",
    "aime25",
    "amc23",
    "asdiv",
    "find_source",
    "flag_label_issue",
    "gsm8k",
    "gsm_hard",
    "has_label_issue",
    "load_jsonl",
    "load_problems",
    "math",
    "math500",
    "mawps",
    "problem_sources",
    "register_problems",
    "require_distinct_ids",
    "select",
    "svamp",
]

WORDS_COUNT = 1000  # `words` never ends: what a split holds when no limit is given


def _register_words(name: str, ood: bool) -> None:
    @register_problems(name)
    def load(
        split: str, *, data: Path | None = None, limit: int | None = None, seed: int = 0
    ) -> Sequence[Problem]:
        if data is not None:
            raise ConfigError(f"{name} generates its problems: leave out data=")
        return words.load(split, count=limit or WORDS_COUNT, seed=seed, ood=ood)


_register_words("words", ood=False)
_register_words("words_ood", ood=True)


def load_problems(
    spec: str | Path | Sequence[Problem],
    split: str = "test",
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
) -> tuple[Problem, ...]:
    """Load one split of problems.

    `spec` is a registered name (see `problem_sources`), the path of a file (.jsonl, .json, .csv,
    .tsv, .parquet) or of a folder with `<split>.jsonl`, or problems at hand. `data` is a local
    file or folder with the rows of a named source; without it, published data sets come from the
    Hugging Face hub (extra `data`). `columns` says which columns of a file hold what, where they
    have unusual names: `{"question": "Aufgabe", "answer": "Ergebnis"}`. `limit` keeps that many
    problems, drawn with `seed`, in order. Known label errors are noted in
    `metadata["label_issue"]` (see `label_issues`).

    Raises `ConfigError` for wrong arguments or missing data, `DataError` for a bad row.
    """
    if limit is not None:
        limit = whole("limit", limit)
        if limit < 1:
            raise ConfigError(
                f"limit must be at least 1, not {limit}: leave it out for all problems"
            )
    seed = whole("seed", seed)
    if _is_path(spec):
        problems = tuple(_load_file(Path(str(spec)), split, data, columns))
    elif columns:
        raise ConfigError("columns= is for a file of your own: named sources know theirs")
    else:
        problems = tuple(_load(spec, split, None if data is None else Path(data), limit, seed))
    if not problems:
        raise DataError(f"{_name(spec)} has no problem in split {split!r}")
    require_distinct_ids(problems)
    return select(problems, limit, seed)


def _load(
    spec: str | Path | Sequence[Problem],
    split: str,
    data: Path | None,
    limit: int | None,
    seed: int,
) -> Sequence[Problem]:
    if not isinstance(spec, str | Path):
        wrong = next((item for item in spec if not isinstance(item, Problem)), None)
        if wrong is not None:
            raise ConfigError(f"expected Problem values, found {type(wrong).__name__}")
        return spec
    source = find_source(str(spec))
    return [flag_label_issue(p) for p in source(split, data=data, limit=limit, seed=seed)]


def _load_file(
    path: Path, split: str, data: str | Path | None, columns: Mapping[str, str] | None
) -> Sequence[Problem]:
    if data is not None:
        raise ConfigError(f"{path} is a path already: leave out data=")
    return [flag_label_issue(p) for p in load_jsonl(path, split, columns=columns)]


def _is_path(spec: str | Path | Sequence[Problem]) -> bool:
    if not isinstance(spec, str):
        return isinstance(spec, Path)
    if file_suffix(spec) or "/" in spec:
        return True
    return spec not in problem_sources() and Path(spec).exists()


def _name(spec: str | Path | Sequence[Problem]) -> str:
    return str(spec) if isinstance(spec, str | Path) else "the given sequence"
