"""What a session can import and read: an explicit list, made from installed distributions.

A session sees the operating system's libraries, the standard library, and the packages of this
list with what they require. Nothing else is there: not the rest of `site-packages`, not this
project, whose problems come with answers. The sandbox enforces it (`runner.py`, `sandbox.py`);
this file only says what is on the list. Standard library only: an image holds this file too.
"""

from __future__ import annotations

import csv
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import site
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mathenv.errors import ConfigError

# What models are told that they have; those that are installed can be imported.
DEFAULT_PACKAGES = ("sympy", "numpy", "scipy", "mpmath", "pandas", "matplotlib")
# What NumPy's `set_printoptions(legacy=...)` knows; "1.25" prints scalars as NumPy 1 did.
NUMPY_LEGACY = ("1.13", "1.21", "1.25", "2.1")
_OURS = Path(__file__).parents[1]
_SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime")
_SITE = ("site-packages", "dist-packages")
_NAMESPACE = re.compile(rb"extend_path|declare_namespace")


@dataclass(frozen=True, slots=True)
class View:
    """What the sessions of an interpreter find.

    Attributes:
        roots: folders and files of the system and of Python that can be read.
        hidden: folders below the roots that cannot.
        packages: name below the folder of packages -> the file or folder that it stands for.
        preload: modules that are imported before there are sessions.
        numpy_legacy: NumPy's print mode, None for its own.
    """

    roots: tuple[str, ...]
    hidden: tuple[str, ...]
    packages: dict[str, str]
    preload: tuple[str, ...] = ()
    numpy_legacy: str | None = None


def make_view(
    packages: Sequence[str] = (), preload: Sequence[str] = (), numpy_legacy: str | None = None
) -> View:
    """Return the view of sessions that may import `packages` besides the usual ones.

    Args:
        packages: installed distributions or their top modules, such as `"scikit-learn"` or
            `"sklearn"`. What they require comes along.
        preload: modules that sessions find already imported; they need not be in `packages`.
        numpy_legacy: one of `NUMPY_LEGACY`, or None.

    Raises:
        ConfigError: something is not installed, or would bring this project into sessions.
    """
    for name, value in (("packages", packages), ("preload", preload)):
        if isinstance(value, str) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{name}={value!r}: must be a sequence of names, such as ('pandas',)")
    if numpy_legacy is not None and numpy_legacy not in NUMPY_LEGACY:
        choices = ", ".join(map(repr, NUMPY_LEGACY))
        raise ConfigError(f"numpy_legacy={numpy_legacy!r}: choose one of {choices}, or None")
    roots = _roots()
    wanted = _Wanted()
    for name in DEFAULT_PACKAGES:
        wanted.add_distribution(name)
    for name in (*packages, *(module.partition(".")[0] for module in preload)):
        if name not in sys.stdlib_module_names:
            wanted.add(name)
    links = wanted.links()
    _refuse_ourselves(wanted.distributions, links)
    return View(roots, _hidden(roots), links, tuple(preload), numpy_legacy)


def describe(
    packages: Sequence[str], preload: Sequence[str], numpy_legacy: str | None
) -> dict[str, str]:
    """Return what of an interpreter's description differs from the usual, as plain texts."""
    values = {"packages": ", ".join(packages), "preload": ", ".join(preload)}
    values["numpy_legacy"] = numpy_legacy or ""
    return {name: value for name, value in values.items() if value}


def _refuse_ourselves(distributions: Iterable[str], links: dict[str, str]) -> None:
    ours = [str(_OURS.parent / name) for name in ("mathenv", "agents", "learners", "benchmarks")]
    inside = [s for s in links.values() if any(f"{s}/".startswith(f"{o}/") for o in ours)]
    if "mathenv" in distributions or str(_OURS.parent) in links.values() or inside:
        raise ConfigError(
            "packages: sessions must not see mathenv, nor a package that requires it: its "
            "problem sets come with their answers"
        )


# --------------------------------------------------------------------------- packages


class _Wanted:
    """Collects distributions, and modules that belong to none."""

    def __init__(self) -> None:
        self.distributions: dict[str, importlib.metadata.Distribution] = {}
        self._modules: set[str] = set()

    def add(self, name: str) -> None:
        """Add a distribution or a module by its name. Raises `ConfigError` if it is neither."""
        if self.add_distribution(name):
            return
        owners = importlib.metadata.packages_distributions().get(name, [])
        for owner in owners:
            self.add_distribution(owner)
        if not owners:
            if _location(name) is None:
                raise ConfigError(f"packages: {name!r} is not installed in this Python")
            self._modules.add(name)

    def add_distribution(self, name: str) -> bool:
        """Add an installed distribution and what it requires; False where there is none."""
        pending, found = [name], False
        while pending:
            name = _canonical(pending.pop())
            if name in self.distributions:
                found = True
                continue
            try:
                distribution = importlib.metadata.distribution(name)
            except (importlib.metadata.PackageNotFoundError, ValueError):
                continue
            found = True
            self.distributions[name] = distribution
            pending += _required(distribution)
        return found

    def links(self) -> dict[str, str]:
        """Return the name that each file or folder has in a session -> where it is."""
        links: dict[str, str] = {}
        owned: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        for name, distribution in self.distributions.items():
            base = os.path.realpath(str(distribution.locate_file("")))
            files = list(_files(distribution))
            for path in files:
                *folders, file = path.split("/")
                for depth, folder in enumerate(folders):
                    owned[base]["/".join(folders[:depth])].add(folder)
                owned[base]["/".join(folders)].add(file)
            if not any(_is_module(path) for path in files):  # editable, or of the system
                self._modules |= _top_modules(name, distribution)
        for base, children in owned.items():
            links |= {path: f"{base}/{path}" for path in _cover(base, "", children)}
        for module in self._modules:
            if (location := _location(module)) is not None:
                links[os.path.basename(location)] = location
        return links


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _required(distribution: importlib.metadata.Distribution) -> list[str]:
    """Names of what it requires, extras apart. What only other systems need is not installed."""
    names = []
    for line in distribution.requires or ():
        requirement, _, marker = line.partition(";")
        match = re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", requirement)
        if match and not re.search(r"\bextra\b", marker):
            names.append(match[1])
    return names


