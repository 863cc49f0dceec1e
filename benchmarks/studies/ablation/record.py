"""The results as data: findings, and every greedy outcome they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from benchmarks.studies.ablation.findings import Finding
from benchmarks.studies.ablation.results import Results


def record(results: Results, judged: Sequence[Finding]) -> dict[str, Any]:
    """Return what a report says as JSON.

    `test` and `ood` have a string of 0 and 1 per variant, seed (and iteration; 0 is where a
    variant starts), in the order of `problems`; `-` is an episode that does not count.
    `samples` has the number of right ones and of all per problem.
    """
    problems = {
        name: sorted({p for found in results.measured.values() for p in _all(found[name])})
        for name in ("test", "ood", "samples")
    }
    return {
        "config": results.config,
        "findings": [
            {**asdict(finding), "claim": asdict(finding.claim), "verdict": finding.verdict.value}
            for finding in judged
        ],
        "failed": {f"{name}/{seed}": reason for (name, seed), reason in results.failed.items()},
        "problems": problems,
        "variants": {
            f"{name}/{seed}": _variant(found, problems)
            for (name, seed), found in sorted(results.measured.items())
        },
    }


def _variant(found: Mapping[str, Any], problems: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    return {
        "test": {
            number: _outcomes(outcomes, problems["test"])
            for number, outcomes in found["test"].items()
        },
        "ood": _outcomes(found["ood"], problems["ood"]),
        "samples": [
            [round(sum(found["samples"][p])), len(found["samples"][p])]
            if p in found["samples"]
            else None
            for p in problems["samples"]
        ],
        "diversity": {
            name: fmean(values.values()) if values else None
            for name, values in found["diversity"].items()
        },
        "iterations": [
            {
                **{k: v for k, v in iteration.items() if k != "rollouts"},
                "diversity": {k: fmean(v.values()) for k, v in iteration["rollouts"].items() if v},
            }
            for iteration in found["iterations"]
        ],
    }


def _all(outcomes: Mapping[str, Any]) -> set[str]:
    """Return the problems of outcomes, or of outcomes by iteration."""
    nested = [value for value in outcomes.values() if isinstance(value, Mapping)]
    return {p for inner in nested for p in inner} if nested else set(outcomes)


def _outcomes(outcomes: Mapping[str, Sequence[float]], problems: Sequence[str]) -> str:
    return "".join(f"{outcomes[p][0]:.0f}" if p in outcomes else "-" for p in problems)
