"""Containers: what confines them, what happens when they or their owner die, clear errors.

The tests that need an engine run where MATHENV_TEST_ENGINES names docker (`make test-engines`).
"""

import contextlib
import gc
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from mathenv.env import MathToolEnv
from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter import DockerInterpreter, Limits, LocalInterpreter, local
from mathenv.interpreter import docker_host as docker
from mathenv.interpreter.base import RESTARTED
from mathenv.interpreter.engine import LABEL
from mathenv.types import ExecutionStatus, Problem

sdk = pytest.importorskip("docker", reason="the docker package is not installed")

asked_for = "docker" in os.environ.get("MATHENV_TEST_ENGINES", "").split(",")
needs_engine = pytest.mark.skipif(
    not asked_for, reason="needs a Docker engine: make test-engines starts one"
)
# Cells that end by themselves are not late on a busy machine; the others cost these seconds.
SMALL = Limits(cell_seconds=3.0, grace_seconds=2.0, memory_bytes=512 << 20)


@pytest.fixture(scope="module")
def api() -> Iterator[sdk.APIClient]:
    api = sdk.APIClient(version="auto", **sdk.utils.kwargs_from_env())
    yield api
    api.close()


@pytest.fixture(scope="module")
def small() -> Iterator[DockerInterpreter]:
    with DockerInterpreter(SMALL, containers=1) as interpreter:
        yield interpreter


def containers_of(api, pid: int) -> list[str]:
    found = api.containers(all=True, filters={"label": f"{LABEL}.pid={pid}"})
    return [entry["Id"] for entry in found]


def wait_for(condition, seconds: float = 100.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


# --- without an engine


def test_no_engine_says_how_to_start_one(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(InfraError, match=r"none\.sock: start it"):
        DockerInterpreter()


def test_no_permission_says_which_group(monkeypatch, tmp_path):
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        path.chmod(0)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        uid = os.geteuid()
        if uid == 0:
            os.seteuid(65534)
        try:
            with pytest.raises(InfraError, match="group 'docker'"):
                DockerInterpreter()
        finally:
            os.seteuid(uid)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "docker", None)
    with pytest.raises(ConfigError, match="pip install"):
        DockerInterpreter()


@pytest.mark.parametrize("wrong", [{"min_tier": "castle"}, {"containers": 0}])
def test_wrong_arguments(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DockerInterpreter(**wrong)


def test_the_dockerfile_pins_what_the_tests_run_with():
    text = Path(docker.__file__).with_name("Dockerfile").read_text()
    for package in ("numpy", "sympy", "mpmath"):
        assert f" {package}=={version(package)}" in text


def test_an_error_of_any_container_is_raised_not_only_of_the_first():
    class Slot:
        def __init__(self, error: str = "") -> None:
            self.hello, self.error = {"description": {"tier": "seccomp"}}, error

        def container(self):
            if self.error:
                raise InfraError(self.error)
            return self

    slots = [Slot(), Slot(), Slot("no room for the third")]
    assert docker._start_all(slots[:2], "image", "sha256:1")["tier"] == "seccomp"
    with pytest.raises(InfraError, match="no room for the third"):
        docker._start_all(slots, "image", "sha256:1")


# --- with one


@needs_engine
def test_missing_image_gives_the_build_command():
    with pytest.raises(ConfigError, match=r"docker build -t no-such-image -f .*/Dockerfile .*"):
        DockerInterpreter(image="no-such-image")


@contextlib.contextmanager
def variant(api, *lines: str) -> Iterator[str]:
    """An image made from ours by some lines of a Dockerfile."""
    name = f"mathenv-test-{uuid.uuid4().hex[:8]}"
    text = "\n".join([f"FROM {docker.IMAGE}", "USER 0", *lines, "USER 65534:65534"])
    said = list(api.build(fileobj=io.BytesIO(text.encode()), tag=name, decode=True, rm=True))
    assert not any("error" in line for line in said), said
    try:
        yield name
    finally:
        api.remove_image(name, force=True)


@needs_engine
def test_image_of_another_version_is_refused(api):
    change = "RUN echo '# changed' >> /opt/interpreter/mathenv/types.py"
    with variant(api, change) as image, pytest.raises(ConfigError, match="another version"):
        DockerInterpreter(image=image, containers=1)


@needs_engine
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("print('x' * 100_000)", "something else than answers"),
        ("import sys; sys.exit('no library')", "no library"),
    ],
)
def test_a_container_that_talks_nonsense_or_ends_is_an_infra_error(api, entry, message):
    with variant(api, f'ENTRYPOINT ["python", "-c", "{entry}"]') as image:
        with pytest.raises(InfraError, match=message):
            DockerInterpreter(image=image, containers=1)


