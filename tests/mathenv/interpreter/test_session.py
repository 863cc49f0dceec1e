"""What a cell's author sees: state, echo, output, errors, limits."""

import os
import sys
import threading
import time
from pathlib import Path

import numpy
import pytest

from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter import Interpreter, Limits, LocalInterpreter, Session
from mathenv.interpreter.base import RESTARTED
from mathenv.interpreter.launcher import patience
from mathenv.types import ExecutionStatus


@pytest.fixture
def session(interpreter):
    with interpreter.session() as session:
        yield session


def test_implements_the_protocol(interpreter, session):
    assert isinstance(interpreter, Interpreter)
    assert isinstance(session, Session)
    description = interpreter.description
    assert description["host"] in ("local", "docker")
    if description["host"] == "local":  # an image has its own
        assert description["python"] == ".".join(map(str, sys.version_info[:3]))
    assert all(isinstance(value, str) for value in description.values())


def test_names_imports_and_functions_persist(session):
    session.run("import math\ndef area(r):\n    return math.pi * r**2\nradius = 2")
    assert session.run("round(area(radius), 3)").output == "12.566"


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("1 + 1", "2"),
        ("'text'", "'text'"),
        ("None", ""),
        ("5;", ""),
        ("5;  # hidden", ""),
        ("5\n# note;", "5"),
        ("';'", "';'"),
        ("", ""),
        ("# only a comment", ""),
        ("x = 1", ""),
        ("for i in range(3):\n    i", ""),
        ("print('a')\n'b'", "a\n'b'"),
        ("print('a', end='')\n2", "a\n2"),
        ("print()\nprint('  indented')", "\n  indented"),
        ("import sys\nsys.stderr.write('warned')\nNone", "warned"),
        ("from sympy import *\nx = symbols('x')\nsolve(x**2 - 2, x)", "[-sqrt(2), sqrt(2)]"),
        ("import sympy\nsympy.Rational(2, 4)", "1/2"),
        (r'print("\\frac{1}{2}" + "\n" + "b")', "\\frac{1}{2}\nb"),
        ("'''triple''' + \"\"\"quotes\"\"\"", "'triplequotes'"),
        ("__name__", "'__main__'"),
        ("\ufeffprint(1)", "1"),
        ("import pickle\nclass A:\n    x = 3\npickle.loads(pickle.dumps(A())).x", "3"),
    ],
)
def test_output(session, code, output):
    result = session.run(code)
    assert result.output == output
    assert result.status is ExecutionStatus.OK
    assert not result.truncated
    assert not result.session_lost


def test_traceback_holds_only_the_cell(session):
    result = session.run("def f(n):\n    return 1 / n\n\nf(0)")
    assert result.status is ExecutionStatus.ERROR
    assert result.output == (
        "Traceback (most recent call last):\n"
        '  File "<cell 1>", line 4, in <module>\n'
        "    f(0)\n"
        '  File "<cell 1>", line 2, in f\n'
        "    return 1 / n\n"
        "ZeroDivisionError: division by zero"
    )


def test_traceback_of_an_earlier_cell_and_of_a_library(session):
    session.run("import sympy\ndef g(text):\n    return sympy.sympify(text)")
    lines = session.run("g('1 +')").output.splitlines()
    assert lines[1:5] == [
        '  File "<cell 2>", line 1, in <module>',
        "    g('1 +')",
        '  File "<cell 1>", line 3, in g',
        "    return sympy.sympify(text)",
    ]
    assert any("SympifyError" in line for line in lines[-4:])
    assert not any(str(Path(sys.prefix)) in line for line in lines)


def test_deep_traceback_is_short(session):
    result = session.run("def f():\n    f()\nf()")
    assert "frames cut" in result.output
    assert len(result.output.splitlines()) < 20
    assert result.output.endswith("RecursionError: maximum recursion depth exceeded")


def test_syntax_error_points_at_the_line(session):
    result = session.run("x = 1\ny = (")
    assert result.status is ExecutionStatus.ERROR
    assert 'File "<cell 1>", line 2' in result.output
    assert result.output.endswith("SyntaxError: '(' was never closed")


@pytest.mark.parametrize("code", ["import sys\nsys.exit(3)", "exit(3)", "quit(3)"])
def test_exit_is_an_error_and_the_session_survives(session, code):
    session.run("q = 7")
    result = session.run(code)
    assert result.status is ExecutionStatus.ERROR
    assert result.output.endswith("SystemExit: 3")
    assert not result.session_lost
    assert session.run("q").output == "7"


