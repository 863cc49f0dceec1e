import json
import math
import shutil
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from gymnasium.utils.seeding import np_random

from agents.rollout import failed_path
from learners import iterate as loop
from learners import registry
from learners.iterate import (
    Data,
    IterateConfig,
    IterationResult,
    Method,
    Policies,
    evaluate,
    iterate,
    mean_reward,
    run_iteration,
)
from learners.learner import register_learner
from learners.methods.sft import SFT
from learners.recipe import load_recipe
from learners.reporter import Reporter
from learners.run import fine_tune
from learners.training import reference
from learners.training import train as stages
from learners.training.checkpoint import read_manifest, step_folders
from learners.training.lora import LoRA
from learners.training.train import TrainConfig
from mathenv.env import shared_interpreter
from mathenv.errors import ConfigError, DataError, InfraError, TrainingError
from mathenv.interpreter import Limits
from mathenv.store import TrajectoryStore, read_trajectories
from mathenv.types import ExecutionResult, ExecutionStatus, Grade, GradeStatus, StopReason

STILL = TrainConfig(lr=1e-12, batch_size=8, checkpoints=1)  # trains, and changes nothing
LEARNS = TrainConfig(lr=1e-2, epochs=20, batch_size=5, checkpoints=1)


@pytest.fixture
def data(micro):
    return Data(micro.sets.prompts, micro.sets.validation, micro.start.demonstrations)


@pytest.fixture
def go(micro, data, tmp_path):
    """Run the loop in the micro world, with changes."""

    def go(
        learner="mdpo",
        *,
        method=micro.method,
        run=tmp_path / "run",
        reporter=None,
        interpreter="local",
        **changes,
    ):
        config = replace(micro.recipe.iterate, **changes)
        start = micro.start
        where = (run, reporter, interpreter)
        return iterate(start.policy, start.previous, data, learner, method, config, *where)

    return go


