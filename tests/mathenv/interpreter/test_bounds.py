"""Whatever a session does: `run` returns in time, nothing runs between cells, nothing is `infra`.

`bounds_cases.jsonl` holds cells: `first` prepares the session, `code` is measured, `expect` are
the statuses it may have.
"""

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter import ForkError, Limits, LocalInterpreter, launcher
from mathenv.interpreter.base import RESTARTED, WALL_FACTOR, HostLimitError
from mathenv.interpreter.launcher import NoSpaceError, SlowStartError
from mathenv.interpreter.local import LocalSession
from mathenv.interpreter.process import CellDeadline, Process
from mathenv.types import ExecutionStatus

CASES = [
    json.loads(line)
    for line in Path(__file__).with_name("bounds_cases.jsonl").read_text().splitlines()
]
LIMITS = Limits(
    cell_seconds=1.0, grace_seconds=0.5, session_cpu_seconds=3.0, memory_bytes=400 << 20
)
RUNNER = "import sys\nrunner = next(m for n, m in sys.modules.items() if n.endswith('.cells'))\n"
CLONE = (
    "import ctypes, os\nlibc = ctypes.PyDLL(None, use_errno=True)\n"
    "number = 56 if os.uname().machine == 'x86_64' else 220\n"
    "def clone(flags):\n    return libc.syscall(*map(ctypes.c_long, (number, flags, 0, 0, 0, 0)))\n"
)
# A native thread, of which Python does not know, in an endless loop of machine code.
NATIVE = (
    "import ctypes, mmap, os\n"
    "page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)\n"
    "x86 = os.uname().machine == 'x86_64'\n"
    "page.write(bytes.fromhex('ebfe' if x86 else '00000014'))\n"
    "start = ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(page)))\n"
    "thread = ctypes.c_ulong()\n"
    "ctypes.CDLL(None).pthread_create(ctypes.byref(thread), None, start, None)"
)
PYTHON = (
    "import threading\ndef spin():\n    while True:\n        pass\n"
    "threading.Thread(target=spin, daemon=True).start()"
)
DEAF = RUNNER + "def spin():\n    while True:\n        pass\nrunner._receive = spin"


@pytest.fixture(scope="module", params=["namespaces", "seccomp"])
def local(request) -> Iterator[LocalInterpreter]:
    try:
        interpreter = LocalInterpreter(LIMITS, tier=request.param, zygotes=1)
    except InfraError as error:
        pytest.skip(f"{request.param} does not work here: {error}")
    with interpreter:
        yield interpreter


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_run_returns_in_time_and_no_cell_is_infra(local, case):
    with local.session() as session:
        first = session.run(case["first"])
        started = time.monotonic()
        result = session.run(case["code"])
        seconds = time.monotonic() - started
        after = [session.run("40 + 2"), session.run("40 + 2")][-1]
    assert ExecutionStatus.INFRA not in (first.status, result.status)
    assert result.status in case["expect"], result
    assert seconds < WALL_FACTOR * (LIMITS.cell_seconds + LIMITS.grace_seconds) + 3
    assert after.output.endswith("42")


def test_what_waits_for_nothing_ends_after_its_seconds(local):
    """On an idle machine as ever, and on a busy one too: it needs no processor."""
    with local.session() as session:
        started = time.monotonic()
        assert session.run("import time\ntime.sleep(100)").status is ExecutionStatus.TIMEOUT
        assert time.monotonic() - started < LIMITS.cell_seconds + 3


@pytest.mark.parametrize("code", [NATIVE, PYTHON, DEAF], ids=["native", "python", "main"])
def test_nothing_runs_between_cells(local, code):
    with local.session() as session:
        assert session.run(code).status is ExecutionStatus.OK
        time.sleep(0.1)  # until it has stopped
        process = session._process
        before = process.times()[0]
        time.sleep(1.0)
        assert process.times()[0] - before <= 0.05
        if code != DEAF:
            assert session.run("6 * 7").output == "42"
            with pytest.raises(ForkError, match="threads"):
                session.fork()
            assert session.run("6 * 7").output == "42"