@needs_engine
def test_settings_reach_the_inside():
    options = {"preload": ("colorsys",), "numpy_legacy": "1.25"}
    with DockerInterpreter(SMALL, containers=1, **options) as interpreter:
        assert interpreter.description["preload"] == "colorsys"
        with interpreter.session() as session:
            assert session.run("import sys\n'colorsys' in sys.modules").output == "True"
            assert session.run("import numpy\nnumpy.float64(3)").output == "3.0"


@needs_engine
def test_packages_that_the_image_has_not():
    with pytest.raises(ConfigError, match=r"'torch' is not installed .*in the image"):
        DockerInterpreter(SMALL, containers=1, packages=("torch",))


@needs_engine
def test_nothing_of_the_image_but_libraries_can_be_read(small):
    cells = [
        "import mathenv",
        "open('/opt/interpreter/mathenv/types.py')",
        "import os\nos.listdir('/opt')",
        "import os\nos.listdir('/proc/1/fd')",
        "import pip",
        "open('/etc/passwd')",
    ]
    with small.session() as session:
        for cell in cells:
            result = session.run(cell)
            assert result.status is ExecutionStatus.ERROR, cell
            assert result.output.splitlines()[-1].startswith(("Module", "Permission")), cell


@needs_engine
def test_unknown_runtime_is_the_engines_own_words():
    with pytest.raises(InfraError, match="no-such-runtime"):
        DockerInterpreter(runtime="no-such-runtime", containers=1)


@needs_engine
def test_what_confines_a_container(api, small):
    small.session().run("1")
    (name,) = set(containers_of(api, os.getpid())) & {slot._container._id for slot in small._slots}
    found = api.inspect_container(name)
    config, host = found["Config"], found["HostConfig"]
    assert found["Image"] == small.description["image"]
    assert host["LogConfig"]["Type"] == "none"
    assert host["Memory"] == host["MemorySwap"] == 2 * SMALL.memory_bytes + (512 << 20)
    assert (host["Binds"], host["Privileged"], found["Mounts"]) == (None, False, [])
    assert config["User"] == "65534:65534"
    # The rest as a process in the container sees it, outside the sandbox in there.
    look = (
        "import os\n"
        "lines = dict(l.split(':', 1) for l in open('/proc/self/status'))\n"
        "def refused(path):\n"
        "    try: open(path, 'w')\n"
        "    except OSError: return True\n"
        "print(os.getuid(), os.listdir('/sys/class/net'), lines['CapBnd'].strip(),\n"
        "      lines['NoNewPrivs'].strip(), lines['Seccomp'].strip(),\n"
        "      all(map(refused, ['/etc/x', '/opt/x', '/var/tmp/x', '/dev/shm/x'])),\n"
        "      os.path.exists('/var/run/docker.sock'), open('/tmp/x', 'w').write('1'))"
    )
    run = api.exec_create(name, ["python", "-c", look])
    said = api.exec_start(run["Id"]).decode().strip()
    assert said == "65534 ['lo'] 0000000000000000 1 2 True False 1"