@pytest.fixture
def coached(monkeypatch, micro):
    """A learner that samples, has a reference and surely improves: it trains on the solutions."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    @register_learner("coached")
    class Coached(SFT):
        name = "coached"
        uses_reference = True
        from_demonstrations = False

        def examples(self, trajectories, *, seed):
            assert list(trajectories)
            return super().examples(micro.start.demonstrations, seed=seed)

    return "coached"


@pytest.fixture
def record(monkeypatch):
    """Let a function of a module do its work, and keep the first argument of each call."""

    def record(module, name):
        calls = []
        real = getattr(module, name)

        def recorded(*args, **kwargs):
            calls.append((args, kwargs))
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, recorded)
        return calls

    return record


class Unsteady:
    """An interpreter that is down in the episodes with these seeds."""

    def __init__(self, *seeds):
        # As the environment draws a session's seed from its own.
        self.down = {int(np_random(seed)[0].integers(2**31)) for seed in seeds}
        self._real = shared_interpreter("local", Limits())
        self.description = self._real.description

    def session(self, *, seed=0):
        return Down() if seed in self.down else self._real.session(seed=seed)


class Down:
    def run(self, code):
        return ExecutionResult(ExecutionStatus.INFRA, "the sandbox is down")

    def close(self):
        pass


class Listening(Reporter):
    """Keeps what it is told."""

    def __init__(self):
        self.stages, self.lines, self.figures = [], [], {}

    @contextmanager
    def stage(self, name, total, unit):
        self.stages.append(name)
        yield lambda done, total=None, figures=None: self.figures.update({name: figures})

    def say(self, text):
        self.lines.append(text)


@pytest.fixture
def crash(monkeypatch):
    """Run something and end it when a function of a module is reached for the `call`-th time."""

    def crash(work, module, name, call=1):
        calls = []
        real = getattr(module, name)

        def dying(*args, **kwargs):
            calls.append(name)
            if len(calls) == call:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(module, name, dying)
            with pytest.raises(KeyboardInterrupt):
                work()

    return crash


def rollouts(run, number=1):
    return list(read_trajectories(run / f"iteration-{number}" / "rollouts.jsonl"))


def results(run):
    return [(f.parent.name, json.loads(f.read_text())) for f in sorted(run.rglob("result.json"))]


# --- one run, end to end


@pytest.mark.parametrize("name", ["mdpo", "dpo", "raft", "sft"])
def test_a_run_leaves_the_folder_it_promises(go, micro, tmp_path, name):
    found = go(name)
    assert [r.number for r in found] == [1, 2]
    for result in found:
        folder = tmp_path / "run" / f"iteration-{result.number}"
        steps = [path.name for _, path in step_folders(folder / "train")]
        assert steps
        expected = {"selection.json", "train", "validation", "result.json"}
        if name != "sft":
            expected.add("rollouts.jsonl")
        assert {p.name for p in folder.iterdir()} == expected
        played = {p.stem for p in (folder / "validation").glob("*.jsonl")}
        assert played == {"before", *steps} == set(result.scores)
        for file in (folder / "validation").glob("*.jsonl"):
            greedy = list(read_trajectories(file))
            assert mean_reward(greedy) == result.scores[file.stem]
            assert {t.problem.id for t in greedy} == {p.id for p in micro.sets.validation}
        written = json.loads((folder / "result.json").read_text())
        assert written["scores"] == result.scores
        assert written["policy"] in result.scores
        assert written["validation"] == max(result.scores.values())
        assert not list(folder.rglob("trainer.pt"))
        assert not list(folder.rglob("*.partial"))


def test_the_selection_names_trajectories_of_the_rollouts(go, tmp_path):
    go("mdpo", iterations=1)
    folder = tmp_path / "run" / "iteration-1"
    by_key = {t.key: t for t in rollouts(tmp_path / "run")}
    selection = json.loads((folder / "selection.json").read_text())
    assert selection["counts"]["trajectories"] == len(by_key) == 12 * (4 + 2)
    assert selection["counts"]["examples"] == len(selection["provenance"]) > 0
    for pair in selection["provenance"]:
        chosen, rejected = by_key[pair["chosen"]], by_key[pair["rejected"]]
        assert chosen.grade.correct
        assert not rejected.grade.correct
        assert chosen.problem == rejected.problem


def test_iterations_have_disjoint_prompts_of_equal_number(go, micro, tmp_path):
    go("raft", method=Method(micro.method.loss, STILL))
    prompts = [{t.problem.id for t in rollouts(tmp_path / "run", i)} for i in (1, 2)]
    assert [len(p) for p in prompts] == [6, 6]
    assert not prompts[0] & prompts[1]
    assert prompts[0] | prompts[1] == {p.id for p in micro.sets.prompts}


def test_the_same_seed_gives_the_same_run_and_another_does_not(go, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        go(iterations=1, seed=seed, run=tmp_path / name)
    texts = [sorted((t.key, t.tokens.ids) for t in rollouts(tmp_path / n)) for n in "abc"]
    assert texts[0] == texts[1] != texts[2]
    assert results(tmp_path / "a") == results(tmp_path / "b")


# --- which policy plays which part


def test_single_iterations_with_own_code_between_are_the_loop(go, micro, data, tmp_path):
    looped = go(iterations=2)
    config = replace(micro.recipe.iterate, iterations=2)
    policies = Policies.start(micro.start.policy, micro.start.previous)
    half = len(data.prompts) // 2
    for number, whole in enumerate(looped, 1):
        mine = replace(data, prompts=data.prompts[(number - 1) * half : number * half])
        folder = tmp_path / "own" / f"iteration-{number}"
        result = run_iteration(
            policies, mine, "mdpo", folder, number=number, method=micro.method, config=config
        )
        assert result.scores == whole.scores
        assert (folder / "result.json").read_text() == (
            tmp_path / "run" / folder.name / "result.json"
        ).read_text()
        policies = policies.after(result)
    assert (tmp_path / "own" / "reference.sqlite").exists()


def test_an_improved_policy_is_taken_and_the_one_before_becomes_previous(
    go, coached, record, micro, tmp_path
):
    loads = record(loop, "load_policy")
    first, second = go(coached, method=Method(train=LEARNS))
    assert first.validation > first.validation_before
    folder = tmp_path / "run" / "iteration-1" / "train"
    assert first.policy == step_folders(folder)[-1][1]
    sampling = [(kw["name"], args[0]) for args, kw in loads if kw["name"] != "greedy"]
    assert sampling == [
        ("current", micro.start.policy),
        ("previous", micro.start.previous),
        ("current", first.policy),
        ("previous", micro.start.policy),
    ]
    assert second.validation_before == first.validation


def test_the_policy_stays_where_no_checkpoint_is_better(go, coached, record, micro):
    """A tie is not better; and a policy that stays is not mixed with itself."""
    loads = record(loop, "load_policy")
    found = go(coached, method=Method(train=STILL))
    for result in found:
        assert len(set(result.scores.values())) == 1
        assert result.policy == micro.start.policy
        assert "the policy stays" in result.warnings[0]
    sampling = [(kw["name"], args[0]) for args, kw in loads if kw["name"] != "greedy"]
    assert sampling == [("current", micro.start.policy), ("previous", micro.start.previous)] * 2


def test_a_worse_checkpoint_is_not_taken(go, coached, micro):
    wild = TrainConfig(lr=1.0, epochs=4, batch_size=5, checkpoints=2)
    (result,) = go(coached, method=Method(train=wild), iterations=1)
    assert result.policy == micro.start.policy
    assert result.validation == result.validation_before > min(result.scores.values())


def test_equal_weights_under_two_names_give_different_samples(micro, data, tmp_path):
    policy = micro.start.policy
    config = replace(micro.recipe.iterate, iterations=1, current_samples=3, previous_samples=3)
    iterate(policy, policy, data, "raft", micro.method, config, tmp_path)
    ids = {t.key: t.tokens.ids for t in rollouts(tmp_path)}
    current = [key for key in ids if "#current#" in key]
    same = [ids[key] == ids[key.replace("#current#", "#previous#")] for key in current]
    assert sum(same) < len(same) / 2


def test_the_reference_moves_as_often_as_was_asked(go, coached, micro, tmp_path):
    results = go(coached, method=Method(train=LEARNS), reference=2, iterations=3)
    start = micro.start.policy
    newest = [start, *(r.policy for r in results)]
    assert newest[1] != start
    for number, path in enumerate([start, start, newest[2]], 1):
        train = tmp_path / "run" / f"iteration-{number}" / "train"
        manifest = read_manifest(step_folders(train)[-1][1])
        assert manifest["reference"] == "/".join(path.parts[-3:])
        assert manifest["policy"] == "/".join(newest[number - 1].parts[-3:])


def test_every_k_iterations_the_reference_is_the_newest_policy():
    def references(which, count=6):
        policies = Policies(Path("0"), Path("-1"), Path("0"))
        found = []
        for number in range(1, count + 1):
            found.append(int(policies.reference.name))
            result = IterationResult(number, Path(str(number)), 1.0, 0.0, {}, ())
            policies = policies.after(result, which)
        return found

    assert references("last") == references(1) == [0, 1, 2, 3, 4, 5]
    assert references(2) == [0, 0, 2, 2, 4, 4]
    assert references(3) == [0, 0, 0, 3, 3, 3]
    assert references("first") == references(6) == references(99) == [0] * 6


def test_a_recipe_says_how_often_the_reference_moves(tmp_path):
    file = tmp_path / "r.toml"
    for text, value in (('"last"', "last"), ('"first"', "first"), ("2", 2)):
        file.write_text(f"[iterate]\nreference = {text}\n")
        assert load_recipe(file).iterate.reference == value
    for text in ('"every"', "0", "-1", "true", "1.5", '"2"', "[1]"):
        file.write_text(f"[iterate]\nreference = {text}\n")
        with pytest.raises(ConfigError, match=r"r\.toml.*reference must be 'last', 'first' or"):
            load_recipe(file)


def test_learners_with_the_same_pairs_share_the_log_probs_of_the_reference(
    micro, data, tmp_path, record
):
    loads = record(reference, "load_causal_lm")
    start, config = micro.start, replace(micro.recipe.iterate, iterations=1)
    shared = tmp_path / "reference.sqlite"

    def run(name, cache):
        out = tmp_path / f"{name}-{cache.name if cache else 'alone'}"
        arguments = (start.policy, start.previous, data, name, micro.method, config, out)
        (result,) = iterate(*arguments, cache=cache)
        return (out / "iteration-1/train/metrics.jsonl").read_text(), result.scores

    run("mdpo", shared)
    assert len(loads) == 1
    found = run("ipo", shared)
    assert len(loads) == 1
    assert found == run("ipo", None)
    assert len(loads) == 2


def test_adapters_are_merged_and_begin_anew_in_every_iteration(go, micro, tmp_path):
    pytest.importorskip("peft")
    adapted = replace(micro.method.train, lora=LoRA(rank=4))
    first, second = go("mdpo", method=Method(micro.method.loss, adapted))
    for number in (1, 2):
        folder = tmp_path / "run" / f"iteration-{number}" / "train"
        for _, path in step_folders(folder):
            assert (path / "model.safetensors").exists()
            assert (path / "adapter" / "adapter_model.safetensors").exists()
        row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        assert row["rewards/margins"] == 0.0  # the reference is the merged policy
    assert first.policy.name in first.scores or first.policy == micro.start.policy
    assert second.validation_before == first.validation


def test_mdpo_starts_at_its_reference(go, tmp_path):
    """Where policy and reference are one folder, the first margin is zero."""
    go("mdpo", iterations=1)
    first = (tmp_path / "run/iteration-1/train/metrics.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert json.loads(first)["loss"] == pytest.approx(
        math.log(2) + json.loads(first)["nll_loss"], rel=1e-3
    )


# --- resuming


def test_a_finished_run_is_read_not_repeated(go, monkeypatch):
    first = go("mdpo")

    def never(*args, **kwargs):
        raise AssertionError("a finished run was started again")

    for name in ("train", "load_policy"):
        monkeypatch.setattr(loop, name, never)
    assert go("mdpo") == first


def test_killed_at_random_moments_it_ends_with_the_same_result(
    go, micro, data, tmp_path, kill_and_restart
):
    go("mdpo", run=tmp_path / "whole")
    start, run = micro.start, tmp_path / "killed"
    config = micro.recipe.iterate
    arguments = (start.policy, start.previous, data, "mdpo", micro.method, config, run)
    codes = kill_and_restart(
        iterate,
        arguments,
        run,
        [
            ("iteration-1/rollouts.jsonl", 20),
            ("iteration-1/train/metrics.jsonl", 1),
            ("iteration-1/validation/step*.jsonl", 1),
            ("iteration-2/selection.json", 1),
        ],
    )
    assert codes.count(-9) >= 2
    assert results(run) == results(tmp_path / "whole")
    for number in (1, 2):
        parts = [r / f"iteration-{number}" / "selection.json" for r in (run, tmp_path / "whole")]
        assert parts[0].read_text() == parts[1].read_text()


def test_a_kill_after_training_does_not_train_again(go, tmp_path, crash):
    first = go("raft", iterations=1, run=tmp_path / "whole")
    crash(lambda: go("raft", iterations=1), loop, "evaluate")
    weights = sorted((tmp_path / "run").rglob("model.safetensors"))
    stamps = [file.stat().st_mtime_ns for file in weights]
    (again,) = go("raft", iterations=1)
    assert again.scores == first[0].scores
    assert stamps == [file.stat().st_mtime_ns for file in weights]


def test_a_kill_after_the_result_leaves_no_optimizer_states(go, tmp_path, crash):
    crash(lambda: go("raft", iterations=1), loop, "drop_state")
    assert list(tmp_path.rglob("trainer.pt"))
    go("raft", iterations=1)
    assert not list(tmp_path.rglob("trainer.pt"))


def test_the_choice_is_not_made_again(go, tmp_path, record):
    first = go("raft")
    for folder in tmp_path.glob("run/iteration-*/validation"):
        shutil.rmtree(folder)
    plays = record(loop, "collect_with")
    assert go("raft") == first
    assert plays == []


# --- episodes that fail in the machinery


@pytest.fixture
def unsteady(go, tmp_path):
    """An interpreter that is down in an episode that a run would train on, and nowhere else."""
    go("mdpo", run=tmp_path / "found", iterations=1)
    folder = tmp_path / "found" / "iteration-1"
    pairs = json.loads((folder / "selection.json").read_text())["provenance"]
    seeds = {t.key: t.seed for t in rollouts(tmp_path / "found") if t.turns[0].code is not None}
    used = [seeds[pair[side]] for pair in pairs for side in pair if pair[side] in seeds]
    return Unsteady(used[0])


def failures(run, number=1):
    file = failed_path(run / f"iteration-{number}" / "rollouts.jsonl")
    return [t.key for t in read_trajectories(file)] if file.exists() else []


def selected(run, number=1):
    return (run / f"iteration-{number}" / "selection.json").read_text()


def weights(run):
    return {str(f.relative_to(run)): f.read_bytes() for f in sorted(run.rglob("*.safetensors"))}


@pytest.mark.parametrize("mended", [False, True])
def test_a_failed_episode_does_not_change_a_stage_that_was_begun(
    go, unsteady, crash, tmp_path, mended
):
    """Half trained, the run ends as one that was never stopped, whatever works by then."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    go("mdpo", run=whole, iterations=1, interpreter=unsteady)
    begun = partial(go, "mdpo", iterations=1, interpreter=unsteady)
    crash(begun, stages, "save_checkpoint", call=2)
    assert failures(run) == failures(whole) != []
    assert [p.name for _, p in step_folders(run / "iteration-1" / "train")] != []
    if mended:
        unsteady.down.clear()
    begun()
    assert (failures(run), selected(run)) == (failures(whole), selected(whole))
    assert results(run) == results(whole)
    assert weights(run) == weights(whole)
    counts = json.loads(selected(run))["counts"]
    assert counts["excluded_infra"] == len(failures(run))


