"""Processes that a program starts for a stage and listens to, really started."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from learners import LearnerConfig, make_learner
from learners.preferences import PairRules
from learners.training.checkpoint import read_manifest
from learners.training.launch import processes_for, run_together
from learners.training.parallel import Devices
from learners.training.train import Stage, TrainConfig, train
from mathenv.errors import ConfigError, TrainingError

CONFIG = TrainConfig(lr=1e-3, epochs=2, batch_size=5, checkpoints=2, token_budget=60)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def examples(make_trajectory):
    rows = [make_trajectory(f"p{p}", i < 2, sample=i) for p in range(7) for i in range(4)]
    learner = make_learner("mdpo", LearnerConfig(pairs=PairRules(per_problem=2)))
    return learner.examples(rows, seed=0)[0]


def test_same_weights_as_one_process_and_every_step_is_told(
    examples, policy, reference, tmp_path, two_threads
):
    learner = make_learner("mdpo")
    steps = {1: [], 2: []}
    weights = {}
    for count, told in steps.items():
        stage = Stage(policy, tmp_path / str(count), reference)
        config = replace(CONFIG, processes=count)
        *_, last = train(
            learner, examples, config, stage, on_step=lambda *step, told=told: told.append(step)
        )
        weights[count] = load_file(last / "model.safetensors")
        assert read_manifest(last)["processes"] == count
    for name, value in weights[1].items():
        torch.testing.assert_close(weights[2][name], value, rtol=0, atol=1e-5)
    assert [step[:2] for step in steps[2]] == [step[:2] for step in steps[1]]
    assert steps[2][-1][2]["loss"] == pytest.approx(steps[1][-1][2]["loss"], abs=1e-4)


def test_what_one_process_refuses_is_raised_here(
    examples, policy, reference, tmp_path, two_threads
):
    config = replace(CONFIG, processes=2, lr=1e30)
    stage = Stage(policy, tmp_path / "train", reference)
    with pytest.raises(TrainingError, match=r"step \d+: .*p\d"):
        train(make_learner("mdpo"), examples, config, stage)


def die(rank, tell):
    tell(os.environ["RANK"])
    if os.environ["RANK"] == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def count_threads(tell):
    Devices()  # accelerate chooses a number where it finds none
    tell(torch.get_num_threads())
    signal.pause()


def test_processes_share_the_threads(two_threads):
    with pytest.raises(Told) as told:
        run_together(2, count_threads, on_message=stop)
    assert told.value.args == (1,)


class Told(Exception):
    pass


def stop(*values):
    raise Told(*values)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_dies_ends_all(rank, two_threads):
    told = []
    with pytest.raises(TrainingError, match="a process that trains died"):
        run_together(2, die, rank, on_message=told.append)
    assert rank in told


def test_one_process_per_thread_at_most_and_none_under_a_launcher(two_threads, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("here GPUs are the limit")
    assert [processes_for(n) for n in (1, 2, 8)] == [1, 2, 2]
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes_for(8) == 1


def test_no_processes_is_refused():
    with pytest.raises(ConfigError, match="processes must be at least 1"):
        TrainConfig(processes=0)
