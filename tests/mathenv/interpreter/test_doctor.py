"""The doctor finds a well sandbox well, and names what is wrong with a sick one."""

import dataclasses

import pytest

from benchmarks.commands.doctor import Doctor
from mathenv.errors import InfraError
from mathenv.interpreter.base import Limits
from mathenv.interpreter.doctor import CANARIES, examine
from mathenv.interpreter.local import TIERS
from mathenv.types import ExecutionStatus


def test_a_well_interpreter(make_interpreter):
    # One canary runs into the limit; the others must end before it on a busy machine too.
    with make_interpreter(Limits(cell_seconds=12.0, memory_bytes=512 << 20)) as interpreter:
        report = examine(interpreter)
        assert report.ok, report.failures()
        assert len(report.checks) == len(CANARIES) + 1
        assert report.description == interpreter.description


class Changed:
    """The real interpreter with one kind of answer changed."""

    def __init__(self, interpreter, change):
        self.interpreter, self.change = interpreter, change
        self.description = interpreter.description

    def session(self, *, seed=0):
        return ChangedSession(self.interpreter.session(seed=seed), self.change)

    def close(self):
        pass


class ChangedSession:
    def __init__(self, session, change):
        self.session, self.change = session, change

    def run(self, code):
        return self.change(code, self.session.run(code))

    def fork(self):
        return ChangedSession(self.session.fork(), self.change)

    def close(self):
        self.session.close()


def test_every_canary_can_die(hasty):
    def wrong(code, result):
        return dataclasses.replace(result, status=ExecutionStatus.OK, output="root")

    report = examine(Changed(hasty, wrong))
    assert [check.name for check in report.checks if check.ok] == []
    assert "memory limit: ok: root; files: ok: root" in report.failures()


def test_an_interpreter_that_cannot_start_sessions(interpreter):
    class Dead:
        description = interpreter.description

        def session(self, *, seed=0):
            raise InfraError("no zygote")

        def close(self):
            pass

    report = examine(Dead())
    assert not report.ok
    assert report.failures() == "session: no zygote"


def test_the_command(capsys, monkeypatch):
    Doctor().run()
    shown = capsys.readouterr().out
    assert "all is well" in shown
    assert all(f"  {tier:12} " in shown for tier in TIERS)  # each works, or why it does not
    assert "works" in shown
    canary = ("arithmetic", "1 + 1", lambda result: result.output == "3")
    monkeypatch.setattr("mathenv.interpreter.doctor.CANARIES", (canary,))
    monkeypatch.setattr("benchmarks.commands.doctor._print_tiers", lambda console: None)
    with pytest.raises(SystemExit) as end:
        Doctor().run()
    assert end.value.code == 1
    shown = capsys.readouterr().out
    assert "SICK  arithmetic" in shown
    assert "sick: arithmetic" in shown