@pytest.mark.parametrize("mended", [False, True])
def test_a_failed_episode_does_not_wake_a_finished_run(go, unsteady, record, tmp_path, mended):
    first = go("mdpo", interpreter=unsteady)
    files = {f: f.read_bytes() for f in tmp_path.glob("run/**/*") if f.is_file()}
    assert failures(tmp_path / "run")
    if mended:
        unsteady.down.clear()
    loads = record(loop, "load_policy")
    assert go("mdpo", interpreter=unsteady) == first
    assert loads == []
    assert {f: f.read_bytes() for f in files} == files


@pytest.mark.parametrize("mended", [False, True])
def test_a_failed_episode_is_tried_again_before_any_is_selected(
    go, unsteady, crash, tmp_path, mended
):
    run = tmp_path / "run"
    begun = partial(go, "mdpo", iterations=1, interpreter=unsteady)
    crash(begun, loop, "_select")
    lacking = failures(run)
    assert lacking
    if mended:
        unsteady.down.clear()
    begun()
    assert failures(run) == ([] if mended else lacking)
    assert len(rollouts(run)) + len(failures(run)) == 12 * (4 + 2)


def test_an_interpreter_that_is_down_stops_the_run(go, tmp_path):
    class Broken(Unsteady):
        def session(self, *, seed=0):
            return Down()

    for _ in range(2):
        with pytest.raises(InfraError, match=r"failed in the machinery.*the interpreter"):
            go("mdpo", iterations=1, interpreter=Broken())
    assert not (tmp_path / "run" / "iteration-1" / "selection.json").exists()
    go("mdpo", iterations=1)
    assert failures(tmp_path / "run") == []


