"""The page as one HTML file: no server, nothing loaded from elsewhere.

Data stand in it as gzip in base64, in `<script>` elements that no browser runs: a text that a
model wrote can neither end the element nor be parsed as markup. The page's own script puts text
into the document as text only, and its Content-Security-Policy allows that script (by hash) and
no request to anywhere.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from benchmarks.pages.data import PageData, PageOptions, build
from benchmarks.progress import Advance
from mathenv.files import check_writable
from mathenv.store import write_atomic

FILE = "report.html"
_SCRIPTS = ("charts.js", "tokens.js", "detail.js", "viewer.js", "page.js")  # the last starts


def write_report(
    run: Path,
    out: Path | None = None,
    options: PageOptions | None = None,
    advance: Advance | None = None,
) -> Path:
    """Write the page of a run and return its path, by default `report.html` in the run folder.

    Raises:
        ConfigError: there is nothing to show. DataError: a file of the run is damaged.
        StorageError: the page cannot be written there.
    """
    target = out or (run / FILE if run.is_dir() else run.with_suffix(".html"))
    if run.exists():  # of what does not, `build` says so
        check_writable(target)
    page = build(run, options, advance)
    write_atomic(target, render(page))
    return target


def render(page: PageData) -> str:
    """Return the HTML."""
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    style = _asset("page.css")
    blocks = [_block("summary", page.summary)]
    blocks += [_block(f"chunk-{i}", chunk) for i, chunk in enumerate(page.chunks)]
    return Template(_asset("page.html")).substitute(
        policy=_policy(script, style),
        title=escape(page.title),
        style=style,
        data="\n".join(blocks),
        script=script,
    )


def _asset(name: str) -> str:
    return (files("benchmarks") / "pages" / name).read_text(encoding="utf-8")


def _block(name: str, value: Any) -> str:
    # ASCII JSON keeps a lone surrogate of a model's output; a fixed time stamp (gzip's header)
    # gives the same bytes for the same run.
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    return f'<script type="application/gzip+base64" id="{name}">{packed}</script>'


def _policy(script: str, style: str) -> str:
    sources = {"script-src": script, "style-src": style}
    allowed = [f"{name} 'sha256-{_digest(text)}'" for name, text in sources.items()]
    return "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