CELLS = [
    "import random, numpy\nx = (random.random(), numpy.random.rand(), list({'a', 'b', 'c'}))\nx",
    "from sympy import *\nt = symbols('t')\nfactor(t**4 - 1)",
    "def f(n):\n    return 1 / n\nf(0)",
    "y = (",
    "print('a' * 5000)",
    "bytearray(10**11)",
    "raise SystemExit(2)",
    "print('before')\nwhile True:\n    pass",
    "x",
    "import os\nprint('last words')\nos._exit(7)",
    "x",
    "import socket\nsocket.socket()",
    "import os\nos.fork()",
    "open('/etc/passwd').read()",
    "open('mine', 'w').write('text'), open('mine').read()",
    "#" * 200_000,
]


@needs_engine
def test_same_results_as_on_this_machine(small, monkeypatch):
    monkeypatch.setattr(local, "TIERS", (small.description["tier"],))
    with LocalInterpreter(SMALL) as machine:
        for seed in (0, 7):
            with machine.session(seed=seed) as here, small.session(seed=seed) as there:
                for code in CELLS:
                    assert there.run(code) == here.run(code), code


@needs_engine
def test_a_dead_container_is_replaced_and_its_neighbours_go_on(api):
    with DockerInterpreter(replace(SMALL, cell_seconds=60.0), containers=2) as interpreter:
        first, second = interpreter.session(), interpreter.session()
        for session in (first, second):
            session.run("kept = 1")
        assert first._container is not second._container
        busy = interpreter.session()
        busy.run("1")
        assert busy._container is first._container
        threading.Timer(0.5, api.kill, [first._container._id]).start()
        in_flight = busy.run("while True:\n    pass")
        assert in_flight.status is ExecutionStatus.INFRA
        assert in_flight.session_lost
        assert first.run("kept").status is ExecutionStatus.INFRA
        assert second.run("kept").output == "1"
        assert first.run("2 + 2").output == f"{RESTARTED}\n4"
        assert busy.run("3").output == f"{RESTARTED}\n3"
        assert second.run("kept").output == "1"
        alive = {slot._container._id for slot in interpreter._slots}
        assert alive <= set(containers_of(api, os.getpid()))


@needs_engine
def test_a_container_that_hangs_is_killed(api, monkeypatch):
    with DockerInterpreter(SMALL, containers=1) as interpreter:
        session = interpreter.session()
        session.run("kept = 1")
        name = session._container._id
        api.pause(name)
        monkeypatch.setattr(docker, "SLACK_SECONDS", 1.0)
        result = session.run("kept")
        assert result.status is ExecutionStatus.INFRA
        assert "did not answer" in result.output
        monkeypatch.undo()
        assert session.run("1").output == f"{RESTARTED}\n1"
        assert wait_for(lambda: name not in containers_of(api, os.getpid()))


@needs_engine
def test_a_forged_answer_is_an_infra_error(small, monkeypatch):
    session = small.session()
    session.run("1")
    answer = {"status": "wonderful", "output": "42", "truncated": False, "session_lost": False}
    monkeypatch.setattr(session._container, "request", lambda *_: answer)
    assert session.run("1").status is ExecutionStatus.INFRA
    assert session.run("1").output == f"{RESTARTED}\n1"


@needs_engine
def test_the_containers_memory_holds_all_its_sessions(api):
    limits = Limits(cell_seconds=20.0, memory_bytes=512 << 20)
    with DockerInterpreter(limits, containers=1, memory_bytes=400 << 20) as interpreter:
        hungry, neighbour = interpreter.session(), interpreter.session()
        neighbour.run("kept = 1")
        result = hungry.run("x = []\nwhile True:\n    x.append(bytearray(10**7))")
        assert result.status is ExecutionStatus.MEMORY
        assert neighbour.run("kept").output == "1"
        assert hungry.run("1").output == f"{RESTARTED}\n1"


@needs_engine
def test_sessions_wait_for_room_and_forgotten_ones_make_room():
    with DockerInterpreter(SMALL, containers=1, max_sessions=1) as interpreter:
        first = interpreter.session()
        first.run("1")
        results: list[str] = []

        def forgetful() -> None:
            results.append(interpreter.session().run("2").output)

        waiting = threading.Thread(target=forgetful)
        waiting.start()
        time.sleep(0.5)
        assert results == []
        first.close()
        waiting.join(100)
        assert results == ["2"]
        gc.collect()
        assert interpreter.session().run("3").output == "3"