def test_os_exit_ends_the_session_and_the_next_cell_says_so(session):
    session.run("q = 7")
    result = session.run("import os\nprint('before')\nos._exit(3)")
    assert result.status is ExecutionStatus.DIED
    assert result.session_lost
    assert result.output.startswith("before\n")
    assert "exit code 3" in result.output
    after = session.run("q")
    assert after.output.startswith(RESTARTED + "\n")
    assert after.output.endswith("NameError: name 'q' is not defined")
    assert not after.session_lost
    assert session.run("1").output == "1"


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos.closerange(0, 100)",
        "import os\nos.closerange(3, 100)\nwhile True:\n    pass",
        "import os, struct\nos.write(3, struct.pack('>I', 2) + b'{}')",
        "import os\nos.write(3, b'\\xff' * 8)\nwhile True:\n    pass",
        "import os, struct\nos.write(3, struct.pack('>I', 10**5) + b'[' * 10**5)",
    ],
)
def test_abuse_of_the_control_channel_is_never_our_fault(session, code):
    result = session.run(code)
    assert result.status is ExecutionStatus.DIED
    assert result.session_lost
    assert session.run("1").output == f"{RESTARTED}\n1"


def test_input_meets_the_end_of_file(session):
    assert session.run("input('number: ')").output.endswith("EOFError: EOF when reading a line")


def test_long_output_is_cut_in_the_middle(session):
    result = session.run("for i in range(100000):\n    print(i)")
    assert result.truncated
    assert len(result.output) <= 2000
    assert result.output.startswith("0\n1\n2\n")
    assert result.output.endswith("99998\n99999")
    assert "characters cut" in result.output


def test_long_echo_and_long_error_are_cut(session):
    echo = session.run("'a' * 10**6 + 'end'")
    assert echo.truncated
    assert echo.output.startswith("'aaa")
    assert echo.output.endswith("aend'")
    assert "[... 998" in echo.output  # 1,000,005 less about 2,000
    error = session.run("print('x' * 10**5)\nraise ValueError('b' * 10**6 + 'end')")
    assert error.output.startswith("xxx")
    assert error.output.endswith("bend")
    assert len(error.output) <= 2000


def test_too_long_a_cell_is_refused(session):
    session.run("kept = 1")
    assert session.run("#" * 200_000).status is ExecutionStatus.ERROR
    assert session.run("kept").output == "1"


def test_control_characters_and_surrogates_are_harmless(session):
    result = session.run("print('\\x1b[31mred\\x1b[0m\\x00\\x07')\nprint('\\ud800')")
    assert result.output == "red\n\\ud800"
    result = session.run("raise ValueError('\\ud800')")
    assert result.output.encode("utf-8")


def test_interrupted_cell_keeps_names(hasty):
    session = hasty.session()
    session.run("kept = 1")
    result = session.run("print('start')\ninside = 2\nwhile True:\n    pass")
    assert result.status is ExecutionStatus.TIMEOUT
    assert result.output.startswith("start\nTimeoutError")
    assert result.seconds > 1.9
    assert not result.session_lost
    assert session.run("kept, inside").output == "(1, 2)"
    session.close()


def test_uninterruptible_cell_is_killed(hasty):
    session = hasty.session()
    session.run("kept = 1")
    result = session.run("print('start')\nimport itertools\nmax(itertools.count())")
    assert result.status is ExecutionStatus.TIMEOUT
    assert result.session_lost
    assert result.output.startswith("start\nTimeoutError")
    after = session.run("2")
    assert after.output == f"{RESTARTED}\n2"
    assert session.run("2").output == "2"
    session.close()


def test_memory_error_reports_and_recovers(session):
    session.run("kept = 1")
    result = session.run("x = bytearray(10**10)")
    assert result.status is ExecutionStatus.MEMORY
    assert result.output.endswith("MemoryError")
    assert session.run("kept").output == "1"
    full = session.run("a = []\nwhile True:\n    a.append(bytearray(10**7))")
    assert full.status is ExecutionStatus.MEMORY
    assert full.session_lost  # nothing is left to work with
    assert session.run("1 + 1").output == f"{RESTARTED}\n2"


def test_cpu_budget(make_interpreter):
    with make_interpreter(Limits(cell_seconds=100, session_cpu_seconds=1)) as interpreter:
        with interpreter.session() as session:
            result = session.run("while True:\n    pass")
            assert result.status is ExecutionStatus.TIMEOUT
            assert "CPU time" in result.output
            assert session.run("1").output == f"{RESTARTED}\n1"


def test_output_flood_is_killed(make_interpreter):
    with make_interpreter(Limits(output_bytes=1 << 20)) as interpreter:
        with interpreter.session() as session:
            result = session.run("while True:\n    print('x' * 1000)")
            assert result.status is ExecutionStatus.OUTPUT_LIMIT
            assert result.truncated
            assert result.session_lost


def test_same_seed_same_values(interpreter):
    code = (
        "import random, numpy, sympy.core.random as r\n"
        "random.random(), numpy.random.rand(), r.random(), list({'a', 'b', 'c', 'd'}), hash('x')"
    )
    outputs = []
    for seed in (0, 0, 1):
        with interpreter.session(seed=seed) as session:
            outputs.append(session.run(code).output)
    assert outputs[0] == outputs[1]
    assert outputs[0] != outputs[2]
    with interpreter.session(seed=5) as session:
        value = float(session.run("import numpy\nfloat(numpy.random.rand())").output)
    assert value == numpy.random.RandomState(5).rand()


