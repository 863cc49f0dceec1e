"""What a session can see and import: nothing that holds an answer.

`answers.jsonl` holds ways to learn one, in which @NAMES@ stand for what the fixture has put
down. A cell that gets anywhere says FOUND.
"""

import dataclasses
import json
import os
import py_compile
import socket
import sqlite3
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from multiprocessing import shared_memory
from pathlib import Path

import pytest

import mathenv
from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter import Limits, LocalInterpreter, local
from mathenv.interpreter.packages import make_view

CASES = [
    json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text().splitlines()
]
PROJECT = str(Path(mathenv.__file__).parents[1])
LIMITS = Limits(cell_seconds=60.0, memory_bytes=512 << 20)
FOUND = """def found(thing):
    if thing is not None:
        print('FO' + 'UND', repr(thing)[:200])

"""


def plant(folder: Path) -> None:
    """Put the answer, swordfish, down in every form that the cells look for."""
    (folder / "answers.jsonl").write_text('{"answer": "swordfish"}\n')
    (folder / "answers.py").write_text("ANSWER = 'swordfish'\n")
    py_compile.compile(str(folder / "answers.py"))
    with zipfile.ZipFile(folder / "answers.zip", "w") as file:
        file.writestr("zipped.py", "ANSWER = 'swordfish'\n")
    with sqlite3.connect(folder / "answers.db") as base:
        base.execute("create table answers as select 'swordfish' as answer")
    base.close()
    plot = "import sys, matplotlib.image as m; m.imsave(sys.argv[1], [[0, 1]])"
    subprocess.run([sys.executable, "-c", plot, str(folder / "answers.png")], check=True)
    for name in ("holder", "home/.cache/huggingface/hub", "runs"):
        (folder / name).mkdir(parents=True)
    for name in ("holder/__init__.py", "holder/answers.jsonl", "runs/trajectories.jsonl"):
        (folder / name).write_text("'swordfish'\n")
    (folder / "home/.cache/huggingface/hub/answers.jsonl").write_text("swordfish")
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """@NAME@ -> what it stands for in a cell, while a host lives that has all of it."""
    folder = tmp_path_factory.mktemp("planted")
    for parent in (folder, folder.parent, folder.parent.parent):
        parent.chmod(0o755)
    plant(folder)
    with pytest.MonkeyPatch.context() as patch, (folder / "answers.jsonl").open() as file:
        patch.setenv("HOME", f"{folder}/home")
        patch.setenv("SECRET_ANSWER", "swordfish")
        patch.chdir(folder / "runs")
        patch.syspath_prepend(str(folder))
        os.set_inheritable(file.fileno(), True)
        memory = shared_memory.SharedMemory(create=True, size=64)
        memory.buf[:9] = b"swordfish"
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as abstract:
            server.bind(f"{folder}/socket")
            abstract.bind("\0mathenv-answers")
            server.listen()
            abstract.listen()
            yield {
                "@PROJECT@": repr(PROJECT),
                "@SITE@": repr(sysconfig.get_path("purelib")),
                "@SECRET@": repr(str(folder)),
                "@HOME@": repr(f"{folder}/home"),
                "@CWD@": repr(f"{folder}/runs"),
                "@HOST_PID@": str(os.getpid()),
                "@SHM@": memory.name,
            }
        memory.close()
        memory.unlink()


