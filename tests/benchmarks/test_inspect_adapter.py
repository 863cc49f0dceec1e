"""The inspect-ai adapter with the real package: `make test-engines` installs it."""

import json
from contextlib import closing

import pytest

inspect_ai = pytest.importorskip(
    "inspect_ai", reason="inspect-ai is not installed here (make test-engines)"
)

# Below the check: these need the package, ours among them.
from inspect_ai.model import ModelOutput, ModelUsage, get_model  # noqa: E402

from benchmarks.adapters.inspect_suites import suite_task  # noqa: E402
from mathenv.env import shared_interpreter  # noqa: E402
from mathenv.interpreter import Limits  # noqa: E402
from mathenv.types import ExecutionResult, ExecutionStatus  # noqa: E402

ROW = {"id": "a", "question": "What is 6 * 7?", "answer": "42", "level": "easy"}


def output(text):
    """A model's turn; without usage inspect would fetch a tokenizer to count its tokens."""
    turn = ModelOutput.from_content("mockllm/model", text)
    turn.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    return turn


class Speaker:
    """inspect's mock model saying these turns in every conversation; keeps what it was told."""

    def __init__(self, *turns):
        self.turns, self.heard = turns, []
        self.model = get_model("mockllm/model", custom_outputs=self.reply)

    def reply(self, messages, tools, tool_choice, config):
        done = sum(message.role == "assistant" for message in messages)
        self.heard.append([message.text for message in messages])
        text = self.turns[min(done, len(self.turns) - 1)]
        return output(text)


def run(tmp_path, rows, speaker, **options):
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = suite_task(str(file), **options)
    (log,) = inspect_ai.eval(
        task, model=speaker.model, log_dir=str(tmp_path / "logs"), display="none"
    )
    assert log.status == "success", log.error
    return log


def only_score(log):
    (sample,) = log.samples
    (score,) = sample.scores.values()
    return score


def test_code_runs_in_our_sandbox_and_state_stays(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    speaker = Speaker(
        f"First.\n```python\nx = 6 * 7\nimport os\nprint(os.path.exists({str(secret)!r}))\n```",
        "```python\nprint(x)\n```",
        r"The answer is \boxed{42}.",
    )
    log = run(tmp_path, [ROW], speaker)
    score = only_score(log)
    assert (score.value, score.answer) == ("C", "42")
    assert (score.metadata["stop_reason"], score.metadata["turns"]) == ("answered", 3)
    assert (score.metadata["cells"], score.metadata["cell_errors"]) == (2, 0)
    assert "False" in speaker.heard[1][-1], "the host's files are visible"
    assert "42" in speaker.heard[2][-1]
    assert "42" not in " ".join(speaker.heard[0]), "the reference answer reached the model"
    assert log.samples[0].metadata["level"] == "easy"
    assert log.results.scores[0].metrics["accuracy"].value == 1.0


def test_wrong_answers_and_episodes_without_one(tmp_path):
    rows = [{**ROW, "id": "a"}, {**ROW, "id": "b", "answer": "41"}]
    log = run(tmp_path, rows, Speaker(r"\boxed{42}"))
    assert log.results.scores[0].metrics["accuracy"].value == 0.5
    score = only_score(run(tmp_path, [ROW], Speaker("I do not know.")))
    assert (score.value, score.metadata["stop_reason"]) == ("I", "no_action")


def test_the_horizon_ends_an_episode(tmp_path):
    speaker = Speaker("```python\nprint(1)\n```")
    score = only_score(run(tmp_path, [ROW], speaker, horizon=3))
    assert (score.metadata["stop_reason"], score.metadata["turns"]) == ("horizon", 3)
    assert len(speaker.heard) == 3


def test_the_policy_is_ours(tmp_path):
    speaker = Speaker(r"\boxed{4200}")
    assert only_score(run(tmp_path, [ROW], speaker)).value == "I"
    assert only_score(run(tmp_path, [ROW], speaker, policy="paper")).value == "C"


def test_what_says_nothing_about_the_model_is_not_scored(tmp_path):
    rows = [ROW, {**ROW, "id": "bad", "answer": "$$"}]
    log = run(tmp_path, rows, Speaker(r"\boxed{42}"))
    scores = log.results.scores[0]
    assert (scores.scored_samples, scores.unscored_samples) == (1, 1)
    assert scores.metrics["accuracy"].value == 1.0
    (bad,) = next(s for s in log.samples if s.id == "bad").scores.values()
    assert (bad.reason, bad.metadata["status"]) == ("scoring_failed", "gold_error")


def test_a_failure_of_the_machinery_is_not_scored(tmp_path, monkeypatch):
    broken = ExecutionResult(ExecutionStatus.INFRA, "the sandbox went away", session_lost=True)
    with closing(shared_interpreter("local", Limits()).session()) as session:
        monkeypatch.setattr(type(session), "run", lambda self, code: broken)
    log = run(tmp_path, [ROW], Speaker("```python\nprint(1)\n```", r"\boxed{42}"))
    assert only_score(log).metadata["stop_reason"] == "infra"
    assert log.results.scores[0].unscored_samples == 1


def test_our_suites_by_name(tmp_path):
    task = suite_task("words,words_ood", limit=3)
    sources = [sample.metadata["source"] for sample in task.dataset]
    assert sources == ["words"] * 3 + ["words_ood"] * 3
    answers = {sample.input: sample.target for sample in task.dataset}

    def reply(messages, tools, tool_choice, config):
        text = rf"\boxed{{{answers[messages[-1].text]}}}"
        return output(text)

    model = get_model("mockllm/model", custom_outputs=reply)
    (log,) = inspect_ai.eval(task, model=model, log_dir=str(tmp_path), display="none")
    assert log.results.scores[0].metrics["accuracy"].value == 1.0
