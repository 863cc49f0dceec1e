"""Importing the package: what it registers, what it costs."""

import subprocess
import sys
from importlib.metadata import version

import gymnasium
import pytest

import mathenv


def test_import_registers_once_and_stays_light():
    """In a fresh process: no heavy library comes along, and the id is there."""
    code = (
        "import mathenv, sys, gymnasium\n"
        "assert mathenv.ENV_ID in gymnasium.registry\n"
        "mathenv.register_envs()\n"
        "heavy = {'torch', 'sympy', 'transformers', 'math_verify', 'datasets'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_the_environment_imports_without_torch():
    code = (
        "import sys; from mathenv import MathToolEnv\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_gym_make_imports_the_package_by_name():
    code = (
        "import gymnasium\n"
        "env = gymnasium.make('mathenv:MathTool-v0')\n"
        "print(type(env.unwrapped).__name__); env.close()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "MathToolEnv", done.stderr


def test_import_time_is_mostly_gymnasium():
    """CPU seconds in one run, as a ratio (0.06): the machine's speed does not matter."""
    code = (
        "import time; clock = time.process_time; a = clock(); import gymnasium; b = clock(); "
        "import mathenv; print((clock() - b) / (b - a))"
    )
    ratios = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
        ratios.append(float(done.stdout))
    assert min(ratios) < 0.5


def test_version_is_the_packages():
    assert mathenv.__version__ == version("mathenv")


def test_every_exported_name_resolves():
    for name in mathenv.__all__:
        assert getattr(mathenv, name) is not None
    assert set(mathenv.__all__) <= set(dir(mathenv))
    with pytest.raises(AttributeError, match="no_such_name"):
        mathenv.no_such_name  # noqa: B018


def test_the_spec_leaves_the_horizon_to_the_environment():
    spec = gymnasium.spec(mathenv.ENV_ID)
    assert spec.max_episode_steps is None
    assert not spec.nondeterministic
