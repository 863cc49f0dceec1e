"""Interpreters shared by the tests of this folder."""

from collections.abc import Iterator

import pytest

from mathenv.interpreter import Limits, LocalInterpreter


@pytest.fixture(scope="package")
def interpreter() -> Iterator[LocalInterpreter]:
    with LocalInterpreter(Limits(cell_seconds=1.0, memory_bytes=512 << 20)) as interpreter:
        if interpreter.description["tier"] == "rlimits":
            pytest.skip("no sandbox that hides files works on this machine")
        yield interpreter
