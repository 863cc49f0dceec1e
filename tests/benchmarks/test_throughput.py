"""Speed is measured, not asserted: what is tested is that the figures mean what they say."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks.studies.throughput import interpreter, peers
from benchmarks.studies.throughput.peers import SYMPY, TRIVIAL, Snippet, Subject
from benchmarks.studies.throughput.report import (
    CpuClock,
    Goal,
    Measurement,
    Report,
    descendants,
    pss_bytes,
    time_each,
)
from mathenv.errors import ConfigError, InfraError
from mathenv.interpreter import LocalInterpreter

# ------------------------------------------------------------------- figures


def test_median_and_tail_of_times_and_rates() -> None:
    values = tuple(float(v) for v in range(1, 101))
    times, rates = (Measurement("q", "s", unit, values) for unit in ("ms", "/s"))
    assert times.median == rates.median == 50.5
    assert times.p90 == pytest.approx(90.1)
    assert rates.p90 == pytest.approx(10.9)  # the bad tail of a rate is below
    assert Measurement("q", "s", "ms", (3.0,)).p90 == 3.0


def test_worse_is_above_one_for_times_and_rates() -> None:
    fast, slow = (Measurement("q", "s", "ms", (v,)) for v in (2.0, 10.0))
    assert slow.worse_than(fast) == 5.0
    many, few = (Measurement("q", "s", "/s", (v,)) for v in (50.0, 10.0))
    assert few.worse_than(many) == 5.0


@pytest.mark.parametrize(("value", "met"), [(11.9, True), (12.0, True), (12.1, False)])
def test_a_goal_is_met_up_to_its_limit(value: float, met: bool) -> None:
    goal = Goal("q", frozenset({"ours"}), 12.0)
    mine = Measurement("q", "ours", "ms", (value,))
    assert goal.verdict(mine, [mine]) == ("<= 12 ms", met)
    assert goal.verdict(Measurement("other", "ours", "ms", (1.0,)), []) is None
    assert goal.verdict(Measurement("q", "peer", "ms", (1.0,)), []) is None


@pytest.mark.parametrize(("rate", "met"), [(200.0, True), (199.0, False)])
def test_a_goal_against_a_peer(rate: float, met: bool) -> None:
    goal = Goal("q", frozenset({"ours"}), 20.0, "peer")
    mine, peer = Measurement("q", "ours", "/s", (rate,)), Measurement("q", "peer", "/s", (10.0,))
    assert goal.verdict(mine, [mine, peer]) == (f">= 20x: {rate / 10:.3g}x", met)
    assert goal.verdict(mine, [mine]) is None  # the peer was not there: no claim


def test_report_pools_rounds_and_writes_everything(tmp_path: Path) -> None:
    report = Report(goals=[Goal("start", frozenset({"ours"}), 2.0)], reference="ours")
    report.add("start", "ours", "ms", [1.0, 3.0], 0.5)
    report.add("rate", "ours", "/s", [10.0], None)
    report.add("start", "ours", "ms", [5.0, 7.0], 1.5)
    report.add("start", "peer", "ms", [8.0], None)
    rows = report.measurements
    assert [(r.quantity, r.subject) for r in rows] == [
        ("start", "ours"),
        ("start", "peer"),
        ("rate", "ours"),
    ]
    assert (rows[0].values, rows[0].median, rows[0].cpu_ms) == ((1.0, 3.0, 5.0, 7.0), 4.0, 1.0)
    assert [table.title for table in report.tables()] == ["start", "rate"]
    report.write(tmp_path / "new" / "r.json")
    document = json.loads((tmp_path / "new" / "r.json").read_text())
    assert document["measurements"][0]["goals"] == [
        {"goal": "<= 2 ms", "against": None, "met": False}
    ]
    assert document["measurements"][0]["values"] == [1.0, 3.0, 5.0, 7.0]
    assert document["environment"]["python"]
    assert len(document["load_before"]) == len(document["load_after"]) == 3


# ----------------------------------------------------------------- measuring

BURN = "import time\nwhile time.process_time() < {}: pass"


def test_cpu_time_of_live_and_ended_processes_is_seen() -> None:
    clock = CpuClock()
    subprocess.run([sys.executable, "-c", BURN.format(0.3)], check=True)
    assert clock.seconds() >= 0.29
    code = BURN.format(0.3) + "\nprint(1, flush=True)\ninput()"
    clock = CpuClock()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in descendants()
        assert clock.seconds() >= 0.29
        child.communicate(b"\n")
    clock = CpuClock()
    time.sleep(0.3)
    assert clock.seconds() < 0.3  # waiting is no CPU time


def test_memory_of_processes_is_seen() -> None:
    code = "x = b'x' * 30_000_000\nprint(1, flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        size = pss_bytes([child.pid])
        child.communicate(b"\n")
    assert size is not None
    assert 30e6 < size < 60e6
    assert pss_bytes([child.pid]) == 0  # it has ended


def test_each_action_is_timed() -> None:
    walls, cpu_ms = time_each([lambda: time.sleep(0.02), lambda: None])
    assert len(walls) == 2
    assert walls[0] >= 20
    assert cpu_ms >= 0


# --------------------------------------------------------------------- peers


def _subjects() -> list[Subject]:
    found = [peers.fresh_process(), peers.process_pool()]
    try:
        return [*found, peers.jupyter()]
    except ConfigError:
        return found


@pytest.mark.parametrize("name", ["python -c", "process pool", peers.JUPYTER])
def test_peers_do_the_work_and_wrong_output_is_an_error(name: str) -> None:
    subject = next((s for s in _subjects() if s.name == name), None)
    if subject is None:
        pytest.skip("jupyter_client and ipykernel are not installed")
    assert subject.batch(TRIVIAL, 2, 1) == 2
    with pytest.raises(InfraError, match="not '3'"):
        subject.batch(Snippet("1 + 1", "print(1 + 1)", "3"), 1, 1)


def test_the_sandbox_is_checked_too() -> None:
    with LocalInterpreter() as local:
        subject = peers.sandbox("ours", local, below=True)
        assert subject.batch(SYMPY, 2, 2) == 2
        with pytest.raises(InfraError, match="not '3'"):
            subject.batch(Snippet("1 + 1", "", "3"), 1, 1)
        with pytest.raises(InfraError, match="ended with error"):
            subject.batch(Snippet("1 / 0", "", ""), 1, 1)


# ------------------------------------------------------------------- the run


@pytest.mark.timeout(600)  # its work takes seconds; a busy machine may take minutes
def test_the_command_measures_every_quantity_of_every_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> Subject:
        raise ConfigError("no jupyter_client: pip install it")

    monkeypatch.setattr(peers, "jupyter", missing)  # its own test runs it where it is installed
    file = tmp_path / "speed.json"
    with pytest.raises(SystemExit) as stop:
        cli.main(["throughput", "interpreter", "--quick", "--json", str(file)])
    shown = capsys.readouterr()
    assert stop.value.code == 0, shown.err
    document = json.loads(file.read_text())
    subjects = {row["subject"] for row in document["measurements"]}
    tiers = subjects & set(interpreter.TIERS)
    assert tiers
    assert {"python -c", "process pool"} < subjects
    found = {(row["quantity"], row["subject"]) for row in document["measurements"]}
    forks = [interpreter.FORK.format(size) for size in interpreter.FORK_MEGABYTES]
    for tier in tiers:
        timed = [interpreter.START, interpreter.SESSION, interpreter.FIRST_SYMPY, interpreter.CELL]
        for quantity in [*timed, *forks, *interpreter.ONE_SHOT.values()]:
            assert (quantity, tier) in found
        assert document["interpreters"][tier]["tier"] == tier
    assert all(min(row["values"]) > 0 for row in document["measurements"] if row["unit"] != "MB")
    assert "jupyter_client" in shown.out  # a peer that is left out is named
    assert "load average" in shown.out
    assert "<= 12 ms" in shown.out


def test_no_tier_at_all_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "TIERS", ())
    with pytest.raises(InfraError):
        interpreter.measure(quick=True, docker=None, advance=lambda *_: None)
