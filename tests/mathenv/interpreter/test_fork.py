"""A forked session is a copy of the whole state, and afterwards neither knows of the other."""

import os
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from mathenv.errors import ConfigError
from mathenv.interpreter import ForkError, Limits, LocalInterpreter, Session
from mathenv.interpreter.base import RESTARTED
from mathenv.types import ExecutionStatus

RANDOM = "random.random(), np.random.rand(), rng.random(), sympy_random.random()"
SETUP = (
    "import random, os, numpy as np, sympy.core.random as sympy_random\n"
    "rng = np.random.default_rng(5)\n"
    "names = ['a']\n"
    "def add(name):\n    names.append(name)\n    return len(names)\n"
    f"{RANDOM};"
)


@pytest.fixture
def session(interpreter):
    with interpreter.session(seed=7) as session:
        assert session.run(SETUP).status is ExecutionStatus.OK
        yield session


def test_a_copy_has_the_whole_state(session):
    with session.fork() as copy:
        assert isinstance(copy, Session)
        assert copy.run("names, add.__name__, rng is not None").output == "(['a'], 'add', True)"
        error = copy.run("add(1, 2)").output
    assert 'File "<cell 3>", line 1' in error  # cells are counted on
    assert session.run("add(1, 2)").output.count("<cell 2>") == 1


def test_random_numbers_continue_alike_and_then_part(session):
    with session.fork() as one, session.fork() as two:
        first = [s.run(RANDOM).output for s in (session, one, two)]
        assert first[0] == first[1] == first[2]
        one.run("random.random(); np.random.rand();")
        second = [s.run(RANDOM).output for s in (session, one, two)]
        assert second[0] == second[2] != second[1]


def test_names_part(session):
    with session.fork() as copy:
        assert session.run("add('mine'), names").output == "(2, ['a', 'mine'])"
        assert copy.run("add('other'), names").output == "(2, ['a', 'other'])"
        copy.run("import sympy\nsympy.pi = 3\ndel add")
        assert session.run("import sympy\nsympy.pi, add('x')").output == "(pi, 3)"


def test_files_are_copied_and_then_part(session):
    session.run(
        "import os\nos.makedirs('deep/er')\nopen('deep/er/a', 'w').write('old')\n"
        "os.symlink('deep/er/a', 'link')\nopen('b', 'w').write('b')"
    )
    with session.fork() as copy:
        assert copy.run("open('link').read(), sorted(os.listdir())").output == (
            "('old', ['b', 'deep', 'link'])"
        )
        copy.run("open('deep/er/a', 'w').write('new')\nos.remove('b')\nopen('c', 'w').close()")
        assert session.run("open('link').read(), sorted(os.listdir())").output == (
            "('old', ['b', 'deep', 'link'])"
        )
        session.run("open('deep/er/a', 'w').write('mine')")
        assert copy.run("open('link').read()").output == "'new'"


def test_open_files_have_their_own_positions(session):
    session.run(
        "f = open('f', 'w+')\nf.write('0123456789')\nf.seek(2)\ndata = f.read(2)\n"
        "f.seek(4)\ngone = open('gone', 'w+')\ngone.write('secret')\ngone.flush()\n"
        "os.remove('gone')\nlog = open('log', 'a')\nlog.write('begin ')"
    )
    with session.fork() as copy:
        assert copy.run("f.read()").output == "'456789'"
        assert session.run("f.read(2)").output == "'45'"
        copy.run("f.seek(0)\nf.write('XX')\nf.flush()\ngone.seek(0)\ngone.write('public')")
        copy.run("log.write('copy')\nlog.close()")
        assert session.run("f.seek(0)\nf.read()").output == "'0123456789'"
        assert session.run("gone.seek(0)\ngone.read()").output == "'secret'"
        session.run("log.write('mine')\nlog.close()")
        assert session.run("open('log').read()").output == "'begin mine'"
        assert copy.run("open('log').read()").output == "'begin copy'"


def test_pipes_and_folders_are_closed_in_a_copy(session):
    session.run("r, w = os.pipe()\nfolder = os.open('.', os.O_RDONLY)")
    with session.fork() as copy:
        for name in ("r", "w", "folder"):
            assert "Bad file descriptor" in copy.run(f"os.fstat({name})").output
        assert session.run("os.write(w, b'x'), os.read(r, 1)").output == "(1, b'x')"


