"""The weakest tier: cells run in it, seccomp still holds, and whoever gets it is told."""

import pytest

from mathenv.errors import InfraError
from mathenv.interpreter import Limits, LocalInterpreter
from mathenv.types import ExecutionStatus


def test_the_tier_that_hides_no_files_says_so_and_runs_cells(recwarn):
    try:
        interpreter = LocalInterpreter(Limits(cell_seconds=60.0), tier="rlimits", zygotes=1)
    except InfraError as error:  # as root with a Python that only root can read
        pytest.skip(f"tier rlimits does not work here: {error}")
    with interpreter, interpreter.session() as session:
        warning = recwarn.pop(RuntimeWarning)
        assert "model-written code can read this user's files" in str(warning.message)
        assert warning.filename == __file__
        assert interpreter.description["tier"] == "rlimits"
        assert interpreter.description["landlock"] == "0"
        assert session.run("6 * 7").output == "42"
        # What limits alone would let through, and why this tier needs Linux too.
        for code in ("import socket; socket.socket()", "import os; os.fork()"):
            result = session.run(code)
            assert result.status is ExecutionStatus.ERROR
            assert "PermissionError" in result.output
        assert session.run("open('/etc/passwd').read()[:5]").output == "'root:'"