def test_a_copy_rests_as_well(local):
    with local.session() as session:
        session.run(
            RUNNER + "def spin():\n    while True:\n        pass\n"
            "become = runner.Session._become_copy\n"
            "def evil(self, *fds):\n    become(self, *fds)\n    spin()\n"
            "runner.Session._become_copy = evil"
        )
        with session.fork() as copy:
            time.sleep(0.1)
            before = copy._process.times()[0]
            time.sleep(0.5)
            assert copy._process.times()[0] - before <= 0.05
        assert session.run("6 * 7").output == "42"


LIARS = {
    "denies its copy": "runner.send({'nonce': nonce, 'error': 'no'})",
    "gives the number of another": "runner.send({'nonce': nonce, 'pid': os.getppid()})",
    "gives a number without end": "runner.send({'nonce': nonce, 'pid': 10**30})",
    "cannot be stopped": (
        # The thread that calls waits for the one that it makes, and no signal reaches it.
        "if clone(0x4000 | 0x10000 | 0x800 | 0x100) == 0:\n"
        "        runner.send({'nonce': nonce, 'error': 'no'})\n"
        "        while True:\n            pass"
    ),
    "answers nothing": "os._exit(0)",
}


@pytest.mark.parametrize("answer", LIARS.values(), ids=[name.replace(" ", "_") for name in LIARS])
def test_a_session_that_lies_about_its_copy_holds_up_nobody(local, running, answer):
    with local.session() as other, local.session() as session:
        other.run("kept = 1")
        session.run(
            RUNNER + CLONE + "def evil(self, nonce):\n"
            "    runner._receive_descriptors(self.channel, 2)\n"
            "    if clone(0x8011) == 0:\n        while True:\n            pass\n"
            f"    {answer}\n"
            "runner.Session._split = evil"
        )
        before = running(os.getpid())
        started = time.monotonic()
        with pytest.raises(ForkError):
            session.fork()
        assert time.monotonic() - started < 10
        assert other.run("kept").output == "1"
        other.fork().close()
        assert session.run("40 + 2").status is not ExecutionStatus.INFRA
        deadline = time.monotonic() + 20
        while len(running(os.getpid())) > len(before) + 1 and time.monotonic() < deadline:
            other.fork().close()  # the dead are waited for at the next request
        assert len(running(os.getpid())) <= len(before) + 1  # and a spare session


