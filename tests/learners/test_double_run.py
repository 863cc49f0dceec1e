"""Two runs in one folder: the second is told who is there, and the first one's files stay whole."""

import os
import pickle
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from agents.oracle import OracleAgent
from benchmarks.experiment import run_experiment
from benchmarks.runner import run_bench
from benchmarks.studies.ablation.run import run_all
from benchmarks.studies.ablation.variants import QUICK
from benchmarks.suites import find_suites
from learners import make_learner
from learners.iterate import Data, iterate
from learners.learner import LearnerConfig
from learners.preferences import PairRules
from learners.reporter import Reporter
from learners.run import fine_tune
from learners.training.train import Stage, TrainConfig, train
from mathenv.errors import ConfigError
from mathenv.locking import hold

CONFIG = TrainConfig(lr=3e-3, batch_size=4, checkpoints=3)
REFUSED = r"{} is in use by process \d+ on \S+ since .*Wait for that one"


@pytest.fixture(scope="module")
def given(make_trajectory):
    learner = make_learner("mdpo", LearnerConfig(pairs=PairRules(per_problem=2)))
    trajectories = [make_trajectory(f"p{p}", i < 2, sample=i) for p in range(6) for i in range(4)]
    examples, _ = learner.examples(trajectories, seed=0)
    return learner, examples


def in_another_process(folder):
    """Hold a folder as another run does."""
    code = (
        "import sys\nfrom mathenv.locking import hold\n"
        "with hold(sys.argv[1]):\n    print(flush=True)\n    sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    return process


@pytest.fixture
def occupied(tmp_path):
    process = in_another_process(tmp_path / "run")
    yield tmp_path / "run"
    process.kill()
    process.wait()


def test_every_kind_of_run_folder_is_held_by_one(occupied, given, policy, micro):
    recipe, start = micro.recipe, micro.start
    data = Data(micro.sets.prompts, micro.sets.validation, start.demonstrations)
    for work in (
        lambda: train(*given, CONFIG, Stage(policy, occupied, policy)),
        lambda: train(*given, replace(CONFIG, processes=2), Stage(policy, occupied, policy)),
        lambda: iterate(start.policy, policy, data, "mdpo", micro.method, recipe.iterate, occupied),
        lambda: fine_tune(occupied, recipe, micro.sets, Reporter()),
        lambda: run_experiment(recipe, occupied, ["mdpo"], [0], Reporter()),
        lambda: run_all([], recipe, QUICK, (0,), occupied, Reporter()),
        lambda: run_bench(find_suites("words")[0], OracleAgent, occupied, limit=2),
    ):
        with pytest.raises(ConfigError, match=REFUSED.format(re.escape(str(occupied)))):
            work()
    assert [p.name for p in occupied.iterdir()] == [".lock"]


def refused(learner, examples, config, stage):
    with pytest.raises(ConfigError, match="is in use by process"):
        train(learner, examples, config, stage)


def trained(learner, examples, config, stage):
    train(learner, examples, config, stage)


def test_of_processes_that_train_together_one_locks_and_all_are_told(
    occupied, given, policy, launch, tmp_path
):
    assert launch(refused, *given, CONFIG, Stage(policy, occupied, policy)) == [0, 0]
    assert [p.name for p in occupied.iterdir()] == [".lock"]
    free = Stage(policy, tmp_path / "free", policy)
    assert launch(trained, *given, CONFIG, free) == [0, 0]
    assert not (free.out / ".lock").exists()


SLOWLY = """
import pickle, sys, time
from learners.training.train import train
given = pickle.load(open(sys.argv[1], "rb"))
def on_step(step, steps, metrics):
    print(step, flush=True)
    time.sleep(100 if step == 2 else 0)
train(*given, on_step=on_step)
"""


def test_a_requeued_job_waits_for_none_and_damages_nothing(given, policy, tmp_path):
    """The first run is in the middle, the second refused, the first killed, the second goes on."""
    stage = Stage(policy, tmp_path / "run", policy)
    (tmp_path / "job").write_bytes(pickle.dumps((*given, CONFIG, stage)))
    first = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, str(tmp_path / "job")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert [first.stdout.readline() for _ in range(2)] == ["1\n", "2\n"]
        before = {p: p.read_bytes() for p in stage.out.rglob("*") if p.is_file()}
        with pytest.raises(ConfigError, match=f"in use by process {first.pid} on"):
            train(*given, CONFIG, stage)
        assert {p: p.read_bytes() for p in stage.out.rglob("*") if p.is_file()} == before
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    steps = []
    train(*given, CONFIG, stage, on_step=lambda step, *_: steps.append(step))
    assert steps == [2, 3]
    with hold(stage.out):
        pass
