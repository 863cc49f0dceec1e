"""Written solutions of other data sets as trajectories."""

import dataclasses
import json
from pathlib import Path

import pytest

from agents.convert import Converter
from agents.models.hf import load_tokenizer
from agents.rendering import ChatRenderer
from benchmarks.cli import main
from benchmarks.work.train import tokenized
from learners.learner import LearnerConfig, make_learner
from mathenv.env import MathToolEnv
from mathenv.errors import DataError
from mathenv.store import read_trajectories, to_json
from mathenv.types import ExecutionStatus, SpanKind, StopReason

SHARED = Path("../shared/data/sft_gsm8k_train_calc.jsonl")
SOLVED = (
    "Let's use Python to count the eggs.\n<llm-code>\neggs = 16 - 3 - 4\neggs * 2\n</llm-code>\n"
    "<llm-code-output>\n18\n</llm-code-output>\nSo she earns \\boxed{18} dollars."
)
TWO_CELLS = (
    "<llm-code>\nx = 5\n</llm-code>\n<llm-code-output>\n\n</llm-code-output>\nNow square it.\n"
    "<llm-code>\nx ** 2\n</llm-code>\n<llm-code-output>\n25\n</llm-code-output>\n\\boxed{25}"
)
FAILED = (
    "<llm-code>\ny + 1\n</llm-code>\n<llm-code-output>\n"
    "NameError: name 'y' is not defined\n</llm-code-output>\n"
)


def math_row(solution, answer="18", question="How much?"):
    return {
        "question": question,
        "expected_answer": answer,
        "generated_solution": solution,
        "is_correct": True,
        "dataset": "gsm8k",
    }


def convert(gemma, source, *rows, **settings):
    converter = Converter(source, gemma, **settings)
    return list(converter.convert(rows)), dict(converter.left_out)


def test_openmathinstruct_blocks_become_turns(gemma):
    (trajectory,), left_out = convert(gemma, "openmathinstruct", math_row(SOLVED))
    assert left_out == {}
    first, last = trajectory.turns
    assert first.action == (
        "Let's use Python to count the eggs.\n```python\neggs = 16 - 3 - 4\neggs * 2\n```"
    )
    assert (first.code, first.observation) == ("eggs = 16 - 3 - 4\neggs * 2", "18")
    assert first.execution.status is ExecutionStatus.OK
    assert last.action == r"So she earns \boxed{18} dollars."
    assert trajectory.stop_reason is StopReason.ANSWERED
    assert trajectory.grade.correct
    assert trajectory.problem.answer == "18"


def test_tokens_and_spans_are_the_renderers(gemma):
    (trajectory,), _ = convert(gemma, "openmathinstruct", math_row(TWO_CELLS, "25"))
    assert trajectory.tokens == gemma.record_turns("How much?", trajectory.turns)
    assert trajectory.tokens.fingerprint == gemma.fingerprint
    sampled = [s for s in trajectory.tokens.spans if s.kind is SpanKind.SAMPLED]
    said = [gemma.action_text(trajectory.tokens.ids[s.start : s.end]) for s in sampled]
    assert said == [turn.action for turn in trajectory.turns]
    assert trajectory.tokens.logprobs == ()


def test_solutions_of_one_question_are_its_samples(gemma):
    rows = [
        math_row(SOLVED),
        math_row(SOLVED.replace("So", "Thus")),
        math_row(SOLVED, "18", "And?"),
    ]
    trajectories, _ = convert(gemma, "openmathinstruct", *rows)
    assert [t.sample for t in trajectories] == [0, 1, 0]
    assert len({t.key for t in trajectories}) == 3


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        (FAILED, "no boxed answer after the last output"),
        ("It is \\boxed{17}.", "the final answer is wrong"),
        (TWO_CELLS.replace("Now square it.", "\\boxed{5}?"), "answers before its last turn"),
        ("<llm-code>\n1\n</llm-code>\nThen \\boxed{18}", "code without output"),
        ("</llm-code-output>\\boxed{18}", "output without code"),
        (SOLVED.replace("eggs * 2", "'''\n```\n'''"), "code that our fences cannot hold"),
        ("\\boxed{18}\n```python\n1\n```", "no boxed answer after the last output"),
    ],
)
def test_what_no_episode_could_have_played_is_left_out_with_the_reason(gemma, solution, reason):
    trajectories, left_out = convert(gemma, "openmathinstruct", math_row(solution))
    assert trajectories == []
    (said,) = left_out
    assert reason in said
    assert left_out[said] == 1


def test_long_solutions_and_wrong_ones_follow_the_settings(gemma):
    _, left_out = convert(gemma, "openmathinstruct", math_row(TWO_CELLS, "25"), horizon=2)
    assert left_out == {"more than 2 turns": 1}
    (wrong,), _ = convert(gemma, "openmathinstruct", math_row(SOLVED, "7"), keep_wrong=True)
    assert not wrong.grade.correct
    assert wrong.reward == 0.0


def test_an_error_in_an_output_is_marked(gemma):
    row = math_row(FAILED + "So \\boxed{18}")
    (trajectory,), _ = convert(gemma, "openmathinstruct", row)
    assert trajectory.turns[0].execution.status is ExecutionStatus.ERROR


MARKED = {
    "question": "Half of 7 pens and 2 more?",
    "answer": "Half is 7/2 = <<7/2=3.5>>3.5 pens.\nThat makes 3.5+2 = <<3.5+2=5.5>>5.5.\n#### 5.5",
}


