"""Trajectories on disk: exact, resumable, safe against a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathenv.errors import ConfigError, DataError
from mathenv.store import TrajectoryStore, from_json, read_trajectories, to_json, write_atomic
from mathenv.types import (
    ExecutionResult,
    ExecutionStatus,
    FinishReason,
    Grade,
    GradeStatus,
    Problem,
    Span,
    SpanKind,
    StopReason,
    TokenRecord,
    Trajectory,
    Turn,
)

# Surrogates: a cell may print a lone one, and the file must still be written and read back.
text = st.text(st.characters(exclude_categories=[]), max_size=12).filter(
    lambda s: s == json.loads(json.dumps(s))
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | numbers | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)


def tuples(values: st.SearchStrategy, size: int = 4) -> st.SearchStrategy:
    return st.lists(values, max_size=size).map(tuple)


problems = st.builds(
    Problem, text, text, text, text, text, text, text, tuples(text),
    st.dictionaries(text, json_values, max_size=2),
)  # fmt: skip
executions = st.builds(
    ExecutionResult, st.sampled_from(ExecutionStatus), text, st.booleans(), st.booleans(), numbers
)
turns = st.builds(
    Turn, text, st.none() | text, text, st.none() | executions, st.sampled_from(FinishReason)
)
spans = st.builds(Span, st.sampled_from(SpanKind), st.integers(0), st.integers(0), st.integers(0))
tokens = st.builds(
    TokenRecord, tuples(st.integers(0, 2**31), 8), tuples(spans), tuples(numbers, 8), text
)
grades = st.builds(Grade, st.booleans(), st.sampled_from(GradeStatus), st.none() | text, text, text)
trajectories = st.builds(
    Trajectory, problems, text, st.integers(0), st.integers(0, 2**63), tuples(turns),
    st.sampled_from(StopReason), grades, st.none() | tokens, st.none() | text, st.integers(0),
)  # fmt: skip


def example(sample: int = 0, size: int = 3) -> Trajectory:
    turn = Turn(
        "```python\nprint(6 * 7)\n```",
        "print(6 * 7)",
        "42\n",
        ExecutionResult(ExecutionStatus.OK, "42\n", seconds=0.01),
    )
    record = TokenRecord(
        tuple(range(size)),
        (Span(SpanKind.PROMPT, 0, 0, 1), Span(SpanKind.SAMPLED, 0, 1, size)),
        tuple(-0.5 for _ in range(size - 1)),
        "tokenizer",
    )
    return Trajectory(
        problem=Problem("p1", "What is 6*7?", "42", "words", "train", "1", metadata={"n": [1]}),
        agent="scripted",
        sample=sample,
        seed=7,
        turns=(turn, Turn("\\boxed{42}")),
        stop_reason=StopReason.ANSWERED,
        grade=Grade(True, GradeStatus.CORRECT, "42", "number"),
        tokens=record,
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trajectories)
def test_round_trip_is_exact(trajectory):
    row = json.loads(json.dumps(to_json(trajectory)))
    again = from_json(row)
    assert again == trajectory
    assert to_json(again) == row  # also `seconds`, which equality leaves out
    assert type(again.stop_reason) is StopReason


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(trajectories, max_size=4, unique_by=lambda t: t.key))
def test_file_round_trip_is_exact(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("store")
    with TrajectoryStore(path) as store:
        for row in rows:
            store.append(row)
        assert list(store) == rows
    assert list(read_trajectories(path)) == rows
    with TrajectoryStore(path) as store:
        assert store.keys() == tuple(row.key for row in rows)


def test_the_row_is_readable_by_others():
    row = to_json(example())
    assert row["schema"] == 1
    assert row["key"] == "p1#scripted#0"
    assert row["problem"]["answer"] == "42"
    assert row["turns"][0]["execution"]["status"] == "ok"
    assert row["tokens"]["spans"][1] == {"kind": "sampled", "turn": 0, "start": 1, "end": 3}
    assert row["tokens"]["logprobs"] == [-0.5, -0.5]


def test_resume_keeps_keys_and_refuses_duplicates(tmp_path):
    file = tmp_path / "deep" / "rollouts.jsonl"
    with TrajectoryStore(file) as store:
        assert len(store) == 0
        store.append(example(0))
        store.append(example(1))
        with pytest.raises(DataError, match="already holds 'p1#scripted#1'"):
            store.append(example(1))
    with TrajectoryStore(file, fsync=True) as store:
        assert store.keys() == ("p1#scripted#0", "p1#scripted#1")
        assert example(1).key in store
        assert example(2).key not in store
        with pytest.raises(DataError, match="already holds"):
            store.append(example(0))
        store.append(example(2))
        assert [t.sample for t in store] == [0, 1, 2]


def test_append_is_on_file_at_once_and_readable_beside_the_writer(tmp_path):
    with TrajectoryStore(tmp_path) as store:
        store.append(example())
        assert list(read_trajectories(store.path)) == [example()]


def test_closed_store(tmp_path):
    store = TrajectoryStore(tmp_path)
    store.close()
    store.close()
    with pytest.raises(ConfigError, match="closed"):
        store.append(example())


def test_every_torn_last_line_is_cut_off(tmp_path):
    """Whatever prefix of the last line a kill left, the lines before it survive."""
    with TrajectoryStore(tmp_path) as store:
        store.append(example(0))
        first = store.path.read_bytes()
        store.append(example(1))
        whole = store.path.read_bytes()
        file = store.path
    for cut in range(len(first) + 1, len(whole) - 1):
        file.write_bytes(whole[:cut])
        assert list(read_trajectories(file)) == [example(0)]
        with TrajectoryStore(file) as store:
            assert store.keys() == (example(0).key,)
            assert file.read_bytes() == first
            if cut % 100 == 0:
                store.append(example(1))
                assert file.read_bytes() == whole


def test_a_last_line_that_only_lacks_its_newline_is_kept(tmp_path):
    file = tmp_path / "a.jsonl"
    with TrajectoryStore(file) as store:
        store.append(example(0))
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    with TrajectoryStore(file) as store:
        store.append(example(1))
    assert [t.sample for t in read_trajectories(file)] == [0, 1]


def test_a_long_torn_line_is_found(tmp_path):
    """Longer than the blocks in which the end of the file is searched."""
    with TrajectoryStore(tmp_path) as store:
        store.append(example(0, size=100_000))
        store.append(example(1, size=100_000))
    store.path.write_bytes(store.path.read_bytes()[:-100])
    with TrajectoryStore(tmp_path) as again:
        assert again.keys() == (example(0).key,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{not json\n", r"a\.jsonl:2: Expecting property name"),
        (b"\n", r"a\.jsonl:2"),
        (b"\x00\xff\n", r"a\.jsonl:2"),
        (b"[]\n", r"a\.jsonl:2: expected an object, got list"),
        (b'{"schema": 99}\n', r"a\.jsonl:2: schema 99 is not 1"),
        (b'{"messages": []}\n', r"a\.jsonl:2: schema None is not 1"),
    ],
)
def test_a_bad_middle_line_is_named(tmp_path, line, message):
    file = tmp_path / "a.jsonl"
    with TrajectoryStore(file) as store:
        store.append(example(0))
    before = file.read_bytes() + line + json.dumps(to_json(example(1))).encode() + b"\n"
    file.write_bytes(before)
    with pytest.raises(DataError, match=message):
        TrajectoryStore(file)
    with pytest.raises(DataError, match=message):
        list(read_trajectories(file))
    assert file.read_bytes() == before  # nothing is repaired that we do not understand
    with pytest.raises(DataError, match=message):
        TrajectoryStore(file)  # the failed attempt has not kept the lock


def test_a_key_twice_in_the_file_is_named(tmp_path):
    file = tmp_path / "a.jsonl"
    with TrajectoryStore(file) as store:
        store.append(example(0))
    file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(DataError, match=r"a\.jsonl:2: 'p1#scripted#0' stands in line 1"):
        TrajectoryStore(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read: No such file"):
        list(read_trajectories(tmp_path / "none.jsonl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.pop("turns"), "lacks turns"),
        (lambda row: row.update(surprise=1), "unknown fields: surprise"),
        (lambda row: row.update(key="other"), "key is 'other'"),
        (lambda row: row.update(seed="7"), r"trajectory\.seed must be int, got str"),
        (lambda row: row.update(seed=True), r"trajectory\.seed must be int, got bool"),
        (lambda row: row.update(stop_reason="tired"), r"stop_reason is 'tired', expected one of"),
        (lambda row: row.update(stop_reason=[]), r"stop_reason is \[\], expected one of"),
        (lambda row: row.update(turns={}), r"turns must be list, got dict"),
        (lambda row: row["turns"].append(3), r"turns\[2\] must be dict, got int"),
        (lambda row: row["turns"][0].update(code=3), r"turns\[0\]\.code must be str"),
        (lambda row: row["tokens"]["ids"].append(1.5), r"tokens\.ids\[3\] must be int"),
        (lambda row: row["tokens"]["ids"].append(None), r"tokens\.ids\[3\] must be int"),
        (lambda row: row["tokens"]["logprobs"].append("x"), r"logprobs\[2\] must be float"),
        (lambda row: row["problem"].update(metadata=[]), r"metadata must be dict, got list"),
        (lambda row: row["grade"].update(correct=1), r"grade\.correct must be bool"),
    ],
)
def test_a_wrong_row_names_its_field(change, message):
    row = to_json(example())
    change(row)
    with pytest.raises(DataError, match=message):
        from_json(row)


def test_integers_count_as_logprobs_and_missing_defaults_are_filled():
    row = to_json(example())
    row["tokens"]["logprobs"] = [0, -1]
    del row["branch_turn"], row["parent"], row["key"]
    again = from_json(row)
    assert again.tokens is not None
    assert again.tokens.logprobs == (0.0, -1.0)
    assert all(type(value) is float for value in again.tokens.logprobs)
    assert (again.branch_turn, again.parent) == (0, None)


@pytest.mark.parametrize("metadata", [{"a": (1, 2)}, {1: "a"}, {"a": {3}}, {"a": float("nan")}])
def test_metadata_that_json_would_change_is_refused(tmp_path, metadata):
    trajectory = replace(example(), problem=replace(example().problem, metadata=metadata))
    with TrajectoryStore(tmp_path) as store:
        with pytest.raises(DataError, match="'p1'"):
            store.append(trajectory)
        assert len(store) == 0
        assert store.path.read_bytes() == b""


def test_a_nan_log_probability_is_refused(tmp_path):
    record = TokenRecord((1,), (Span(SpanKind.SAMPLED, 0, 0, 1),), (float("nan"),))
    with TrajectoryStore(tmp_path) as store:
        with pytest.raises(DataError, match="cannot be stored"):
            store.append(replace(example(), tokens=record))
        assert store.path.read_bytes() == b""


def test_two_stores_cannot_hold_one_file(tmp_path):
    with TrajectoryStore(tmp_path):
        with pytest.raises(ConfigError, match="another collector"):
            TrajectoryStore(tmp_path)
    TrajectoryStore(tmp_path).close()


def test_another_process_cannot_hold_the_file_either(tmp_path):
    code = "import sys; from mathenv.store import TrajectoryStore; TrajectoryStore(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with TrajectoryStore(tmp_path):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert "ConfigError" in done.stderr
        assert "another collector" in done.stderr
    assert subprocess.run(command, timeout=60).returncode == 0


_WRITER = """
import sys
from dataclasses import replace
from mathenv.store import TrajectoryStore, from_json
import json
base = from_json(json.loads(sys.stdin.readline()))
with TrajectoryStore(sys.argv[1]) as store:
    n = len(store)
    print("ready", flush=True)
    while True:
        store.append(replace(base, sample=n))
        n += 1
