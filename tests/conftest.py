"""What holds for all tests: their outcome is the same on every machine and in every run."""

import os
import signal
import sys

import pytest

# A shell starts background jobs with SIGINT ignored, and children inherit that: tests of Ctrl-C
# would test nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tables and help are as wide as a terminal, and as colourful: nobody's terminal is asked.
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
    os.environ.pop(name, None)

try:
    from hypothesis import HealthCheck, settings
except ImportError:  # an engine's own environment: none of its tests needs it
    pass
else:
    # The same examples in every run, however long a busy machine takes to draw and to try them.
    # New ones are looked for by `pytest --hypothesis-profile default`.
    settings.register_profile(
        "repeatable",
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("repeatable")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Keep what models learn and say from depending on the number of cores.

    Sums are cut at other places for another number of threads; and on a busy machine threads
    that wait for each other cost more than they save.
    """
    if "torch" in sys.modules:  # imported by a test module, or by no test
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def seccomp(monkeypatch: pytest.MonkeyPatch) -> object:
    """The shared interpreter of a machine where no tier above seccomp works."""
    from functools import partial

    from mathenv import env
    from mathenv.errors import InfraError
    from mathenv.interpreter import Limits, LocalInterpreter

    monkeypatch.setattr(env, "_shared", {})
    monkeypatch.setitem(env.INTERPRETERS, "local", partial(LocalInterpreter, tier="seccomp"))
    try:
        return env.shared_interpreter("local", Limits())
    except InfraError as error:
        pytest.skip(f"the seccomp tier does not work here: {error}")