def broken(trajectory):
    grade = Grade(False, GradeStatus.INFRA, detail="the sandbox is down")
    return replace(trajectory, stop_reason=StopReason.INFRA, grade=grade)


def fail(file, count):
    """Let the last episodes of a finished store have failed."""
    stored = list(read_trajectories(file))
    file.unlink()
    with TrajectoryStore(file) as kept, TrajectoryStore(failed_path(file)) as apart:
        for index, trajectory in enumerate(stored):
            if index < len(stored) - count:
                kept.append(trajectory)
            else:
                apart.append(broken(trajectory))


def test_an_evaluation_that_is_done_needs_no_engine_again(micro, tmp_path, record):
    file, (policy, problems) = tmp_path / "e.jsonl", (micro.start.policy, micro.sets.validation)
    whole = evaluate(policy, problems, file, micro.recipe.iterate)
    fail(file, 1)
    loads = record(loop, "load_policy")
    found = evaluate(policy, problems, file, micro.recipe.iterate)
    assert loads == []
    assert [t.counts for t in found] == [True] * 5 + [False]
    fail(file, 3)
    failed_path(file).write_text("")
    failed = [broken(t) for t in whole[1:]]
    with TrajectoryStore(failed_path(file)) as apart:
        for trajectory in failed:
            if trajectory.key not in {t.key for t in read_trajectories(file)}:
                apart.append(trajectory)
    evaluate(policy, problems, file, micro.recipe.iterate)
    assert len(loads) == 1, "most had failed: played again"