def _files(distribution: importlib.metadata.Distribution) -> Iterator[str]:
    """Paths of its files below the folder that it is installed in."""
    record = distribution.read_text("RECORD") or ""
    for row in csv.reader(record.splitlines()):
        path = row[0] if row else ""
        # A .pth file is code for the start of a Python outside.
        if path and not path.startswith(("..", "/")) and not path.endswith(".pth"):
            yield path


def _is_module(path: str) -> bool:
    """Whether the path is a file that can be imported, and not the hook of an editable install."""
    endings = (".py", *importlib.machinery.EXTENSION_SUFFIXES)
    return path.endswith(endings) and not path.startswith("__editable__")


def _top_modules(name: str, distribution: importlib.metadata.Distribution) -> set[str]:
    listed = distribution.read_text("top_level.txt") or ""
    return set(listed.split()) or {name.replace("-", "_")}


def _location(module: str) -> str | None:
    """The file or folder of a top module, None where there is none to be found."""
    try:
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
    except (ImportError, ValueError, AttributeError):
        spec = None
    if spec is None or spec.origin is None or not os.path.exists(spec.origin):
        return None
    origin = os.path.realpath(spec.origin)
    return os.path.dirname(origin) if spec.submodule_search_locations else origin


def _cover(base: str, folder: str, children: dict[str, set[str]]) -> Iterator[str]:
    """Yield the files and whole folders that make up what is wanted below `folder`.

    A folder that others may have put something into, such as that of a namespace package, is
    not taken whole.
    """
    for name in sorted(children[folder]):
        path = f"{folder}/{name}" if folder else name
        if not os.path.lexists(f"{base}/{path}"):
            continue
        if path in children and not _is_whole(base, path, children):
            yield from _cover(base, path, children)
        else:
            yield path


def _is_whole(base: str, folder: str, children: dict[str, set[str]]) -> bool:
    """Whether all that is in a folder belongs to what is wanted."""
    if folder == "__pycache__":  # of modules that are single files, everybody's
        return False
    if "__init__.py" in children[folder]:
        with open(f"{base}/{folder}/__init__.py", "rb") as file:
            return not _NAMESPACE.search(file.read())
    for name in os.listdir(f"{base}/{folder}"):
        path = f"{folder}/{name}"
        if name == "__pycache__":
            continue
        if name not in children[folder] or (
            path in children and not _is_whole(base, path, children)
        ):
            return False
    return True


# ------------------------------------------------------------------- system and Python


def _standard_library() -> list[str]:
    """Folders of the standard library, which a virtual environment shares with its Python."""
    base = {"platbase": sys.base_exec_prefix, "base": sys.base_prefix}
    return [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]


def _roots() -> tuple[str, ...]:
    """Return the folders that Python itself needs; nothing above another one."""
    wanted = [*_SYSTEM, *_SYSTEM_FILES]
    wanted += _standard_library()
    wanted += [os.path.join(prefix, "lib") for prefix in (sys.base_prefix, sys.base_exec_prefix)]
    kept: list[str] = []
    for path in sorted({os.path.abspath(p) for p in wanted if os.path.exists(p)}):
        if not any(path.startswith(other + "/") for other in kept):
            kept.append(path)
    return tuple(kept)


def _hidden(roots: Sequence[str]) -> tuple[str, ...]:
    """Return the folders below the roots that hold other people's Python code, or ours."""
    places = {_OURS.parent / name for name in ("mathenv", "agents", "learners", "benchmarks")}
    for root in map(Path, roots):
        for pattern in ("", "python*/", "*/python*/"):
            places |= {found for name in _SITE for found in root.glob(pattern + name)}
    standard = [path + "/" for path in _standard_library()]
    for entry in (*sys.path, *site.getsitepackages(), site.getusersitepackages()):
        holds_python = any(path.startswith(entry.rstrip("/") + "/") for path in standard)
        if entry and not holds_python and os.path.basename(entry) != "lib-dynload":
            places.add(Path(entry))
    bounds = [os.path.realpath(root) for root in roots]
    real = {os.path.realpath(place) for place in places if place.is_dir()}
    return tuple(sorted(p for p in real if any(p.startswith(b + "/") for b in bounds)))