def test_calculator_marks_become_cells_and_the_text_tells_what_they_gave(gemma):
    (trajectory,), left_out = convert(gemma, "gsm8k", MARKED)
    assert left_out == {}
    assert [(t.action, t.observation) for t in trajectory.turns] == [
        ("```python\nprint(7/2)\n```", "3.5"),
        ("Half is 7/2 = 3.5 pens.\n```python\nprint(3.5+2)\n```", "5.5"),
        ("That makes 3.5+2 = 5.5.\nThe answer is \\boxed{5.5}.", ""),
    ]


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        ("It is 4.\n#### 4", "no calculator marks"),
        ("2+2=<<2+2=5>>5\n#### 5", "a calculator mark with a wrong result"),
        ("<<9**9=1>>\n#### 1", "a calculator mark that is not plain arithmetic"),
        ("<<1/0=1>>\n#### 1", "a calculator mark that is not plain arithmetic"),
        ("<<x=1>>\n#### 1", "a calculator mark that is not plain arithmetic"),
    ],
)
def test_marks_that_python_would_not_confirm_are_left_out(gemma, solution, reason):
    _, left_out = convert(gemma, "gsm8k", {"question": "?", "answer": solution})
    assert left_out == {reason: 1}


def test_segments_give_what_their_marks_give(gemma):
    segments = [
        {"text": "Half is 7/2 = 3.5 pens.", "calls": [{"expr": "7/2", "recorded": "3.5"}]},
        {"text": "That makes 3.5+2 = 5.5.", "calls": [{"expr": "3.5+2", "recorded": "5.5"}]},
    ]
    row = {"problem": MARKED["question"], "answer": "5.5", "segments": segments}
    (one,), _ = convert(gemma, "gsm8k-calc", row)
    (other,), _ = convert(gemma, "gsm8k", MARKED)
    assert dataclasses.replace(one, agent="") == dataclasses.replace(other, agent="")


def test_the_interpreter_prints_what_the_converter_says(gemma, interpreter):
    rows = [MARKED, {"question": "?", "answer": "<<(1+2)*-0.1=-0.3>> <<6/3=2>>\n#### 2"}]
    if SHARED.exists():
        lines = SHARED.read_text().splitlines()[:400:20]
        shared, _ = convert(gemma, "gsm8k-calc", *map(json.loads, lines))
        assert shared
    else:
        shared = []
    trajectories, _ = convert(gemma, "gsm8k", *rows)
    env = MathToolEnv(interpreter=interpreter)
    for trajectory in [*trajectories, *shared]:
        env.reset(seed=0, options={"problem": trajectory.problem})
        for turn in trajectory.turns:
            observation, reward, *_ = env.step(turn.action)
            assert observation == turn.observation
        assert reward == 1.0
        assert env.stop_reason is trajectory.stop_reason
    env.close()


@pytest.mark.skipif(not SHARED.exists(), reason="the shared GSM8K conversion is not here")
def test_most_of_the_shared_conversion_is_usable(gemma):
    rows = [json.loads(line) for line in SHARED.read_text().splitlines()[:300]]
    trajectories, left_out = convert(gemma, "gsm8k-calc", *rows)
    assert len(trajectories) + sum(left_out.values()) == 300
    assert len(trajectories) > 250
    assert all(t.problem.id.startswith("gsm8k/train/") for t in trajectories)


def test_trajectories_without_tokens_get_those_of_their_text(gemma):
    (trajectory,), _ = convert(gemma, "openmathinstruct", math_row(SOLVED))
    row = to_json(dataclasses.replace(trajectory, tokens=None))
    (again,), _ = convert(gemma, "trajectories", row)
    assert again == trajectory
    _, left_out = convert(gemma, "trajectories", to_json(trajectory))
    assert left_out == {"its tokens were recorded at sampling: nothing to convert": 1}


@pytest.mark.parametrize("source", ["openmathinstruct", "gsm8k", "gsm8k-calc"])
def test_rows_of_another_kind_are_an_error(gemma, source):
    with pytest.raises(DataError, match="not of this kind"):
        convert(
            gemma, source, {"segments": [{"text": "a", "calls": [{"expr": "1", "recorded": "1"}]}]}
        )


def test_the_command_writes_what_a_learner_takes(tiny, tmp_path, capsys):
    """And, given again, goes on instead of writing anything twice."""
    source, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows = [math_row(SOLVED), math_row(FAILED), math_row(TWO_CELLS, "25", "Five squared?")]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["convert", str(source), "--from", "openmathinstruct"]
    command += ["--model", str(tiny), "--out", str(out)]
    for extra in (["--limit", "1"], []):
        with pytest.raises(SystemExit) as ended:
            main([*command, *extra])
        assert ended.value.code == 0
    said = capsys.readouterr().out
    assert "2 trajectories in" in said
    assert "1 no boxed answer after the last output" in said
    stored = list(read_trajectories(out))
    assert [t.problem.answer for t in stored] == ["18", "25"]
    sft = make_learner("sft", LearnerConfig())
    examples, _ = sft.examples(tokenized(stored, sft, tiny), seed=0)
    renderer = ChatRenderer(load_tokenizer(tiny))
    for example in examples:
        (sample,) = example.samples
        trained = [i for i, on in zip(sample.ids, sample.mask, strict=True) if on]
        assert renderer.end_id in trained
        assert "output" not in renderer.tokenizer.decode(trained)


def test_the_command_names_the_line_that_is_no_row(tiny, tmp_path, capsys):
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps(MARKED) + "\n{\n")
    command = ["convert", str(source), "--from", "gsm8k", "--model", str(tiny)]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "rows.jsonl:2: not valid JSON" in capsys.readouterr().err
