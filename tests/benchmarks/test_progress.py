from io import StringIO

from rich.console import Console

from benchmarks.progress import ConsoleReporter


def _reporter(terminal: bool, seconds: float = 0.0) -> tuple[ConsoleReporter, StringIO]:
    stream = StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100)
    return ConsoleReporter(console, plain_seconds=seconds), stream


def test_plain_lines_hold_no_control_characters() -> None:
    reporter, stream = _reporter(terminal=False)
    with reporter.stage("sampling [x]", 3, "episodes") as advance:
        for done in (1, 2, 3):
            advance(done, None, {"loss": 0.5})
    reporter.say("[done]")
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == [
        f"sampling [x]: {done}/3" for done in (1, 2, 3)
    ]
    assert "episodes/s" in lines[0]
    assert "left" in lines[0]
    assert "took" in lines[2]
    assert "loss 0.5" in lines[2]
    assert lines[3] == "[done]"
    assert all(char >= " " or char == "\n" for char in stream.getvalue())


def test_plain_lines_are_rare_and_the_last_state_is_shown() -> None:
    reporter, stream = _reporter(terminal=False, seconds=3600)
    with reporter.stage("sampling", None, "steps") as advance:
        for done in range(1, 1001):
            advance(done, 1000)
    assert stream.getvalue().splitlines()[0].startswith("sampling: 1000/1000")
    assert len(stream.getvalue().splitlines()) == 1


def test_a_stage_without_work_says_nothing() -> None:
    reporter, stream = _reporter(terminal=False)
    with reporter.stage("sampling", 3, "episodes"):
        pass
    assert stream.getvalue() == ""


def test_terminals_get_a_bar() -> None:
    reporter, stream = _reporter(terminal=True)
    with reporter.stage("sampling", 3, "episodes") as advance:
        advance(3)
    assert "━" in stream.getvalue()
    assert "3/3" in stream.getvalue()
