import json
import shutil
from dataclasses import replace

import pytest

from agents.models.hf import load_tokenizer
from agents.rendering import ChatRenderer
from learners import run as whole
from learners.iterate import evaluate, mean_reward
from learners.recipe import ProblemsConfig
from learners.reporter import Reporter
from learners.run import fine_tune, prepare, problem_sets, run_iterations
from learners.training.checkpoint import read_manifest, step_folders
from mathenv.errors import ConfigError
from mathenv.types import SpanKind


@pytest.fixture
def copied(micro, tmp_path):
    """The prepared and fine-tuned run folder, to be changed at will."""
    folder = tmp_path / "run"
    shutil.copytree(micro.run, folder, ignore=shutil.ignore_patterns("mdpo", "raft"))
    return folder


def ids(problems):
    return {p.id for p in problems}


def test_the_run_folder_holds_what_it_promises(micro):
    assert {p.name for p in micro.run.iterdir()} >= {"manifest.json", "base", "sft"}
    assert (micro.run / "sft" / "demonstrations.jsonl").exists()
    folders = [path for _, path in step_folders(micro.run / "sft" / "train")]
    assert micro.start.policy == folders[-1]
    assert micro.start.previous == folders[-2]
    assert read_manifest(micro.start.policy)["learner"] == "sft"
    assert not list(micro.run.rglob("trainer.pt"))
    manifest = json.loads((micro.run / "manifest.json").read_text())
    assert manifest["recipe"]["sft"]["lr"] == 1e-2
    assert "platform" in manifest["environment"]


def test_fine_tuning_teaches_something(micro, tmp_path):
    scores = [
        mean_reward(evaluate(policy, micro.sets.validation, tmp_path / name, micro.recipe.iterate))
        for name, policy in (("a.jsonl", micro.run / "base"), ("b.jsonl", micro.start.policy))
    ]
    assert scores[0] == 0
    assert scores[1] > 0


def test_demonstrations_are_the_solutions_run_in_the_interpreter(micro):
    assert len(micro.start.demonstrations) == 20
    renderer = ChatRenderer(load_tokenizer(micro.run / "base"))
    for shown in micro.start.demonstrations:
        assert shown.grade.correct
        assert shown.turns[0].code == shown.problem.solution[0]
        assert shown.turns[0].observation.strip() == shown.problem.answer
        texts = [
            renderer.action_text(shown.tokens.ids[s.start : s.end])
            for s in shown.tokens.spans
            if s.kind is SpanKind.SAMPLED
        ]
        assert texts == [turn.action for turn in shown.turns]


def test_run_iterations_puts_each_learner_into_its_own_folder(micro, copied):
    once = replace(micro.recipe.iterate, iterations=1)
    recipe = replace(micro.recipe, learner="raft", iterate=once)
    start = fine_tune(copied, recipe, micro.sets, Reporter())
    (result,) = run_iterations(copied, recipe, micro.sets, start, Reporter())
    assert (copied / "raft" / "iteration-1" / "result.json").exists()
    assert result.policy.is_relative_to(copied)


def test_fine_tune_goes_on_where_it_stopped(micro, copied, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("trained again")

    with monkeypatch.context() as patched:
        patched.setattr(whole, "train", never)
        again = fine_tune(copied, micro.recipe, micro.sets, Reporter())
    assert again.demonstrations == micro.start.demonstrations
    assert again.policy.name == micro.start.policy.name


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_crash_around_dropping_the_optimizer_states_is_mended(
    micro, tmp_path, monkeypatch, after
):
    """Killed between two of the last steps of SFT, the same call must still finish."""
    recipe = replace(micro.recipe, sft=replace(micro.recipe.sft, epochs=1))
    folder = tmp_path / "run"
    prepare(folder, recipe)
    real, calls = whole.drop_state, []

    def crash(path):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(path)
        real(path)

    with monkeypatch.context() as patched:
        patched.setattr(whole, "drop_state", crash)
        if after < 2:
            with pytest.raises(KeyboardInterrupt):
                fine_tune(folder, recipe, micro.sets, Reporter())
        else:
            fine_tune(folder, recipe, micro.sets, Reporter())
    start = fine_tune(folder, recipe, micro.sets, Reporter())
    assert (start.policy / "model.safetensors").exists()
    assert not list(folder.rglob("trainer.pt"))


def test_a_folder_belongs_to_one_recipe_but_to_any_learner(micro, copied):
    prepare(copied, micro.recipe)
    prepare(copied, replace(micro.recipe, learner="raft"))
    with pytest.raises(ConfigError, match=r"another recipe \(differs in seed, sft\)"):
        prepare(copied, replace(micro.recipe, seed=1, sft=replace(micro.recipe.sft, lr=1.0)))


# --- problems


def test_words_are_cut_into_disjoint_sets_of_the_asked_sizes():
    config = ProblemsConfig("words", demonstrations=30, prompts=20, validation=10, test=15)
    sets = problem_sets(config)
    parts = [sets.demonstrations, sets.prompts, sets.validation, sets.test]
    assert [len(part) for part in parts] == [30, 20, 10, 15]
    assert len(set().union(*map(ids, parts))) == 75
    assert len({p.question for part in parts for p in part}) == 75
    assert sets.validation[0].split == "validation"
    assert problem_sets(config) == sets
    assert problem_sets(replace(config, seed=1)) != sets


def test_without_a_validation_split_the_training_split_gives_one(micro):
    sets = micro.sets
    parts = [sets.demonstrations, sets.prompts, sets.validation, sets.test]
    assert [len(part) for part in parts] == [20, 12, 6, 4]
    assert len(set().union(*map(ids, parts))) == 42
    assert all(p.id.startswith("train/") for p in sets.validation)


def test_a_validation_file_is_used_where_there_is_one(micro, tmp_path):
    folder = tmp_path / "problems"
    shutil.copytree(micro.recipe.problems.source, folder)
    rows = (folder / "train.jsonl").read_text().replace("train/", "validation/")
    (folder / "validation.jsonl").write_text(rows)
    sets = problem_sets(replace(micro.recipe.problems, source=str(folder)))
    assert all(p.id.startswith("validation/") for p in sets.validation)


def test_one_file_for_training_and_test_is_refused(micro, tmp_path):
    file = tmp_path / "one.jsonl"
    shutil.copy(micro.recipe.problems.source + "/train.jsonl", file)
    with pytest.raises(ConfigError, match=r"share problems.*test\.jsonl"):
        problem_sets(replace(micro.recipe.problems, source=str(file)))


def test_too_few_problems_are_an_error_with_the_numbers(micro):
    with pytest.raises(ConfigError, match="train has 40 problems, 118 are needed"):
        problem_sets(replace(micro.recipe.problems, prompts=92))
