import json
from dataclasses import replace

import pytest

from benchmarks.cli import main
from mathenv.store import TrajectoryStore, read_trajectories
from mathenv.types import Grade, GradeStatus, Problem, StopReason, Trajectory, Turn


def _run(*words):
    with pytest.raises(SystemExit) as end:
        main(["grade", *map(str, words)])
    return end.value.code


def _rows(file, *rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _trajectory(sample, answer, grade):
    problem = Problem(id="p", question="?", answer="50")
    turns = (Turn(f"It is \\boxed{{{answer}}}."),)
    return Trajectory(problem, "agent", sample, 0, turns, StopReason.ANSWERED, grade)


RIGHT = Grade(True, GradeStatus.CORRECT, "50", "string")
WRONG = Grade(False, GradeStatus.INCORRECT, "5000", "number")


def test_rows_are_graded_again_and_compared(tmp_path, capsys):
    file = _rows(
        tmp_path / "rows.jsonl",
        {"id": "a", "gold": "1,875", "final_pred": "1875", "score": 0},
        {"id": "b", "gold": "5", "response": "It is \\boxed{5}.", "score": 1},
        {"id": "c", "gold": "5", "answer": "6"},
        {"id": "d", "gold": "", "answer": "6", "score": 0},
        {"id": "e", "gold": "5", "response": "nothing", "score": None},
    )
    assert _run(file, "--out", tmp_path / "new.jsonl") == 0
    out = capsys.readouterr().out
    assert "correct: 2 of 4 (50.00%); excluded: 1" in out
    assert "same as stored: 1 of 2 (50.00%)" in out
    assert "a: '1,875' / '1875': wrong -> correct (number)" in out
    assert "policy: strict" in out
    new = [json.loads(line) for line in (tmp_path / "new.jsonl").read_text().splitlines()]
    assert [row["status"] for row in new] == [
        "correct",
        "correct",
        "incorrect",
        "gold_error",
        "no_answer",
    ]


def test_one_pair_and_its_trail(capsys):
    assert _run("--gold", "x = \\frac12", "--answer", "0.5", "--explain") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("*")] == [
        ["*", "statements"],
        ["*", "number"],
    ]
    assert lines[-1] == "correct, decided by number"
    assert _run("--gold", "5", "--answer", "So \\boxed{6}") == 0
    assert capsys.readouterr().out == "incorrect, decided by number\n"


def test_rows_of_a_file_are_explained(tmp_path, capsys):
    file = _rows(tmp_path / "rows.jsonl", {"id": "a", "gold": "5", "answer": "6", "score": 0})
    assert _run(file, "--explain") == 0
    out = capsys.readouterr().out
    assert "a\n  string" in out
    assert "* number" in out
    assert "same as stored: 1 of 1" in out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--gold", "5"),
        ("--answer", "5"),
        ("rows.jsonl", "--gold", "5", "--answer", "5"),
        ("--gold", "5", "--answer", "5", "--out", "new.jsonl"),
        ("rows.jsonl", "--explain", "--agreement"),
    ],
)
def test_a_pair_and_a_file_exclude_each_other(words, capsys):
    assert _run(*words) == 2
    assert "--" in capsys.readouterr().err


def test_trajectories_stay_trajectories(tmp_path, capsys):
    with TrajectoryStore(tmp_path / "old.jsonl") as store:
        store.append(_trajectory(0, "50", RIGHT))
        store.append(_trajectory(1, "5000", WRONG))
    new = tmp_path / "new.jsonl"
    assert _run(tmp_path / "old.jsonl", "--policy", "paper", "--out", new) == 0
    assert "same as stored: 1 of 2" in capsys.readouterr().out
    old, regraded = read_trajectories(tmp_path / "old.jsonl"), read_trajectories(new)
    for before, after in zip(old, regraded, strict=True):
        assert after.grade.correct
        assert replace(after, grade=before.grade) == before


def test_agreement_and_self_match(tmp_path, capsys):
    cases = _rows(
        tmp_path / "cases.jsonl",
        {"id": "x", "gold": "1200_7", "prediction": "1200_8", "expected_equal": False},
        {"id": "y", "gold": "2.74", "prediction": "2,74", "expected_equal": True},
    )
    assert _run(cases, "--agreement") == 0
    out = capsys.readouterr().out
    assert "boxed_or_bare" in out
    assert "y '2.74' / '2,74': expected True, incorrect" in out
    problems = _rows(tmp_path / "p.jsonl", {"answer": "5"}, {"answer": "5"}, {"answer": " "})
    assert _run(problems, "--self-match") == 0
    out = capsys.readouterr().out
    assert "2 distinct answers; 1 do not grade as themselves" in out
    assert "0 accepted with one digit changed" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "not valid JSON"), ("[1]", "expected a JSON object"), ('{"gold": "5"}', "needs `gold`")],
)
def test_a_bad_row_is_named_and_nothing_is_written(line, message, tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"gold": "5", "answer": "5"}\n' + line + "\n")
    out = tmp_path / "out.jsonl"
    assert _run(file, "--out", out) == 2
    error = capsys.readouterr().err
    assert "rows.jsonl:2" in error
    assert message in error
    assert sorted(tmp_path.iterdir()) == [file]


def test_a_missing_file_and_a_wrong_policy(tmp_path, capsys):
    assert _run(tmp_path / "none.jsonl") == 2
    assert "cannot be read" in capsys.readouterr().err
    file = _rows(tmp_path / "rows.jsonl", {"gold": "5", "answer": "5"})
    assert _run(file, "--policy", "kind") == 2
    assert "use strict, paper, math_verify" in capsys.readouterr().err


def test_a_folder_that_collect_wrote(tmp_path, capsys):
    with TrajectoryStore(tmp_path / "run" / "one") as store:
        store.append(_trajectory(0, "50", RIGHT))
        store.append(_trajectory(1, "5000", WRONG))
    assert _run(tmp_path / "run" / "one") == 0
    assert "same as stored: 2 of 2" in capsys.readouterr().out
    assert _run(tmp_path / "run") == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "a folder without trajectories.jsonl; give one of" in error
    file = tmp_path / "run" / "one" / "trajectories.jsonl"
    file.write_text(file.read_text() + '{"turns": []}\n')
    assert _run(tmp_path / "run" / "one") == 2
    assert "trajectories.jsonl:3" in capsys.readouterr().err


def test_tables_and_byte_order_marks(tmp_path, capsys):
    file = tmp_path / "rows.csv"
    file.write_text("\ufeffid,gold,answer,correct\na,1875,1875,True\nb,5,6,0\nc,5,5,\n")
    assert _run(file) == 0
    out = capsys.readouterr().out
    assert "correct: 2 of 3" in out
    assert "same as stored: 2 of 2" in out
    file.write_text("gold,answer,correct\n5,5,maybe\n")
    assert _run(file) == 2
    error = capsys.readouterr().err
    assert "rows.csv:2" in error
    assert "'maybe'" in error
    problems = tmp_path / "p.csv"
    problems.write_text("problem,solution\nq,It is \\boxed{7}.\n")
    assert _run(problems, "--self-match") == 0
    assert "1 distinct answers; 0 do not grade" in capsys.readouterr().out