def fill_in(code: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        code = code.replace(name, value)
    assert "@" not in code
    return FOUND + code


@pytest.fixture(scope="module", params=["namespaces", "seccomp"])
def host(request, planted):
    """An interpreter with two sessions: one that leaves messages, and one that looks for them."""
    try:
        interpreter = LocalInterpreter(LIMITS, tier=request.param)
    except InfraError as error:
        pytest.skip(f"tier {request.param} does not work here: {error}")
    with interpreter, interpreter.session() as other, interpreter.session() as session:
        code = (
            "import fcntl, os, sympy\nopen('note', 'w').write('swordfish')\n"
            "fd = os.open(sympy.__file__, os.O_RDONLY)\nfcntl.lockf(fd, fcntl.LOCK_SH, 4, 0)\n"
            "fcntl.flock(fd, fcntl.LOCK_SH)\nos.getcwd()"
        )
        folder = other.run(code).output
        assert folder.startswith("'/")
        yield interpreter, session, {**planted, "@OTHER@": folder}


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_no_answer_is_found(host, case):
    interpreter, _, names = host
    with interpreter.session() as session:
        if interpreter.description["tier"] == "namespaces":
            # The other's folder has the same name as the own one: it is another folder.
            assert session.run("import os\nos.listdir()").output == "[]"
        result = session.run(fill_in(case["code"], names))
    assert str(result.status) in ("ok", "error"), result
    assert "FOUND" not in result.output
    assert "swordfish" not in result.output.replace("'swordfish' in ", "")
    assert "SyntaxError" not in result.output
    assert "NameError" not in result.output


def test_the_cells_find_what_is_there(planted, monkeypatch, request):
    """With a sandbox that shows too much, those that look for files do find them."""

    def leaky(*arguments):
        view = make_view(*arguments)
        shown = (PROJECT, os.path.dirname(planted["@SECRET@"].strip("'")))
        return dataclasses.replace(view, roots=(*view.roots, *shown), hidden=())

    monkeypatch.setattr(local, "make_view", leaky)
    try:
        interpreter = LocalInterpreter(LIMITS, tier="seccomp")
    except InfraError as error:
        pytest.skip(f"tier seccomp does not work here: {error}")
    with interpreter:
        for case in CASES:
            if case.get("leaks"):
                with interpreter.session() as session:
                    output = session.run(fill_in(case["code"], planted)).output
                assert "FOUND" in output, case["name"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wheel", "path"])
def test_answers_cannot_be_imported_however_mathenv_is_installed(tmp_path, way):
    """A script that has `mathenv` opens sessions that have not."""
    environment = {**os.environ, "PYTHONPATH": PROJECT if way == "path" else ""}
    python = Path(sys.executable)
    if way == "wheel":
        python = install_as_wheel(tmp_path)
    script = tmp_path / "host.py"
    script.write_text(
        "import sys, mathenv.problems\n"
        "from mathenv.errors import InfraError\n"
        "from mathenv.interpreter import LocalInterpreter, Limits\n"
        'cell = \'from mathenv.problems import load_problems\\nload_problems("words", "test")\'\n'
        "print(mathenv.__file__)\n"
        "for tier in ('namespaces', 'seccomp'):\n"
        "    try:\n"
        "        interpreter = LocalInterpreter(Limits(cell_seconds=60), tier=tier)\n"
        "    except InfraError as error:\n"
        "        print(tier, 'does not work here:', error)\n"
        "        continue\n"
        "    with interpreter, interpreter.session() as session:\n"
        "        print(session.run('import sympy, numpy, matplotlib; 1').output)\n"
        "        print(session.run(cell).output.splitlines()[-1])\n"
        "        read = f'open({mathenv.problems.__file__!r})'\n"
        "        print(session.run(read).output.splitlines()[-1])\n"
    )
    run = subprocess.run(
        [python, script], env=environment, cwd=tmp_path, text=True, capture_output=True, check=True
    )
    where, *lines = run.stdout.splitlines()
    assert (str(tmp_path) in where) == (way == "wheel")
    lines = [line for line in lines if "does not work here" not in line]
    assert lines[0::3] == ["1"] * (len(lines) // 3)
    assert set(lines[1::3]) <= {"ModuleNotFoundError: No module named 'mathenv'"}
    assert all(line.startswith(("PermissionError", "FileNotFoundError")) for line in lines[2::3])


def install_as_wheel(folder: Path) -> Path:
    """Make a wheel of the packages and install it beside the libraries of this environment."""
    wheel, info = folder / "mathenv-0.1.0-py3-none-any.whl", "mathenv-0.1.0.dist-info"
    packages = ("mathenv", "agents", "learners", "benchmarks")
    with zipfile.ZipFile(wheel, "w") as file:
        for path in (p for name in packages for p in (Path(PROJECT) / name).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                file.write(path, path.relative_to(PROJECT))
        names = [*file.namelist(), f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD"]
        file.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mathenv\nVersion: 0.1.0\n")
        tag = "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        file.writestr(f"{info}/WHEEL", tag)
        file.writestr(f"{info}/RECORD", "".join(f"{name},,\n" for name in names))
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    (own,) = venv.glob("lib/python*/site-packages")
    (own / "shared.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_a_first_plot_costs_little(host):
    pytest.importorskip("matplotlib")
    interpreter, _, _ = host
    cell = (
        "import time\nstarted = time.process_time()\nimport matplotlib.pyplot as plt\n"
        "plt.plot([1, 2])\nplt.show()\nspent = time.process_time() - started\n"
        "import os\nspent < 0.15, os.listdir()"
    )
    with interpreter.session() as session:
        assert session.run(cell).output == "(True, [])"  # an import alone costs 0.3 s


def test_a_private_temporary_folder(host):
    interpreter, _, _ = host
    cell = (
        "import os, tempfile\nmade = tempfile.mkdtemp()\n"
        "open(made + '/x', 'w').write('x')\nwith tempfile.NamedTemporaryFile() as f:\n"
        "    f.write(b'1')\nos.path.dirname(made) == os.environ['TMPDIR'] == os.getcwd()"
    )
    with interpreter.session() as session:
        assert session.run(cell).output == "True"
        if interpreter.description["tier"] == "namespaces":
            assert session.run("open('/tmp/y', 'w').write('y'), os.listdir('/tmp')").output
            with session.fork() as copy:
                assert copy.run("sorted(os.listdir())[-1]").output == "'y'"
                assert copy.run("tempfile.mkdtemp()").status == "ok"
    with interpreter.session() as session:
        assert session.run("import os; os.listdir()").output == "[]"


def test_random_bytes_and_locks(host):
    interpreter, _, _ = host
    cell = (
        "import os, secrets, sqlite3, fcntl\n"
        "base = sqlite3.connect('data.db')\nbase.execute('create table t as select 6 as x')\n"
        "base.commit()\nfcntl.lockf(open('lock', 'w'), fcntl.LOCK_EX)\n"
        "again = sqlite3.connect('data.db')\n"
        "number = len(os.urandom(3)) + len(open('/dev/urandom', 'rb').read(1))\n"
        "number + len(secrets.token_bytes(2)), "
        "again.execute('select x * 7 from t').fetchall()"
    )
    with interpreter.session() as session:
        assert session.run(cell).output == "(6, [(42,)])"


NOTEBOOK = [
    (["display(3, 'a')"], "3\n'a'"),
    (["from sympy import *\nx = symbols('x')\ndisplay(x**2)"], "x**2"),
    (["5", "_ + 1"], "6"),
    (["5", "None", "_"], "5"),
    (["_ = 7", "5", "_"], "7"),
    (["_"], "NameError: name '_' is not defined"),
    (["\ufeffprint(1)"], "1"),
    (["import asyncio\nasync def f():\n    return 5\nprint(asyncio.run(f()))"], "5"),
    (
        [
            "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n"
            "    return await asyncio.to_thread(sum, [1, 2])\nasyncio.run(f()), asyncio.run(f())"
        ],
        "(3, 3)",
    ),
    (["import builtins\ndel builtins.display", "display(1)"], "1"),
    (["exit()"], "SystemExit: None"),
    (
        ["import warnings\ndef f():\n    warnings.warn('x')\nf()"],
        "<cell 1>:3: UserWarning: x\n  warnings.warn('x')",
    ),
    (["import warnings\nwarnings.warn('x', stacklevel=9)"], "sys:1: UserWarning: x"),
    (
        ["import threading as t\na = t.Thread(target=lambda: 1/0, name='t')\na.start(); a.join()"],
        "ZeroDivisionError: division by zero",
    ),
]


@pytest.mark.parametrize(("cells", "expected"), NOTEBOOK)
def test_what_notebooks_have(host, cells, expected):
    interpreter, _, _ = host
    with interpreter.session() as session:
        output = [session.run(cell).output for cell in cells][-1]
    assert output.endswith(expected)
    assert len(output) < len(expected) + 300
    assert "/" not in output.replace("1/0", "")


def test_preload_and_print_mode():
    pytest.importorskip("pandas")
    options = {"packages": ("pytest",), "preload": ("pandas",), "numpy_legacy": "1.25"}
    with LocalInterpreter(LIMITS, zygotes=1, **options) as interpreter:
        described = interpreter.description
        assert described["packages"] == "pytest"
        assert (described["preload"], described["numpy_legacy"]) == ("pandas", "1.25")
        with interpreter.session() as session:
            assert session.run("import sys\n'pandas' in sys.modules").output == "True"
            assert session.run("import numpy as np\nnp.float64(3)").output == "3.0"
            assert session.run("import pytest, pluggy\n1").output == "1"
            assert session.run("import gymnasium").output.endswith("No module named 'gymnasium'")


def test_usual_settings():
    with LocalInterpreter(LIMITS, zygotes=1) as interpreter, interpreter.session() as session:
        assert session.run("import sys\n'pandas' in sys.modules").output == "False"
        assert session.run("import numpy as np\nnp.float64(3)").output == "np.float64(3.0)"
        assert {"packages", "preload", "numpy_legacy"}.isdisjoint(interpreter.description)


def test_a_module_that_cannot_be_preloaded(open_folder, monkeypatch):
    (open_folder / "threaded.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(9,)).start()\n"
    )
    monkeypatch.syspath_prepend(str(open_folder))
    with pytest.raises(InfraError, match="starts threads"):
        LocalInterpreter(LIMITS, preload=("threaded",), min_tier="seccomp")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"packages": ("no_such_thing",)}, "not installed"),
        ({"packages": "pandas"}, r"\('pandas',\)"),
        ({"preload": "pandas"}, r"\('pandas',\)"),
        ({"preload": (1,)}, "sequence of names"),
        ({"packages": ("mathenv",)}, "answers"),
        ({"packages": ("benchmarks",)}, "answers"),
        ({"preload": ("mathenv.problems",)}, "answers"),
        ({"numpy_legacy": "1"}, "1.25"),
    ],
)
def test_wrong_arguments(options, words):
    with pytest.raises(ConfigError, match=words):
        LocalInterpreter(LIMITS, **options)


class Site:
    """A folder of installed distributions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, name: str, files: list[str], requires: Sequence[str] = (), record: bool = True):
        info = f"{name.replace('-', '_')}-1.0.dist-info"
        for file in files:
            path = self.folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        (self.folder / info).mkdir()
        wanted = "".join(f"Requires-Dist: {line}\n" for line in requires)
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{wanted}"
        (self.folder / info / "METADATA").write_text(text)
        if record:
            lines = [f"{file},," for file in (*files, f"{info}/METADATA", f"{info}/RECORD")]
            (self.folder / info / "RECORD").write_text("\n".join(lines))

    def seen(self, *packages: str) -> set[str]:
        links = make_view(packages).packages
        return {n for n, source in links.items() if source.startswith(str(self.folder))}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return Site(tmp_path.resolve())


def test_what_is_required_comes_along(installed):
    installed.add("one", ["one/__init__.py"], ["Two_Parts>=1; python_version>'3'", "x; extra=='y'"])
    installed.add("two-parts", ["two/__init__.py", "two.libs/lib.so", "two_one.py"], ["one"])
    installed.add("x", ["x.py"])
    seen = {"one", "one-1.0.dist-info", "two", "two.libs", "two_one.py", "two_parts-1.0.dist-info"}
    assert installed.seen("one") == seen
    assert installed.seen("two") == seen  # by the name of its module
    assert installed.seen("x") == {"x.py", "x-1.0.dist-info"}
    assert installed.seen() == set()


def test_a_namespace_is_not_shared(installed):
    installed.add("ns-a", ["ns/a/__init__.py", "ns/a/data/deep.txt"])
    installed.add("ns-b", ["ns/b/__init__.py", "__pycache__/ns_b.pyc", "ns_b.py"])
    assert installed.seen("ns-a") == {"ns/a", "ns_a-1.0.dist-info"}
    assert installed.seen("ns-b") == {
        "ns/b",
        "__pycache__/ns_b.pyc",
        "ns_b.py",
        "ns_b-1.0.dist-info",
    }
    assert {"ns", "ns_a-1.0.dist-info"} <= installed.seen("ns-a", "ns-b")


def test_an_old_namespace_is_not_shared(installed):
    installed.add("old-a", ["old/__init__.py", "old/a/__init__.py"])
    installed.add("old-b", ["old/b/__init__.py"])
    (installed.folder / "old/__init__.py").write_text("__path__ = extend_path(__path__, __name__)")
    assert installed.seen("old-a") == {"old/__init__.py", "old/a", "old_a-1.0.dist-info"}


def test_files_that_no_distribution_owns(installed):
    installed.add("a", ["plain/data.txt"])
    (installed.folder / "plain/answers.txt").write_text("")
    assert installed.seen("a") == {"plain/data.txt", "a-1.0.dist-info"}


def test_a_distribution_without_a_list_of_files(installed):
    installed.add("bare", ["bare/__init__.py"], record=False)
    assert installed.seen("bare") == {"bare"}


def test_an_editable_distribution(installed, tmp_path_factory, monkeypatch):
    source = tmp_path_factory.mktemp("checkout").resolve()
    (source / "edited").mkdir()
    (source / "edited/__init__.py").write_text("")
    (source / "answers.jsonl").write_text("")
    installed.add("edited", ["__editable__.edited.pth"])
    monkeypatch.syspath_prepend(str(source))
    assert installed.seen("edited") == {"edited-1.0.dist-info"}
    assert make_view(("edited",)).packages["edited"] == f"{source}/edited"


def test_a_module_of_nobody(installed):
    (installed.folder / "helper.py").write_text("")
    (installed.folder / "spaced").mkdir()
    assert installed.seen("helper") == {"helper.py"}
    with pytest.raises(ConfigError, match="'spaced' is not installed"):  # no one owns that folder
        installed.seen("spaced")


def test_a_package_that_requires_us_is_refused(installed):
    installed.add("suite", ["suite.py"], ["mathenv>=0.1"])
    with pytest.raises(ConfigError, match="answers"):
        make_view(("suite",))
