"""Nothing outlives the interpreter or its host, and a dead helper is replaced."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mathenv.errors import ConfigError
from mathenv.interpreter import Limits, LocalInterpreter
from mathenv.interpreter.base import RESTARTED
from mathenv.types import ExecutionStatus

HOST = """
import sys, threading
from mathenv.interpreter import LocalInterpreter, Limits
interpreter = LocalInterpreter(Limits(cell_seconds=60), tier=sys.argv[1])
idle, busy = interpreter.session(), interpreter.session()
idle.run("open('file', 'w').write('x')")
busy.run("import signal")
copy = idle.fork()
threading.Thread(target=busy.run, args=("while True: pass",), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def patient_close(monkeypatch):
    """Closing waits for the launcher, which ends last, however busy the machine is."""
    monkeypatch.setattr("mathenv.interpreter.launcher.CLOSE_SECONDS", 60.0)


def reaches(expected: int, count: Callable[[], int], seconds: float = 60.0) -> bool:
    """Whether a number becomes the expected one: zygotes prepare sessions when they are idle."""
    deadline = time.monotonic() + seconds
    while count() != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return count() == expected


@pytest.mark.parametrize("tier", ["namespaces", "seccomp"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killing_the_host_leaves_nothing(open_folder, running, left_over, tier, number):
    environment = {**os.environ, "TMPDIR": str(open_folder)}
    with subprocess.Popen(
        [sys.executable, "-c", HOST, tier],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as host:
        assert host.stdout is not None
        assert host.stderr is not None
        if host.stdout.readline().strip() != "ready":
            error = host.stderr.read()
            if "no sandbox of the required strength" in error:
                pytest.skip(f"tier {tier} does not work here")
            pytest.fail(error)
        # launcher, nursery, two zygotes with a spare session each, two sessions and a copy
        assert reaches(9, lambda: len(running(host.pid)))
        host.send_signal(number)
        host.wait()
    assert left_over(host.pid) == set()
    assert list(open_folder.iterdir()) == []


def test_close_leaves_nothing_and_refuses_further_cells(running, launchers, patient_close):
    others = launchers(os.getpid())
    interpreter = LocalInterpreter()
    sessions = [interpreter.session() for _ in range(3)]
    for session in sessions:
        session.run("1")
    assert reaches(9, lambda: len(running(os.getpid(), others)))  # two of them are spares
    interpreter.close()
    interpreter.close()
    assert running(os.getpid(), others) == set()
    assert sessions[0].run("1").status is ExecutionStatus.INFRA
    with pytest.raises(ConfigError, match="closed"):
        interpreter.session().run("1")


def test_forgotten_interpreter_ends_with_its_last_reference(running, launchers, patient_close):
    others = launchers(os.getpid())
    session = LocalInterpreter().session()
    assert session.run("1").output == "1"
    assert reaches(5, lambda: len(running(os.getpid(), others)))  # one zygote, one spare
    del session
    gc.collect()
    assert running(os.getpid(), others) == set()


def test_dead_launcher_is_replaced():
    with LocalInterpreter(Limits(cell_seconds=60.0)) as interpreter:
        session, idle = interpreter.session(), interpreter.session()
        session.run("q = 1")
        idle.run("q = 1")
        launcher = interpreter._launchers[-1]._launcher
        threading.Timer(0.3, launcher.kill).start()
        in_flight = session.run("while True:\n    pass")
        assert in_flight.status is ExecutionStatus.INFRA
        assert in_flight.session_lost
        assert idle.run("q").status is ExecutionStatus.INFRA
        assert interpreter.session().run("1 + 1").output == "2"
        assert session.run("3").output == f"{RESTARTED}\n3"


def test_interpreter_outlives_the_thread_that_made_it():
    made: list[LocalInterpreter] = []
    thread = threading.Thread(target=lambda: made.append(LocalInterpreter()))
    thread.start()
    thread.join()
    time.sleep(0.1)
    with made[0] as interpreter:
        assert interpreter.session().run("1 + 1").output == "2"


def test_descriptors_are_returned(running, launchers):
    others = launchers(os.getpid())
    with LocalInterpreter() as interpreter:
        counts = []
        for _ in range(3):
            for _ in range(10):
                with interpreter.session() as session:
                    session.run("1")
                session = interpreter.session()
                session.run("import os\nos._exit(1)")
            del session
            gc.collect()
            counts.append(len(os.listdir("/proc/self/fd")))
        assert counts[0] == counts[1] == counts[2]
        # launcher, nursery, two zygotes with a spare session each, and what is ending
        assert len(running(os.getpid(), others)) < 20


FORKED = """
import os
from mathenv.interpreter import Limits, LocalInterpreter
interpreter = LocalInterpreter()
session = interpreter.session()
session.run("q = 1")
child = os.fork()
if child == 0:
    first = session.run("q").status.value
    second = session.run("1 + 1").output.splitlines()[-1]
    interpreter.close()
    os._exit(0 if (first, second) == ("infra", "2") else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), session.run("q").output)
"""


def test_a_forked_copy_of_the_host_does_not_touch_the_sessions():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert done.stdout.strip() == "0 1", done.stderr


HOSTILE = (
    "import os\nos._exit(1)",
    "x = bytearray(10**12)",
    "import ctypes\nctypes.string_at(0)",
    "import os\nos.write(3, b'x' * 100)",
    "import os\nos.makedirs('a/b/c', 0)\nos.fork()",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
    "for i in range(300):\n    open(str(i), 'w').write('x' * 1000)",
    "import os\nos.closerange(0, 100)",
)


def helper_memory(processes: set[int]) -> dict[int, int]:
    """Bytes of each process, shared pages divided among those that share them; root sees them."""
    found = dict.fromkeys(processes, 0)
    with contextlib.suppress(PermissionError):
        for process in processes:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            found[process] = 1024 * int(text.partition("\nPss:")[2].split()[0])
    return found


@pytest.mark.parametrize("tier", ["namespaces", "seccomp"])
def test_nothing_is_left(open_folder, monkeypatch, running, launchers, patient_close, tier):
    """After many sessions, one in fifty hostile (or more: each kind once), one in ten copied.

    MATHENV_TEST_SESSIONS=10000 makes it the long run of the README.
    """
    count = int(os.environ.get("MATHENV_TEST_SESSIONS", "100"))
    every = min(50, count // len(HOSTILE))
    monkeypatch.setattr("tempfile.tempdir", str(open_folder))
    others = launchers(os.getpid())
    started = time.monotonic()
    with LocalInterpreter(Limits(cell_seconds=20.0), tier=tier) as interpreter:

        def play(number: int) -> None:
            with interpreter.session(seed=number) as session:
                assert session.run(f"open('f', 'w').write('x')\n{number}").output == str(number)
                if number % 10 == 0:
                    with session.fork() as copy:
                        assert copy.run("open('f').read()").output == "'x'"
                if number % every == 0:
                    session.run(HOSTILE[number // every % len(HOSTILE)])
                    assert session.run("40 + 2").output.endswith("42")

        def helpers() -> set[int]:
            return running(os.getpid(), others)

        def state() -> tuple[int, int, int]:
            """Descriptors of the helpers' and ours, mounts, folders on disk."""
            gc.collect()
            for _ in range(4):  # the ids of dead ones travel with a request
                # launcher, nursery, two zygotes, a spare session of each; all others have ended
                assert reaches(6, lambda: len(helpers()))
                interpreter.session().run("1")
            assert reaches(6, lambda: len(helpers()))
            folders = sum(len(list(root.iterdir())) for root in open_folder.iterdir())
            mounts = Path("/proc/self/mounts").read_text().count("\nscratch ")
            with contextlib.suppress(PermissionError):  # only root may count the helpers' own
                names = [*helpers(), "self"]
                return sum(len(os.listdir(f"/proc/{p}/fd")) for p in names), mounts, folders
            return len(os.listdir("/proc/self/fd")), mounts, folders

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(play, range(1, count // 2)))
            for _ in range(2):  # both zygotes
                first = state()
            memory = helper_memory(helpers())
            list(pool.map(play, range(count // 2, count + 1)))
            for _ in range(2):
                last = state()
        now = helper_memory(helpers())
        lasting = memory.keys() & now.keys()
        grown = sum(now[process] - memory[process] for process in lasting)
        print(f"{count} sessions in {time.monotonic() - started:.0f} s, helpers grew by {grown} B")
    assert first == last
    assert len(lasting) == 4  # the spare sessions are others
    # the folder of packages, and those of the spare sessions
    assert first[1:] == (0, 3 if tier == "seccomp" else 0)
    assert grown < 4 << 20
    assert running(os.getpid(), others) == set()
    assert list(open_folder.iterdir()) == []


@pytest.mark.parametrize("tier", ["namespaces", "seccomp"])
@pytest.mark.parametrize("depth", [0, 1, 2], ids=["launcher", "nursery", "zygote"])
def test_a_session_starts_right_after_a_kill_of_what_it_needs(tier, depth):
    """Nothing of it has run yet, so the start is tried again: no cell is `infra`."""
    with LocalInterpreter(Limits(cell_seconds=60), tier=tier, zygotes=1) as interpreter:
        interpreter.session().run("1")
        victims = [interpreter._launchers[-1]._launcher.pid]
        for _ in range(depth):
            victims = [child for victim in victims for child in children_of(victim)]
        assert victims
        for victim in victims:
            os.kill(victim, signal.SIGKILL)
        result = interpreter.session().run("6 * 7")
        assert (result.status, result.output) == (ExecutionStatus.OK, "42")


def children_of(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found
