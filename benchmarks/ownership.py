"""Who owns our import names: `agents` and `benchmarks` are words that others use too."""

from __future__ import annotations

import re
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("mathenv", "agents", "learners", "benchmarks")
_HOME = Path(__file__).resolve().parents[1]


def trouble(package: str) -> str:
    """Return why importing `package` need not give ours, with what to do; "" if it does."""
    spec = find_spec(package)
    origin = None if spec is None or spec.origin is None else Path(spec.origin).resolve()
    others = [d for d in packages_distributions().get(package, ()) if _plain(d) != "mathenv"]
    if origin is not None and origin.parent == _HOME / package and not others:
        return ""
    owner = " and ".join(sorted(set(others))) or f"{origin or 'nothing that can be found'}"
    return (
        f"the import name `{package}` belongs to {owner} here, and one of them hides the other: "
        "keep this project in an environment of its own, and start it in another folder than one "
        f"that holds `{package}`"
    )


def _plain(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
