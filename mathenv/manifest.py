"""What a result depends on besides its settings: versions and the machine."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = (
    "mathenv",
    "gymnasium",
    "numpy",
    "sympy",
    "math-verify",
    "latex2sympy2_extended",
    "torch",
    "transformers",
    "tokenizers",
    "vllm",
    "datasets",
)


def environment() -> dict[str, Any]:
    """Return Python, platform, processor count and the versions of what is installed."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": versions,
    }