def test_background_threads_rest_between_cells(session):
    started = session.run(
        "import threading, time\n"
        "def spin():\n    while True:\n        pass\n"
        "threading.Thread(target=spin, daemon=True).start()\n"
        "time.process_time()"
    )
    time.sleep(2.0)
    used = float(session.run("time.process_time()").output) - float(started.output)
    assert used < 1.0  # some, until the thread is stopped and once it goes on


def test_files_live_in_an_empty_scratch_folder(interpreter, session):
    assert session.run("import os\nos.listdir()").output == "[]"
    assert session.run("open('a.txt', 'w').write('hello')").output == "5"
    session.run("os.mkdir('sub')\nos.chdir('sub')")
    assert session.run("open('a.txt').read()").output == "'hello'"
    with interpreter.session() as other:
        assert other.run("import os\nos.listdir()").output == "[]"


def test_a_cell_may_close_its_output(interpreter):
    """The host sees the pipe's end before the reply: no reason to fail, nor to wait."""
    with interpreter.session() as session:
        cell = "import os, time\nfor f in (1, 2, 4):\n    os.close(f)\ntime.sleep(0.3)\n6 * 7"
        assert session.run(cell).status is ExecutionStatus.OK


def test_fifty_threads(interpreter):
    outputs: dict[int, list[str]] = {}

    def work(number: int) -> None:
        with interpreter.session(seed=number) as session:
            session.run(f"x = {number}")
            session.run("print('noise' * 1000)")
            outputs[number] = [session.run("x").output, session.run("x + 1").output]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {number: [str(number), str(number + 1)] for number in range(50)}


def test_sessions_start_no_threads(interpreter):
    before = threading.active_count()
    sessions = [interpreter.session() for _ in range(5)]
    assert [session.run("1").output for session in sessions] == ["1"] * 5
    assert threading.active_count() == before
    for session in sessions:
        session.close()


def test_builtins_are_restored_after_each_cell(session):
    for _ in range(2):
        assert session.run("import builtins\nbuiltins.len = None\nlen").output == ""
        assert session.run("del builtins.repr\nbuiltins.print = 3").output == ""
        assert session.run("print(len('ab'), repr(1))").output == "2 1"


def test_error_reports_name_no_folder_of_this_machine(session):
    output = session.run("from sympy import nothing").output
    assert output.endswith("cannot import name 'nothing' from 'sympy' (sympy/__init__.py)")


def test_a_start_that_takes_too_long_does_not_choose_a_weaker_tier(monkeypatch):
    monkeypatch.setattr("mathenv.interpreter.launcher.START_SECONDS", 0.001)
    said = r"was not ready within .* s.*too busy.*MATHENV_PATIENCE=4"
    with pytest.raises(InfraError, match=said):
        LocalInterpreter()


@pytest.mark.parametrize(
    ("told", "load", "seconds"),
    [
        ("1", 0.5, 30.0),
        ("4", 0.5, 120.0),
        ("1", 3.0, 90.0),
        ("0.5", 3.0, 45.0),
        ("1", 500.0, 150.0),
    ],
)
def test_patience_grows_with_the_load_and_the_setting(monkeypatch, told, load, seconds):
    monkeypatch.setenv("MATHENV_PATIENCE", told)
    monkeypatch.setattr("os.getloadavg", lambda: (load * os.cpu_count(), 0.0, 0.0))
    assert patience(30.0) == pytest.approx(seconds)


@pytest.mark.parametrize("told", ["", "soon", "0", "-1", "inf", "nan"])
def test_a_patience_that_is_none_is_named(monkeypatch, told):
    monkeypatch.setenv("MATHENV_PATIENCE", told)
    with pytest.raises(ConfigError, match="MATHENV_PATIENCE is a factor"):
        patience(30.0)


def test_closed_session_and_bad_arguments(interpreter):
    session = interpreter.session()
    session.run("1")
    session.close()
    session.close()
    with pytest.raises(ConfigError, match="closed"):
        session.run("1")
    with pytest.raises(ConfigError, match="min_tier"):
        LocalInterpreter(min_tier="castle")
    with pytest.raises(ConfigError, match="weaker"):
        LocalInterpreter(min_tier="namespaces", tier="seccomp")
    with pytest.raises(ConfigError, match="max_sessions"):
        LocalInterpreter(max_sessions=0)


def test_max_sessions_makes_the_next_one_wait(make_interpreter):
    with make_interpreter(max_sessions=1) as interpreter:
        first, second = interpreter.session(), interpreter.session()
        first.run("1")
        done = threading.Event()
        results = []

        def work() -> None:
            results.append(second.run("2").output)
            done.set()

        thread = threading.Thread(target=work)
        thread.start()
        assert not done.wait(0.3)
        first.close()
        assert done.wait(60)
        thread.join()
        assert results == ["2"]
        second.close()


def test_matplotlib_works_where_it_is_installed():
    pytest.importorskip("matplotlib")
    with LocalInterpreter(Limits(cell_seconds=60), zygotes=1) as interpreter:
        with interpreter.session() as session:
            code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.savefig('a.png')\n1"
            assert session.run(code).output == "1"
            assert session.run("plt.show()\nopen('a.png', 'rb').read(4)").output == r"b'\x89PNG'"