"""


def _killed_writers(folder, times: int) -> Iterator[int]:
    """Let a process append until it is killed, again and again; yield what it left."""
    line = json.dumps(to_json(example(0, size=20_000))) + "\n"
    for round_ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(line)
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        file = folder / "trajectories.jsonl"
        written = file.stat().st_size
        while file.stat().st_size < written + 2 * len(line):  # one whole line at least
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(0.013 * round_)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stdin.close()
        process.stdout.close()
        yield len(list(read_trajectories(folder)))


def test_sigkill_in_the_middle_of_appending(tmp_path):
    """Each start goes on where the killed one stopped: nothing lost, nothing twice."""
    counts = list(_killed_writers(tmp_path, times=4))
    assert counts == sorted(set(counts)), "every round added trajectories and lost none"
    with TrajectoryStore(tmp_path) as store:
        assert len(store) == counts[-1]
        assert [t.sample for t in store] == list(range(counts[-1]))
        assert store.path.read_bytes().endswith(b"\n")


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path):
    """A file-size limit in a child process stands in for the full disk."""
    code = """
import json, resource, signal, sys
from dataclasses import replace
from mathenv.store import TrajectoryStore, from_json
base = from_json(json.loads(sys.stdin.readline()))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with TrajectoryStore(sys.argv[1]) as store:
    store.append(base)
    size = store.path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))
    try:
        store.append(replace(base, sample=1))
    except OSError as error:
        print(store.path.stat().st_size == size, len(store))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        input=json.dumps(to_json(example())) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "True 1\n", done.stderr
    assert list(read_trajectories(tmp_path)) == [example()]


def test_write_atomic_replaces_text_and_bytes(tmp_path):
    target = tmp_path / "sub" / "report.md"
    write_atomic(target, "ä\n")
    assert target.read_bytes() == "ä\n".encode()
    write_atomic(target, b"\x00\x01")
    assert target.read_bytes() == b"\x00\x01"
    assert [path.name for path in target.parent.iterdir()] == ["report.md"]


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path):
    target = tmp_path / "report.md"
    write_atomic(target, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(target, "\ud800")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