def kill(session: LocalSession, number: int) -> None:
    signal.pidfd_send_signal(session._process.pidfd, number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
@pytest.mark.parametrize("when", ["between cells", "in a cell"])
def test_a_session_that_is_killed_has_died(local, number, when):
    with local.session() as session:
        session.run("kept = 1")
        if when == "in a cell":
            threading.Timer(0.2, kill, (session, number)).start()
            result = session.run("import time\ntime.sleep(0.9)")
        else:
            kill(session, number)
            result = session.run("kept")
        assert result.status is ExecutionStatus.DIED
        assert session.run("1").output == f"{RESTARTED}\n1"


def test_a_session_that_dies_with_its_zygote_is_infra():
    with LocalInterpreter(Limits(cell_seconds=60.0), zygotes=1) as interpreter:
        with interpreter.session() as session:
            session.run("1")
            about = Path(f"/proc/self/fdinfo/{session._process.pidfd}").read_text()
            process = int(about.partition("\nPid:")[2].split()[0])
            status = Path(f"/proc/{process}/status").read_text()
            zygote = int(status.partition("\nPPid:")[2].split()[0])
            threading.Timer(0.3, os.kill, (zygote, signal.SIGKILL)).start()
            assert session.run("import time\ntime.sleep(50)").status is ExecutionStatus.INFRA
            assert session.run("1").output == f"{RESTARTED}\n1"


def test_out_of_memory_the_kernel_ends_sessions_before_the_host(local):
    def score(process: str) -> int:
        return int(Path(f"/proc/{process}/oom_score_adj").read_text())

    with local.session() as session:
        session.run("1")
        assert score(session._process._folder().rpartition("/")[2]) > score("self")


def test_a_session_that_filled_the_disk_does_not_keep_the_next_from_starting(monkeypatch):
    """Its files may take longer to remove than its end does."""
    monkeypatch.setattr("mathenv.interpreter.launcher._REMOVE_SECONDS", 0.0)
    with LocalInterpreter(LIMITS, tier="seccomp", zygotes=1, spares=0) as interpreter:
        removing = interpreter._launchers[-1]
        start = Process.start

        def full(*args: object) -> Process:
            if removing._unused:
                raise NoSpaceError("No space left on device")
            return start(*args)

        monkeypatch.setattr(Process, "start", full)
        with interpreter.session() as session:
            session.run("for i in range(300):\n    open(str(i), 'w').close()")
            session.run("import os\nos._exit(1)")
            assert removing._unused
            assert session.run("1").output == f"{RESTARTED}\n1"
            assert not removing._unused


class Clock:
    """A process whose times are given."""

    def __init__(self) -> None:
        self.now = self.used = self.waited = 0.0

    def times(self) -> tuple[float, float]:
        return self.used, self.waited

    def pass_by(self, seconds: float, used: float = 0.0, waited: float = 0.0) -> None:
        self.now += seconds
        self.used += used
        self.waited += waited


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("mathenv.interpreter.process.time.monotonic", lambda: made.now)
    return made


def test_time_spent_waiting_for_a_processor_is_not_charged(clock):
    clock.pass_by(100, 7, 50)  # of earlier cells
    deadline = CellDeadline(clock, 2.0)
    assert 0 < deadline.left() < 0.1  # a first look soon: most cells are over by then
    clock.pass_by(0.1)
    assert deadline.left() == pytest.approx(1.9)
    clock.pass_by(1.9, 0.5, 1.4)
    assert deadline.left() == pytest.approx(1.4)
    clock.pass_by(1.4, 0.7, 0.7)
    assert deadline.left() == pytest.approx(0.7)
    clock.pass_by(0.7, 0.7)
    assert deadline.left() <= 0


def test_a_cell_cannot_wait_for_itself_nor_for_ever(clock):
    deadline = CellDeadline(clock, 2.0)
    clock.pass_by(0.1)
    deadline.left()
    clock.pass_by(1.9, used=3.8, waited=500)  # of threads that wait for each other
    assert deadline.left() == pytest.approx(0)
    deadline = CellDeadline(clock, 2.0)
    clock.pass_by(0.1)
    deadline.left()
    clock.pass_by(2.0 * WALL_FACTOR - 1.1, waited=2.0 * WALL_FACTOR)
    assert deadline.left() == pytest.approx(1.0)
    clock.pass_by(1.0)
    assert deadline.left() <= 0


def test_sleep_is_charged_and_so_is_all_time_where_proc_tells_nothing(clock):
    deadline = CellDeadline(clock, 2.0)
    clock.pass_by(0.1)
    deadline.left()
    clock.pass_by(2.0)
    assert deadline.left() <= 0


def test_a_cell_on_a_busy_machine_gets_its_seconds(make_busy):
    """Ten times as many programs as processors: half a second of work takes many of wall time."""
    limits = Limits(cell_seconds=1.0, memory_bytes=400 << 20)
    with LocalInterpreter(limits, zygotes=1) as interpreter, interpreter.session() as session:
        session.run("import time")
        with make_busy():
            code = "while time.process_time() < 0.7:\n    pass\n'done'"
            result = session.run(code)
    assert (result.status, result.output) == (ExecutionStatus.OK, "'done'")
    assert result.seconds > 0.7


@pytest.fixture
def make_busy() -> Callable[[], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def busy() -> Iterator[None]:
        spin = [sys.executable, "-S", "-c", "while True:\n    pass"]
        most = 4 * len(os.sched_getaffinity(0))
        programs = [subprocess.Popen(spin) for _ in range(most)]
        try:
            time.sleep(0.3)
            yield
        finally:
            for program in programs:
                program.kill()
                program.wait()

    return busy


WRONG = (0, -1, -0.5, float("inf"), float("nan"), float("-inf"), "5", None, True, [1], 10**400, 1j)


@pytest.mark.parametrize("field", Limits.__dataclass_fields__)
@pytest.mark.parametrize("value", WRONG, ids=[str(value)[:6] for value in WRONG])
def test_limits_are_checked_by_name(field, value):
    with pytest.raises(ConfigError, match=f"limits: {field} "):
        Limits(**{field: value})


def test_limits_of_numpy_are_like_any():
    numpy = pytest.importorskip("numpy")
    given = Limits(cell_seconds=numpy.float32(2), output_chars=numpy.int64(100))
    assert given == Limits(cell_seconds=2.0, output_chars=100)
    assert hash(given) == hash(Limits(cell_seconds=2, output_chars=100))
    assert json.loads(json.dumps([given.cell_seconds, given.output_chars])) == [2.0, 100]
    with pytest.raises(ConfigError, match="memory_bytes"):
        Limits(memory_bytes=1.5)


AT_LIMIT = """
import gc, os, resource, sys
from mathenv.interpreter import Limits, LocalInterpreter
from mathenv.interpreter.base import HostLimitError, ForkError
interpreter = LocalInterpreter(Limits(cell_seconds=60), zygotes=1, tier=sys.argv[1])
first = interpreter.session()
first.run("1")
def processes():
    found = 0
    for name in os.listdir("/proc"):
        try:
            found += name.isdigit() and b"runner.py" in open(f"/proc/{name}/cmdline", "rb").read()
        except OSError:
            pass
    return found
used = len(os.listdir("/proc/self/fd"))
files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
for room in range(0, 12):
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + room, files))
    sessions = []
    for make in (interpreter.session, first.fork):
        held = []
        try:
            while True:
                held.append(make())
                assert held[-1].run("1").output == "1", held[-1].run("1")
        except HostLimitError as error:
            assert "ulimit -n" in str(error), error
        for session in held:
            session.close()
        del held
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    for _ in range(3):
        first.fork().close()
    assert len(os.listdir("/proc/self/fd")) == used, (room, used)
    assert first.run("6 * 7").output == "42"
session = interpreter.session()
session.run("1")
print("held", len(os.listdir("/proc/self/fd")) - used)
"""


@pytest.mark.parametrize("tier", ["namespaces", "seccomp"])
def test_at_the_limit_of_open_files_nothing_leaks_and_the_error_says_ulimit(tier):
    done = subprocess.run(
        [sys.executable, "-c", AT_LIMIT, tier], capture_output=True, text=True, timeout=240
    )
    assert done.stdout.strip() == "held 3", done.stderr


START_AT_LIMIT = """
import os, resource
from mathenv.errors import InfraError
from mathenv.interpreter import LocalInterpreter
kind = resource.RLIMIT_NOFILE
hard = resource.getrlimit(kind)[1]
used = len(os.listdir("/proc/self/fd"))
for room in range(5):
    resource.setrlimit(kind, (used + room - 1, hard))
    try:
        LocalInterpreter(tier=os.environ["TIER"]).close()
    except InfraError as error:
        text = str(error)
    resource.setrlimit(kind, (hard, hard))
    assert len(os.listdir("/proc/self/fd")) == used
print(text)
"""


@pytest.mark.parametrize("tier", ["namespaces", "seccomp"])
def test_an_interpreter_that_cannot_be_started_says_ulimit(open_folder, tier):
    environment = {**os.environ, "TIER": tier, "TMPDIR": str(open_folder)}
    done = subprocess.run(
        [sys.executable, "-c", START_AT_LIMIT],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert "ulimit -n" in done.stdout, done.stderr
    assert list(open_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "hint"),
    [(errno.EAGAIN, "ulimit -u"), (errno.ENOMEM, "memory"), (errno.EMFILE, "ulimit -n")],
)
def test_a_limit_met_anywhere_is_said_and_takes_no_weaker_tier(
    monkeypatch, open_folder, number, hint
):
    """By this process, which starts the launcher, or by one of its helpers."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.tempdir", str(open_folder))
    files = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patch:
        patch.setattr("mathenv.interpreter.launcher.subprocess.Popen", refuse)
        for tier in ("namespaces", "seccomp", None):
            with pytest.raises(HostLimitError, match=hint):
                LocalInterpreter(tier=tier)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.send(json.dumps({"error": "fork", "errno": number}).encode())
        with pytest.raises(SlowStartError, match=f"fork.*{hint}"):
            launcher._receive(ours)
    assert len(os.listdir("/proc/self/fd")) == files
    assert list(open_folder.iterdir()) == []
