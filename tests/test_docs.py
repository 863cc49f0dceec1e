"""The documentation builds without a warning, shows the whole public API, and loads nothing."""

from __future__ import annotations

import ast
import fcntl
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest
from mkdocstrings import Inventory

# The first test builds the site, perhaps on a machine that does much else.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parent.parent
LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src"}
# `link` elements that a browser does not fetch.
NAMING = {"canonical", "next", "prev"}
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, built once for all workers of a run."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "site"
    with (shared / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            build(folder)
    return folder


def build(folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(partial)]
    # Without the theme's banner about its successor, which is no finding of the build.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not re.findall(r"^(?:WARNING|ERROR).*", done.stderr, re.M)
    partial.rename(folder)


class Loaded(HTMLParser):
    """The addresses that a browser fetches for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in LOADING and not NAMING & set((values.get("rel") or "").split()):
            self.addresses.append(values.get(LOADING[tag]) or "")


def test_nothing_is_loaded_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert loaded.addresses
        assert not [a for a in loaded.addresses if re.match(r"(?:\w+:)?//", a)], page
    for sheet in site.rglob("*.css"):
        fetched = re.findall(
            r"(?:@import|url\()\s*[\"']?((?:https?:)?//[^\"')]+)", sheet.read_text()
        )
        assert not fetched, sheet


@pytest.mark.parametrize(
    "package",
    ["mathenv", "mathenv.problems", "mathenv.grading", "mathenv.interpreter", "learners"],
)
def test_the_reference_has_every_public_name(site, package):
    with (site / "objects.inv").open("rb") as stream:
        known = {name.rpartition(".")[2] for name in Inventory.parse_sphinx(stream)}
    module = import_module(package)
    public = {name for name in module.__all__ if callable(getattr(module, name))}
    assert len(public) > 5
    assert public <= known


# A command's flags are in its --help; the rest is for the modules that use it.
NOT_IN_THE_REFERENCE = {
    "agents": {"templates", "episode_log", "models.threaded"},
    "benchmarks": {
        *("commands", "pages", "studies", "work"),
        *("console", "curve", "failures", "learning", "ownership", "progress"),
        *("start", "tracking"),
    },
}


@pytest.mark.parametrize("package", NOT_IN_THE_REFERENCE)
def test_the_reference_has_every_public_name_of_a_package_of_modules(site, package):
    """These packages' own modules are empty: what is public is what their modules define."""
    with (site / "objects.inv").open("rb") as stream:
        known = set(Inventory.parse_sphinx(stream))
    absent = NOT_IN_THE_REFERENCE[package]
    public = set()
    for file in sorted((ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        inner = module.removeprefix(f"{package}.")
        if inner in absent or inner.partition(".")[0] in absent:
            continue
        for node in ast.parse(file.read_text()).body:  # read: not every extra is installed
            if isinstance(node, DEFINITIONS) and not node.name.startswith("_"):
                public.add(f"{module}.{node.name}")
    assert len(public) > 40
    assert sorted(public - known) == []


def test_formulas_are_mathml_and_the_readmes_are_pages(site):
    theory = (site / "theory" / "index.html").read_text()
    assert theory.count("<math") > 5
    assert "\\frac" not in theory
    learners = (site / "learners" / "index.html").read_text()
    assert 'href="../three-seeds/"' in learners


def test_the_search_index_is_here(site):
    index = json.loads((site / "search" / "search_index.json").read_text())
    assert any("M-KTO" in entry["text"] for entry in index["docs"])
