"""Out and back: what other trainers read, with the real `datasets`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agents.oracle import OracleAgent
from agents.tiny import TinyConfig, make_tiny
from benchmarks import cli
from learners import make_learner
from learners.interchange import (
    kto_row,
    openai_row,
    to_messages,
    trajectories_from,
    trl_row,
)
from mathenv.errors import DataError, TrainingError
from mathenv.protocol import output_block
from mathenv.store import TrajectoryStore, from_json, read_trajectories
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

QUESTION = "What is 6 * 7? `\u2028` and \\boxed{}"
TOKENS = TokenRecord(
    (1, 2, 3, 4, 5, 6),
    (
        Span(SpanKind.PROMPT, 0, 0, 2),
        Span(SpanKind.SAMPLED, 0, 2, 4),
        Span(SpanKind.OBSERVATION, 0, 4, 5),
        Span(SpanKind.SAMPLED, 1, 5, 6),
    ),
    (-0.5, -0.25, -1.0),
    "fingerprint",
)


def trajectory(*, right: bool = True, sample: int = 0, **changes) -> Trajectory:
    answer = "42" if right else "41"
    output = "42\n```output\nforged\n```"  # an output may hold what looks like our frame
    made = Trajectory(
        Problem("p/1", QUESTION, "42", "own", "test", solution=("6 * 7",), metadata={"a": [1]}),
        agent="tester",
        sample=sample,
        seed=7,
        turns=(
            Turn(
                "Let me see.\n```python\n6 * 7\n```",
                "6 * 7",
                output,
                ExecutionResult(ExecutionStatus.OK, output),
            ),
            Turn(rf"It is \boxed{{{answer}}}.", finish=FinishReason.STOP),
        ),
        stop_reason=StopReason.ANSWERED,
        grade=Grade(
            right, GradeStatus.CORRECT if right else GradeStatus.INCORRECT, answer, "string"
        ),
        tokens=TOKENS,
    )
    return replace(made, **changes)


def through_json(row):
    return json.loads(json.dumps(row))


def test_messages_are_the_conversation_as_the_model_saw_it() -> None:
    messages = to_messages(trajectory())
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    assert messages[0]["content"] == QUESTION
    assert messages[2]["content"] == output_block(trajectory().turns[0].observation)


def test_openai_masks_are_exactly_what_the_model_wrote() -> None:
    row = openai_row(trajectory())
    assert row["mask"] == [0, 1, 0, 1]
    assert [m.get("weight") for m in row["messages"]] == [None, 1, None, 1]
    assert row["input_ids"] == [1, 2, 3, 4, 5, 6]
    assert row["assistant_masks"] == [0, 0, 1, 1, 0, 1]
    assert "input_ids" not in openai_row(trajectory(tokens=None))


@pytest.mark.parametrize(
    "made",
    [
        trajectory(),
        trajectory(right=False, tokens=None),
        trajectory(turns=(), stop_reason=StopReason.TOKEN_LIMIT, tokens=None),
        trajectory(parent="p/1#tester#9", branch_turn=1),
        trajectory(turns=(Turn("\ud800 alone", None),), stop_reason=StopReason.NO_ACTION),
    ],
    ids=["tokens", "wrong", "empty", "branch", "surrogate"],
)
def test_conversations_come_back_as_they_were(made: Trajectory) -> None:
    assert list(trajectories_from([through_json(openai_row(made))])) == [made]
    assert list(trajectories_from([through_json(kto_row(made))])) == [made]


def test_the_members_of_pairs_come_back_as_they_were() -> None:
    pair = (trajectory(), trajectory(right=False, sample=1))
    row = through_json(trl_row(pair))
    assert list(trajectories_from([row, row])) == list(pair)  # each once
    assert [m["role"] for m in row["prompt"]] == ["user"]
    assert row["chosen"][-1]["content"] == r"It is \boxed{42}."
    assert row["rejected"][-1]["content"] == r"It is \boxed{41}."
    other = replace(pair[1], problem=Problem("p/2", "another?", "42"))
    with pytest.raises(DataError, match="different questions"):
        trl_row((pair[0], other))


def test_edited_messages_are_refused() -> None:
    row = through_json(openai_row(trajectory()))
    row["messages"][3]["content"] = r"It is \boxed{43}."
    with pytest.raises(DataError, match=r"row 1: the messages were edited"):
        list(trajectories_from([row]))
    del row["mathenv"]
    (graded,) = trajectories_from([{**row, "answer": "43"}])
    assert graded.grade.correct


def test_conversations_of_others_are_graded() -> None:
    rows = [
        {
            "id": "x",
            "answer": 42,
            "messages": [
                {"role": "system", "content": "You are terse."},
                {"role": "user", "content": "6 * 7?"},
                {"role": "assistant", "content": "```python\n6 * y\n```"},
                {"role": "user", "content": "NameError: name 'y' is not defined"},
                {"role": "assistant", "content": r"\boxed{42}"},
            ],
        },
        {
            "answer": "42",
            "prompt": [{"role": "user", "content": "6 * 7?"}],
            "chosen": [{"role": "assistant", "content": r"\boxed{42}"}],
            "rejected": [{"role": "assistant", "content": "No idea."}],
        },
    ]
    with pytest.raises(DataError, match="row 2: an earlier row holds another conversation"):
        list(trajectories_from([rows[0], {**rows[1], "id": "x"}]))
    first, chosen, rejected = trajectories_from(rows)
    assert (first.problem.id, first.problem.answer, first.grade.correct) == ("x", "42", True)
    assert first.turns[0].execution is not None
    assert first.turns[0].execution.status is ExecutionStatus.ERROR
    assert (chosen.grade.correct, rejected.grade.status) == (True, GradeStatus.NO_ANSWER)
    assert rejected.stop_reason is StopReason.NO_ACTION


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": "hello"}, "'messages' must be a list of messages"),
        ({"prompt": [], "completion": []}, "roles must alternate"),
        (
            {
                "prompt": [{"role": "user", "content": "x"}],
                "chosen": [{"role": "assistant", "content": "y"}],
                "answer": "1",
            },
            "'rejected' must be a list",
        ),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "roles must alternate"),
        ({"messages": [{"role": "user", "content": "x"}]}, "neither 'mathenv' nor"),
        ({"messages": [{"role": "user", "content": "x"}], "answer": "1"}, "must end with a turn"),
        ({"messages": [{"role": "user", "content": "x"}], "mathenv": "{"}, "'mathenv' is damaged"),
    ],
)
def test_bad_rows_are_named(row, message) -> None:
    with pytest.raises(DataError, match=f"row 2: .*{message}"):
        list(trajectories_from([openai_row(trajectory()), row]))


@pytest.fixture
def rollouts(tmp_path: Path) -> Path:
    with TrajectoryStore(tmp_path / "rollouts") as store:
        for sample in range(4):
            store.append(trajectory(right=sample % 2 == 0, sample=sample))
        store.append(trajectory(sample=4, tokens=None, turns=(Turn("?"),)))
        infra = Grade(False, GradeStatus.INFRA, None, "", "broken")
        store.append(trajectory(sample=5, stop_reason=StopReason.INFRA, grade=infra))
    return tmp_path / "rollouts"


def command(*words: object) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    assert stop.value.code == 0


@pytest.mark.parametrize(("form", "rows"), [("openai", 5), ("trl", 2), ("kto", 5)])
def test_the_commands_out_and_back(rollouts: Path, tmp_path: Path, form: str, rows: int) -> None:
    file = tmp_path / "out.jsonl"
    command("export", rollouts, "--format", form, "--pairs", 2, "--out", file)
    assert len(file.read_text().splitlines()) == rows
    for _ in range(2):  # a second import adds nothing
        command("import", file, "--out", tmp_path / "back")
    stored = {t.key: t for t in read_trajectories(rollouts)}
    back = list(read_trajectories(tmp_path / "back"))
    assert all(stored[t.key] == t for t in back)
    assert len(back) == (4 if form == "trl" else 5)


def test_a_preference_file_of_others_becomes_pairs_to_train_on(tmp_path: Path) -> None:
    """Imported, given tokens, paired: without ids, with the partner that the file gave."""
    file, trajectories = tmp_path / "theirs.jsonl", tmp_path / "imported"
    rows = [
        {
            "answer": "42",
            "prompt": [{"role": "user", "content": "What is 6 * 7?"}],
            "chosen": [{"role": "assistant", "content": rf"{words} \boxed{{42}}"}],
            "rejected": [{"role": "assistant", "content": rf"{words} \boxed{{41}}"}],
        }
        for words in ("It is", "I say", "Surely")
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command("import", file, "--out", trajectories)
    model = make_tiny(
        tmp_path / "tiny", config=TinyConfig(hidden=32, layers=1, heads=1, intermediate=32)
    )
    words = ("--from", "trajectories", "--model", model, "--keep-wrong")
    command("convert", trajectories / "trajectories.jsonl", *words, "--out", tmp_path / "ready")
    learner = make_learner("mdpo")
    with pytest.raises(TrainingError, match="convert --from trajectories"):
        learner.examples(read_trajectories(trajectories), seed=0)
    _, selection = learner.examples(read_trajectories(tmp_path / "ready"), seed=0)
    assert selection.provenance == [
        {"chosen": f"{row}#imported#0", "rejected": f"{row}#imported#1"} for row in (1, 2, 3)
    ]


def test_datasets_reads_stored_trajectories_and_exports(rollouts: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    def load(file: Path):
        return datasets.load_dataset(
            "json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
        )

    stored = list(read_trajectories(rollouts))
    rows = load(rollouts / "trajectories.jsonl")
    assert rows["key"] == [t.key for t in stored]
    assert [t["ids"] if t else None for t in rows["tokens"]] == [
        list(t.tokens.ids) if t.tokens else None for t in stored
    ]
    assert rows[0]["turns"][0]["execution"]["status"] == "ok"
    for form in ("openai", "trl", "kto"):
        file = tmp_path / f"{form}.jsonl"
        command("export", rollouts, "--format", form, "--out", file)
        read = list(load(file))
        again = [{k: v for k, v in row.items() if v is not None} for row in read]
        assert {t.key for t in trajectories_from(again)} <= {t.key for t in stored}
        if form == "openai":
            assert read[0]["assistant_masks"] == [0, 0, 1, 1, 0, 1]


def test_types_that_the_first_chunk_does_not_show(tmp_path: Path) -> None:
    """`datasets` infers types from the first chunk; here it has neither parents nor tokens."""
    datasets = pytest.importorskip("datasets", minversion="5")
    from benchmarks.adapters.hf_datasets import trajectory_features

    plain = Problem("p/1", QUESTION, "42")
    bare = trajectory(tokens=None, problem=plain, turns=(), stop_reason=StopReason.TOKEN_LIMIT)
    rich = trajectory(sample=999, parent="p/1#tester#9", branch_turn=1)
    with TrajectoryStore(tmp_path) as store:
        for sample in range(100):
            store.append(replace(bare, sample=sample))
        store.append(rich)

    def load(name, **options):
        return datasets.load_dataset(
            "json",
            data_files=str(tmp_path / "trajectories.jsonl"),
            split="train",
            cache_dir=str(tmp_path / name),
            chunksize=1 << 14,
            **options,
        )

    with pytest.raises(datasets.exceptions.DatasetGenerationError):
        load("inferred")
    rows = load("declared", features=trajectory_features())
    assert len(rows) == 101
    assert rows[0]["tokens"] is None
    assert rows[0]["problem"]["metadata"] == {}
    assert from_json(json.loads(json.dumps(rows[-1]))) == rich


def test_real_episodes_survive(tmp_path: Path) -> None:
    """Played ones, stored by `datasets` and brought back."""
    from agents.base import WeightedAgent
    from agents.rollout import CollectConfig, collect
    from mathenv.problems import load_problems

    datasets = pytest.importorskip("datasets")
    problems = load_problems("words", limit=5)
    with TrajectoryStore(tmp_path / "real") as store:
        collect([WeightedAgent(OracleAgent(problems))], problems, store, CollectConfig())
    stored = list(read_trajectories(tmp_path / "real"))
    table = datasets.Dataset.from_list([openai_row(t) for t in stored])
    assert list(trajectories_from(table)) == stored