def test_memory_cannot_be_shared(session):
    assert "PermissionError" in session.run("import mmap\nm = mmap.mmap(-1, 4096)").output
    session.run("m = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE)\nm[0] = 1")
    with session.fork() as copy:
        copy.run("m[0] = 2")
        assert session.run("m[0]").output == "1"


def test_neither_reaches_the_files_of_the_other(session):
    session.run("open('mine', 'w').write('x')\nhome = os.getcwd()")
    with session.fork() as copy:
        for code in (
            "os.listdir(home)",
            "open(home + '/mine').read()",
            "os.remove(home + '/mine')",
        ):
            assert "Error" in copy.run(code).output.splitlines()[-1]
        other = copy.run("print(os.getcwd())").output
        assert other != session.run("print(home)").output
        for folder in ("..", "../..", "/scratch"):
            assert "Error" in session.run(f"os.listdir({folder!r})").output.splitlines()[-1]
        assert session.run("os.listdir()").output == "['mine']"
    with session.fork() as one, session.fork() as two:
        folder = one.run("print(os.getcwd())").output
        assert "Error" in two.run(f"os.listdir({folder!r})").output.splitlines()[-1]


def test_home_and_temporary_files_move_with_the_copy(session):
    session.run("import tempfile\ntempfile.gettempdir()")
    with session.fork() as copy:
        code = "here = os.getcwd()\nos.environ['HOME'] == here, tempfile.gettempdir() == here"
        assert copy.run(code).output == "(True, True)"
        assert copy.run("tempfile.TemporaryFile().write(b'x')").output == "1"
    assert session.run("tempfile.TemporaryFile().write(b'x')").output == "1"


def test_a_copy_outlives_its_parent_and_can_be_copied(interpreter):
    parent = interpreter.session()
    parent.run("x = 1\nopen('f', 'w').write('f')")
    child = parent.fork()
    parent.close()
    grandchild = child.fork()
    assert child.run("x += 1\nx, open('f').read()").output == "(2, 'f')"
    child.close()
    with grandchild.fork() as last:
        grandchild.close()
        assert last.run("x, open('f').read()").output == "(1, 'f')"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import itertools\nmax(itertools.count())", ExecutionStatus.TIMEOUT),
        ("while True:\n    pass", ExecutionStatus.TIMEOUT),
        ("os._exit(1)", ExecutionStatus.DIED),
        ("import ctypes\nctypes.string_at(0)", ExecutionStatus.DIED),
        ("a = bytearray(10**10)", ExecutionStatus.MEMORY),
    ],
)
def test_the_end_of_one_does_not_touch_the_other(hasty, code, status):
    with hasty.session() as session:
        session.run("import os\nnames = ['a']")
        with session.fork() as copy:
            assert copy.run(code).status is status
            assert session.run("names.append('x')\nnames").output == "['a', 'x']"
        with session.fork() as copy:
            assert session.run(code).status is status
            assert copy.run("names").output == "['a', 'x']"
            assert copy.run("open('f', 'w').write('abc')").output == "3"


