"""A cut or garbled file of a run: the run goes on exactly, or one sentence names the file."""

import json
import random
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from learners import make_learner
from learners.iterate import Data, iterate
from learners.learner import LearnerConfig
from learners.preferences import PairRules
from learners.reporter import Reporter
from learners.run import fine_tune, prepare
from learners.training.checkpoint import step_folders
from learners.training.train import Stage, TrainConfig, train
from mathenv.errors import MathEnvError

CONFIG = TrainConfig(lr=3e-3, batch_size=4, checkpoints=3)


def cut(data):
    return data[: len(data) // 2]


def emptied(data):
    return b""


def zeroed(data):
    return bytes(len(data))


def garbled(data):
    """A block of noise in the middle, as a broken disk gives it back."""
    noise = random.Random(0).randbytes(min(512, len(data) // 3 + 1))
    middle = len(data) // 2
    return data[:middle] + noise + data[middle + len(noise) :]


DAMAGES = [cut, emptied, zeroed, garbled]


class Stopped(BaseException):
    """Stands for the process ending."""


@pytest.fixture(scope="module")
def examples(make_trajectory):
    learner = make_learner("mdpo", LearnerConfig(pairs=PairRules(per_problem=2)))
    trajectories = [make_trajectory(f"p{p}", i < 2, sample=i) for p in range(6) for i in range(4)]
    found, _ = learner.examples(trajectories, seed=0)
    return learner, found


@pytest.fixture(scope="module")
def whole(examples, policy, reference, tmp_path_factory):
    """A stage that ran through; its files tell what is right."""
    out = tmp_path_factory.mktemp("whole") / "train"
    train(*examples, CONFIG, Stage(policy, out, reference))
    return out


@pytest.fixture(scope="module")
def stopped(examples, policy, reference, tmp_path_factory):
    """A stage that was stopped after its second of three checkpoints, and logged a step more."""
    out = tmp_path_factory.mktemp("stopped") / "train"

    def stop(step, steps, metrics):
        if step == steps:
            raise Stopped

    with pytest.raises(Stopped):
        train(*examples, replace(CONFIG, epochs=2), Stage(policy, out, reference), on_step=stop)
    assert len(step_folders(out)) == 2
    return out


@pytest.fixture(scope="module")
def finished(examples, policy, reference, stopped, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "train"
    shutil.copytree(stopped, out)
    train(*examples, replace(CONFIG, epochs=2), Stage(policy, out, reference))
    return out


def error_of(work, *arguments):
    """Return the sentence that a call ends with, None where it does its work."""
    try:
        work(*arguments)
    except MathEnvError as error:
        return str(error)
    return None


def content(out):
    files = sorted(p for p in out.rglob("*") if p.name.endswith((".safetensors", ".jsonl")))
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


TRAIN_FILES = [
    "metrics.jsonl",
    "reference.sqlite",
    *(
        f"{step}/{name}"
        for step in ("step-2", "step-4")
        for name in (
            "model.safetensors",
            "trainer.pt",
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "manifest.json",
            "checksums.json",
        )
    ),
]


def test_the_table_has_every_file_of_a_stage(stopped):
    found = {str(p.relative_to(stopped)) for p in stopped.rglob("*") if p.is_file()}
    assert found - {".lock"} == set(TRAIN_FILES)


@pytest.mark.parametrize("name", TRAIN_FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_of_a_stage_is_named_or_mended(
    examples, policy, reference, stopped, finished, tmp_path, name, damage
):
    out = tmp_path / "train"
    shutil.copytree(stopped, out)
    file = out / name
    file.write_bytes(damage(file.read_bytes()))
    error = error_of(train, *examples, replace(CONFIG, epochs=2), Stage(policy, out, reference))
    if error is None:
        assert content(out) == content(finished)
    else:
        assert str(file) in error
        assert any(word in error for word in ("remove", "delete", "estore"))
        assert "\n" not in error


@pytest.mark.parametrize("name", TRAIN_FILES)
@pytest.mark.parametrize("damage", [cut, emptied, zeroed])
def test_of_a_folder_without_checksums_damage_is_no_raw_error(
    examples, policy, reference, stopped, tmp_path, name, damage
):
    """Earlier versions wrote none: noise in the weights cannot be known there."""
    out = tmp_path / "train"
    shutil.copytree(stopped, out)
    for sums in out.glob("*/checksums.json"):
        sums.unlink()
    file = out / name
    if file.exists():
        file.write_bytes(damage(file.read_bytes()))
    error = error_of(train, *examples, replace(CONFIG, epochs=2), Stage(policy, out, reference))
    assert error is None or str(file) in error


def test_what_an_older_double_run_left_is_explained(examples, policy, reference, stopped, tmp_path):
    """Two processes wrote one folder: whose checkpoint and which lines are right is lost."""

    def resumed(change):
        out = tmp_path / change.__name__
        shutil.copytree(stopped, out)
        for sums in out.glob("*/checksums.json"):
            sums.unlink()
        change(out)
        return error_of(train, *examples, replace(CONFIG, epochs=2), Stage(policy, out, reference))

    def without_state(out):
        (out / "step-4" / "trainer.pt").unlink()

    def other_manifest(out):
        file = out / "step-4" / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "seed": 9}))

    def two_logs(out):
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        other = [{**row, "loss": row["loss"] + 1} for row in rows]
        both = "".join(
            json.dumps(row) + "\n" for pair in zip(rows, other, strict=True) for row in pair
        )
        (out / "metrics.jsonl").write_text(both)

    for change in (without_state, other_manifest, two_logs):
        error = resumed(change)
        assert "at the same time" in error, change
        assert "remove" in error.lower()

    def same_twice(out):
        lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
        (out / "metrics.jsonl").write_text("".join(line * 2 for line in lines))

    assert resumed(same_twice) is None
    lines = (tmp_path / "same_twice" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_a_log_that_was_removed_as_told_goes_on_where_training_does(
    examples, policy, reference, stopped, finished, tmp_path
):
    out = tmp_path / "train"
    shutil.copytree(stopped, out)
    (out / "metrics.jsonl").unlink()
    config, stage = replace(CONFIG, epochs=2), Stage(policy, out, reference)
    for _ in range(2):  # a second start finds a log that begins late
        train(*examples, config, stage)
        steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").open()]
        assert steps == [5, 6]
    last = "step-6/model.safetensors"
    assert (out / last).read_bytes() == (finished / last).read_bytes()


# --- the online loop


class Stopping(Reporter):
    """Ends the run at the last step of the second iteration's training."""

    @contextmanager
    def stage(self, name, total, unit):
        def advance(done, total=None, figures=None):
            if name.endswith("iteration-2/train") and done == total:
                raise Stopped

        yield advance


@dataclass(frozen=True)
class Loop:
    """A whole run that can be copied, damaged and gone on with."""

    micro: Any
    source: Path

    def go_on(self, run, reporter=None):
        recipe, sets = self.micro.recipe, self.micro.sets
        prepare(run, recipe)
        start = fine_tune(run, recipe, sets, Reporter())
        data = Data(sets.prompts, sets.validation, start.demonstrations)
        method = replace(self.micro.method, train=replace(self.micro.method.train, epochs=2))
        return iterate(
            start.policy,
            start.previous,
            data,
            "mdpo",
            method,
            recipe.iterate,
            run / "mdpo",
            reporter or Reporter(),
            cache=run / "reference.sqlite",
        )


@pytest.fixture(scope="module")
def loop(micro, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    shutil.copytree(micro.run, folder / "run")
    found = Loop(micro, folder / "run")
    with pytest.raises(Stopped):
        found.go_on(folder / "run", Stopping())
    assert len(step_folders(folder / "run/mdpo/iteration-2/train")) == 1
    return found


@pytest.fixture(scope="module")
def played(loop, tmp_path_factory):
    """What the run ends with where nothing is damaged."""
    run = tmp_path_factory.mktemp("played") / "run"
    shutil.copytree(loop.source, run)
    loop.go_on(run)
    return outcome(run)


def outcome(run):
    result = json.loads((run / "mdpo/iteration-2/result.json").read_text())
    last = step_folders(run / "mdpo/iteration-2/train")[-1][1]
    return result, (last / "model.safetensors").read_bytes()


LOOP_FILES = [
    "manifest.json",
    "reference.sqlite",
    "base/config.json",
    "base/model.safetensors",
    "base/tokenizer.json",
    "sft/demonstrations.jsonl",
    "sft/train/STEP/model.safetensors",
    "sft/train/STEP/config.json",
    "sft/train/STEP/manifest.json",
    "sft/train/STEP/tokenizer.json",
    "mdpo/iteration-1/result.json",
    "mdpo/iteration-1/selection.json",
    "mdpo/iteration-1/rollouts.jsonl",
    "mdpo/iteration-1/validation/before.jsonl",
    "mdpo/iteration-1/train/metrics.jsonl",
    "mdpo/iteration-1/train/STEP/model.safetensors",
    "mdpo/iteration-1/train/STEP/config.json",
    "mdpo/iteration-2/rollouts.jsonl",
    "mdpo/iteration-2/selection.json",
    "mdpo/iteration-2/train/metrics.jsonl",
    "mdpo/iteration-2/train/STEP/trainer.pt",
    "mdpo/iteration-2/train/STEP/model.safetensors",
]


@pytest.mark.parametrize("name", LOOP_FILES)
@pytest.mark.parametrize(
    "damage", [cut, *(pytest.param(x, marks=pytest.mark.slow) for x in DAMAGES[1:])]
)
def test_a_damaged_file_of_a_run_is_named_or_mended(loop, played, tmp_path, name, damage):
    run = tmp_path / "run"
    shutil.copytree(loop.source, run)
    folder, step, rest = name.partition("STEP/")
    file = step_folders(run / folder)[-1][1] / rest if step else run / name
    file.write_bytes(damage(file.read_bytes()))
    error = error_of(loop.go_on, run)
    if error is None:
        assert outcome(run) == played
    else:
        assert str(file) in error
        assert any(word in error for word in ("remove", "delete", "estore"))
        assert "\n" not in error