OWNER = """
import sys, threading
from mathenv.interpreter import DockerInterpreter, Limits
interpreter = DockerInterpreter(Limits(cell_seconds=60), containers=2)
sessions = [interpreter.session() for _ in range(2)]
sessions[0].run("open('file', 'w').write('x')")
sessions[1].run("1")
threading.Thread(target=sessions[1].run, args=("while True: pass",), daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""


@needs_engine
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_containers_of_a_killed_owner_are_gone_within_seconds(api, number):
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().strip() == "ready"
        assert len(containers_of(api, owner.pid)) == 2
        owner.send_signal(number)
        owner.wait()
    assert wait_for(lambda: containers_of(api, owner.pid) == [])


@needs_engine
def test_the_reaper_takes_only_what_the_dead_have_left(api, small):
    def orphan(**labels: str) -> str:
        mine = small._slots[0]._container._id
        labels = {**api.inspect_container(mine)["Config"]["Labels"], **labels}
        name = api.create_container(docker.IMAGE, labels=labels, stdin_open=True)["Id"]
        api.start(name)  # its stdin stays open: nothing but the reaper will end it
        return name

    pid, start = f"{LABEL}.pid", f"{LABEL}.start"
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead = orphan(**{pid: str(ended.pid)})
    number_used_again = orphan(**{start: "1"})
    live = orphan()
    elsewhere = orphan(**{pid: str(ended.pid), f"{LABEL}.host": "another"})
    try:
        DockerInterpreter(SMALL, containers=1).close()
        left = {entry["Id"] for entry in api.containers(all=True)}
        assert not {dead, number_used_again} & left
        assert {live, elsewhere} <= left
        assert small.session().run("1").output == "1"
    finally:
        for name in (live, elsewhere):
            api.remove_container(name, force=True)


@needs_engine
def test_close_leaves_nothing(api):
    before = set(containers_of(api, os.getpid()))
    threads = threading.active_count()
    interpreter = DockerInterpreter(SMALL, containers=2)
    session = interpreter.session()
    session.run("1")
    assert len(set(containers_of(api, os.getpid())) - before) == 2
    interpreter.close()
    interpreter.close()
    assert wait_for(lambda: set(containers_of(api, os.getpid())) <= before)
    assert session.run("1").status is ExecutionStatus.INFRA
    with pytest.raises(ConfigError, match="closed"):
        interpreter.session().run("1")
    assert wait_for(lambda: threading.active_count() <= threads)


@needs_engine
def test_forgotten_interpreter_ends_with_its_last_reference(api):
    before = set(containers_of(api, os.getpid()))
    session = DockerInterpreter(SMALL, containers=1).session()
    assert session.run("1").output == "1"
    assert len(set(containers_of(api, os.getpid())) - before) == 1
    del session
    gc.collect()
    assert wait_for(lambda: set(containers_of(api, os.getpid())) <= before)


FORKED = """
import os
from mathenv.interpreter import DockerInterpreter
interpreter = DockerInterpreter(containers=1)
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


@needs_engine
def test_a_forked_copy_of_the_host_does_not_touch_the_sessions():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert done.stdout.strip() == "0 1", done.stderr


@needs_engine
def test_an_environment_takes_docker_by_name():
    problem = Problem("one", "What is 6 * 7?", "42")
    play = ["```python\nimport os\nprint(6 * 7, os.getuid())\n```", r"\boxed{42}"]
    env = MathToolEnv([problem], interpreter="docker", limits=replace(SMALL, output_chars=500))
    env.reset(seed=0)
    observation, *_ = env.step(play[0])
    assert observation == "42 65534"
    assert env.step(play[1])[1] == 1.0
    assert env.interpreter.description["host"] == "docker"
    env.close()