def test_a_failed_demonstration_does_not_join_what_was_trained_on(micro, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(micro.run, run)
    fail(run / "sft" / "demonstrations.jsonl", 1)
    shutil.rmtree(run / "sft" / "train")
    (run / "sft" / "train").mkdir()  # training has begun
    (run / "sft" / "done").unlink()
    start = fine_tune(run, micro.recipe, micro.sets, Reporter())
    assert len(start.demonstrations) == 19
    assert failed_path(run / "sft" / "demonstrations.jsonl").exists()
    shutil.rmtree(run / "sft" / "train")  # nothing was trained: it may be played now
    (run / "sft" / "done").unlink()
    assert len(fine_tune(run, micro.recipe, micro.sets, Reporter()).demonstrations) == 20


def test_demonstrations_that_sft_was_not_trained_on_are_an_error(micro, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(micro.run, run)
    file = run / "sft" / "demonstrations.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(DataError, match=r"demonstrations\.jsonl no longer holds.*restore it"):
        fine_tune(run, micro.recipe, micro.sets, Reporter())


# --- what is refused, and what is told


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reference": "newest"}, "'last', 'first' or"),
        ({"reference": 0}, "'last', 'first' or"),
        ({"reference": True}, "'last', 'first' or"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"current_samples": 0, "previous_samples": 0}, "cannot both be 0"),
        ({"current_samples": -1}, "current_samples must be at least 0"),
    ],
)
def test_wrong_settings_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        IterateConfig(**wrong)