def test_both_run_at_the_same_time(session):
    with session.fork() as copy:
        outputs = {}

        def work(name: str, which: Session) -> None:
            which.run(f"names.append({name!r})\nimport time\ntime.sleep(0.2)")
            outputs[name] = which.run("names").output

        threads = [
            threading.Thread(target=work, args=pair) for pair in (("s", session), ("c", copy))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outputs == {"s": "['a', 's']", "c": "['a', 'c']"}


def test_a_session_without_state_copies_as_one(interpreter):
    with interpreter.session(seed=3) as fresh, fresh.fork() as copy:
        code = "import random\nrandom.random()"
        assert fresh.run(code).output == copy.run(code).output
    with interpreter.session() as lost:
        lost.run("import os\nos._exit(1)")
        with lost.fork() as copy:
            assert copy.run("1").output == f"{RESTARTED}\n1"
            assert lost.run("1").output == f"{RESTARTED}\n1"
            assert copy.run("1").output == "1"
    with pytest.raises(ConfigError, match="closed"):
        lost.fork()


def test_threads_prevent_a_copy_until_they_end(session):
    session.run(
        "import threading\nstop = threading.Event()\n"
        "thread = threading.Thread(target=stop.wait)\nthread.start()"
    )
    with pytest.raises(ForkError, match="threads"):
        session.fork()
    assert session.run("names").output == "['a']"
    session.run("stop.set()\nthread.join()")
    with session.fork() as copy:
        assert copy.run("names").output == "['a']"
        # ... and a copy can have threads of its own
        code = "t = threading.Thread(target=names.append, args=(1,))\nt.start()\nt.join()"
        assert copy.run(code).status is ExecutionStatus.OK
        assert copy.run("names").output == "['a', 1]"


def test_files_that_cannot_be_copied_prevent_a_copy(session):
    session.run("os.mkdir('locked', 0)")
    with pytest.raises(ForkError, match="PermissionError"):
        session.fork()
    session.run("os.rmdir('locked')")
    with session.fork() as copy:
        assert copy.run("names").output == "['a']"


def test_chains_end_with_an_error_that_says_so(session):
    chain = [session]
    try:
        for _ in range(14):
            chain.append(chain[-1].fork())
        with suppress(ForkError):  # where Landlock confines the nursery too, this is one too many
            chain.append(chain[-1].fork())
        with pytest.raises(ForkError, match="copies of copies"):
            chain[-1].fork()
        assert chain[-1].run("add('last'), names").output == "(2, ['a', 'last'])"
        assert session.run("names").output == "['a']"
    finally:
        for copy in chain[1:]:
            copy.close()


def test_many_copies_of_many_sessions_at_once(interpreter):
    outputs: dict[int, list[str]] = {}

    def work(number: int) -> None:
        with interpreter.session(seed=number) as session:
            session.run(f"x = [{number}]\nopen('f', 'w').write('{number}')")
            copies = [session.fork() for _ in range(4)]
            for place, copy in enumerate(copies):
                copy.run(f"x.append({place})")
            code = "x, open('f').read()"
            outputs[number] = [which.run(code).output for which in (session, *copies)]
            for copy in copies:
                copy.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {
        n: [f"([{n}], '{n}')"] + [f"([{n}, {place}], '{n}')" for place in range(4)]
        for n in range(8)
    }


def test_max_sessions_counts_copies(make_interpreter):
    with make_interpreter(max_sessions=2) as interpreter, interpreter.session() as session:
        session.run("x = 1")
        first = session.fork()
        done = threading.Event()
        made: list[Session] = []

        def work() -> None:
            made.append(session.fork())
            done.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert not done.wait(0.3)
        first.close()
        assert done.wait(60)
        thread.join()
        assert made[0].run("x").output == "1"
        made[0].close()


# ------------------------------------------------------ sessions that misuse the one right

OWN_FORK = (
    "import sys, os, time\nframe = sys._getframe()\n"
    "while 'self' not in frame.f_locals or not hasattr(frame.f_locals['self'], 'confine'):\n"
    "    frame = frame.f_back\n"
    "runner = frame.f_locals['self']\nfork = runner.fork\n"
)
BAD_FORKS = {
    "claims its own id": "def bad():\n    fork()\n    return os.getpid()",
    "claims a neighbour": "def bad():\n    fork()\n    return NEIGHBOUR",
    "claims nobody": "def bad():\n    fork() or time.sleep(60)\n    return 99999",
    "claims no possible id": "def bad():\n    fork() or time.sleep(60)\n    return 10**30",
    "claims a negative id": "def bad():\n    fork() or time.sleep(60)\n    return -5",
    "claims text": "def bad():\n    fork() or time.sleep(60)\n    return 'x'",
    "forks nothing": "def bad():\n    return 1",
    "tells of an error": "def bad():\n    fork() or time.sleep(60)\n    raise OSError('no')",
    "dies": "def bad():\n    fork() or time.sleep(60)\n    os._exit(0)",
    "forks twice": "def bad():\n    one = fork()\n    fork() if one else 0\n    return one",
    "answers for ever": "def bad():\n    fork()\n    while True:\n        os.write(3, b'x' * 4096)",
    "does not answer": "def bad():\n    fork() or time.sleep(60)\n    time.sleep(60)",
    "never forks": "def bad():\n    time.sleep(60)",
}


@pytest.fixture(scope="module", params=["namespaces", "seccomp"])
def tier(request):
    limits = Limits(cell_seconds=60.0, memory_bytes=512 << 20)
    with LocalInterpreter(
        limits, min_tier="seccomp", tier=request.param, zygotes=1, spares=0
    ) as tier:
        yield tier


@pytest.mark.parametrize("name", BAD_FORKS)
def test_a_dishonest_session_gains_nothing(tier, name, monkeypatch, running, launchers, left_over):
    others = launchers(os.getpid()) - {tier._launchers[-1]._launcher.pid}
    with tier.session() as neighbour, tier.session() as session:
        neighbour_id = neighbour.run("import os\nos.getpid()").output
        session.run("q = 1")
        before = running(os.getpid(), others)
        code = OWN_FORK + BAD_FORKS[name].replace("NEIGHBOUR", neighbour_id)
        assert session.run(code + "\nrunner.fork = bad").status is ExecutionStatus.OK
        monkeypatch.setattr("mathenv.interpreter.process.FORK_SECONDS", 1.0)
        with pytest.raises(ForkError):
            session.fork()
        monkeypatch.undo()
        assert left_over(os.getpid(), before, others) == set()
        after = session.run("q")
        died = after.status is ExecutionStatus.DIED
        assert died or after.output == "1" or after.output.startswith(RESTARTED)
        with neighbour.fork() as copy:  # and the next one is served
            assert copy.run("os.getppid() > 0").output == "True"


@pytest.mark.parametrize("extra", [0, 0x100, 0x4000, 0x01200000, 0x10000000, 0x20000000, 0x1000])
@pytest.mark.parametrize("parent", [0, 0x8000])
def test_no_flags_of_clone_are_allowed_on_demand(tier, extra, parent):
    with tier.session() as session:
        code = (
            "import ctypes, os\nlibc = ctypes.PyDLL(None, use_errno=True)\n"
            "number = {'x86_64': 56, 'aarch64': 220}[os.uname().machine]\n"
            f"result = libc.syscall(number, {extra | parent | 17}, 0, 0, 0, 0)\n"
            "os._exit(0) if result == 0 else print(result, ctypes.get_errno())"
        )
        assert session.run(code).output == "-1 1"


def test_a_copy_can_do_no_more_than_its_parent(tier):
    with tier.session() as session:
        session.run("import os, signal")
        with session.fork() as copy:
            for code in (
                "os.fork()",
                "os.kill(os.getppid(), 15)",
                f"os.kill({session.run('os.getpid()').output}, 15)",
                "os.kill(0, 15)",
                "open('/etc/passwd')",
                "import socket; socket.socket()",
                "os.execv('/bin/true', ['true'])",
            ):
                assert "Error" in copy.run(code).output.splitlines()[-1], code
            assert copy.run("a = bytearray(10**10)").status is ExecutionStatus.MEMORY
        assert session.run("1 + 1").output == "2"


WITH_LISTENER = """
from mathenv.errors import InfraError
from mathenv.interpreter import LocalInterpreter, sandbox
sandbox.no_new_privileges()
listener = sandbox.watch_forks()  # a process can have one only
with LocalInterpreter(zygotes=1) as interpreter, interpreter.session() as session:
    print(session.run("x = 1\\nx").output)
    try:
        session.fork()
    except InfraError as error:
        print(error)
    print(session.run(CLONE).output, session.run("x").output)
"""


def test_where_forks_cannot_be_watched_there_are_none():
    clone = (
        "import ctypes, os\nlibc = ctypes.PyDLL(None, use_errno=True)\n"
        "number = {'x86_64': 56, 'aarch64': 220}[os.uname().machine]\n"
        "libc.syscall(number, 0x8011, 0, 0, 0, 0), ctypes.get_errno()"
    )
    code = WITH_LISTENER.replace("CLONE", repr(clone))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "1",
        "OSError: sessions cannot fork here: seccomp allows no further listener",
        "(-1, 1) 1",
    ], done.stderr
