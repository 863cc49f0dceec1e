"""What a user should hear once, though nothing fails: one line on standard error.

Goes through `logging` (logger "mathenv"), so a program that embeds this package decides itself
where the lines go. Of several processes that train together only the first speaks.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache

_LOG = logging.getLogger("mathenv")


@lru_cache(maxsize=256)
def notice(text: str) -> None:
    """Say `text`, unless this process has said it before."""
    if os.environ.get("RANK", "0") == "0":
        _LOG.warning("mathenv: %s", text)