def test_problems_that_do_not_suffice_are_refused_before_any_work(micro, data, tmp_path):
    start, config = micro.start, micro.recipe.iterate
    for learner, wrong, message in (
        ("mdpo", replace(data, prompts=data.prompts[:1]), "1 prompts cannot be split over 2"),
        ("mdpo", replace(data, validation=()), "validation"),
        ("sft", replace(data, demonstrations=()), "demonstrations"),
        ("ppo", data, "no learner is called 'ppo'"),
    ):
        with pytest.raises(ConfigError, match=message):
            iterate(start.policy, start.previous, wrong, learner, micro.method, config, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_policy_that_is_never_right_ends_in_an_error_that_says_so(micro, data, policy, tmp_path):
    config = replace(micro.recipe.iterate, iterations=1, current_samples=1, previous_samples=0)
    with pytest.raises(TrainingError, match="nothing to train on"):
        iterate(policy, policy, data, "mdpo", micro.method, config, tmp_path)
    selection = json.loads((tmp_path / "iteration-1/selection.json").read_text())
    assert selection["counts"]["all_wrong"] == 12


def test_the_reporter_hears_of_every_stage_by_seed_learner_and_iteration(go):
    reporter = Listening()
    (result,) = go("mdpo", iterations=1, seed=3, reporter=reporter)
    names = ["sampling", "train", "validation"]
    assert reporter.stages == [f"seed-3/mdpo/iteration-1/{name}" for name in names]
    assert reporter.lines[0].startswith("seed-3/mdpo/iteration-1: ")
    assert "examples from" in reporter.lines[0]
    assert "0 episodes excluded, " in reporter.lines[0]
    assert reporter.lines[0].endswith(" cut off by a token limit)")
    assert reporter.figures["seed-3/mdpo/iteration-1/train"]["loss"]
    assert reporter.figures["seed-3/mdpo/iteration-1/validation"] == {
        "accuracy": result.validation,
        "before": result.validation_before,
    }


def test_the_diagnosis_is_given_what_was_solved_before_and_after(go, coached, record, tmp_path):
    calls = record(loop, "diagnose")
    (result,) = go(coached, method=Method(train=LEARNS), iterations=1)
    folder = tmp_path / "run" / "iteration-1" / "validation"
    (((_, count, _), given_),) = calls
    for side, name in (("before", "before"), ("after", result.policy.name)):
        played = list(read_trajectories(folder / f"{name}.jsonl"))
        assert given_[side] == {t.problem.id: t.reward for t in played}
        assert len(given_[side]) == count


def test_evaluate_goes_on_where_it_stopped_and_counts_only_what_counts(
    micro, tmp_path, record, make_trajectory
):
    file = tmp_path / "e.jsonl"
    problems, policy = micro.sets.validation, micro.start.policy
    whole = evaluate(policy, problems, tmp_path / "w.jsonl", micro.recipe.iterate)
    evaluate(policy, problems[:2], file, micro.recipe.iterate)
    again = evaluate(policy, problems, file, micro.recipe.iterate)
    assert {t.key: t.grade for t in again} == {t.key: t.grade for t in whole}
    loads = record(loop, "load_policy")
    evaluate(policy, problems, file, micro.recipe.iterate)
    assert loads == []
    right, wrong = make_trajectory("a", True), make_trajectory("b", False)
    broken = make_trajectory("c", False, infra=True)
    assert mean_reward([right, wrong, broken]) == 0.5
    assert mean_reward([broken]) == 0.0
