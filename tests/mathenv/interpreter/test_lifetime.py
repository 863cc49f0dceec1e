"""Nothing outlives the interpreter or its host, and a dead helper is replaced."""

import gc
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from mathenv.errors import ConfigError
from mathenv.interpreter import LocalInterpreter
from mathenv.interpreter.local import RESTARTED
from mathenv.types import ExecutionStatus


def processes_of(host_pid: int) -> list[int]:
    """Ids of the launcher, zygote and sessions of a host (forks share their command line)."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_text()
            except OSError:
                continue
            if "runner.py" in command and f'"host_pid": {host_pid}}}' in command:
                found.append(int(entry.name))
    return found


def wait_until_gone(host_pid: int, seconds: float = 5.0) -> list[int]:
    deadline = time.monotonic() + seconds
    while (left := processes_of(host_pid)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


HOST = """
import sys, threading
from mathenv.interpreter import LocalInterpreter, Limits, local
local.TIERS = (sys.argv[1],)
interpreter = LocalInterpreter(Limits(cell_seconds=60))
idle, busy = interpreter.session(), interpreter.session()
idle.run("open('file', 'w').write('x')")
busy.run("import signal")
threading.Thread(target=busy.run, args=("while True: pass",), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("tier", ["namespaces", "seccomp"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killing_the_host_leaves_nothing(tmp_path, tier, number):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    if os.geteuid() == 0:  # so that the unprivileged session can reach its folder
        for folder in (tmp_path, *tmp_path.parents[:2]):
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o001)
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
        assert len(processes_of(host.pid)) == 4  # launcher, zygote, two sessions
        host.send_signal(number)
        host.wait()
    assert wait_until_gone(host.pid) == []
    assert list(tmp_path.iterdir()) == []


def test_close_leaves_nothing_and_refuses_further_cells():
    before = set(processes_of(os.getpid()))  # of interpreters that other tests keep open
    interpreter = LocalInterpreter()
    sessions = [interpreter.session() for _ in range(3)]
    for session in sessions:
        session.run("1")
    assert len(set(processes_of(os.getpid())) - before) == 5
    interpreter.close()
    interpreter.close()
    assert set(processes_of(os.getpid())) <= before
    assert sessions[0].run("1").status is ExecutionStatus.INFRA
    with pytest.raises(ConfigError, match="closed"):
        interpreter.session().run("1")


def test_forgotten_interpreter_ends_with_its_last_reference():
    before = set(processes_of(os.getpid()))
    session = LocalInterpreter().session()
    assert session.run("1").output == "1"
    assert len(set(processes_of(os.getpid())) - before) == 3
    del session
    gc.collect()
    assert set(processes_of(os.getpid())) <= before


def test_dead_zygote_is_replaced():
    with LocalInterpreter() as interpreter:
        session, idle = interpreter.session(), interpreter.session()
        session.run("q = 1")
        idle.run("q = 1")
        launcher = interpreter._zygotes[-1]._launcher
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


def test_descriptors_are_returned():
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
        assert len(processes_of(os.getpid())) < 40


FORKED = """
import os
from mathenv.interpreter import LocalInterpreter
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
