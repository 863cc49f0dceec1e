"""`mathenv train --wandb`, offline, stopped and resumed."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from agents.tiny import TinyConfig, make_tiny

pytestmark = pytest.mark.timeout(900)  # seconds of work; a busy machine may take minutes


def mathenv(*words):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "WANDB_MODE": "offline"},
        timeout=800,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_train_logs_under_trl_names_and_a_resumed_run_is_the_same_run(tmp_path, logged_offline):
    demonstrations, out = str(tmp_path / "demos"), tmp_path / "sft"
    mathenv("collect", "words", "--limit", "8", "--out", demonstrations)
    config = TinyConfig(hidden=32, layers=1, heads=1, intermediate=64)
    policy = make_tiny(tmp_path / "tiny", config=config)
    words = ("train", "sft", "--trajectories", demonstrations, "--policy", str(policy))
    words += ("--out", str(out), "--batch-size", "2", "--checkpoints", "2", "--seed", "3")
    mathenv(*words, "--wandb")
    shutil.rmtree(out / "step-4")  # as if killed before it was written
    assert str(out / "step-4") in mathenv(*words, "--wandb")

    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, second = logged_offline(out)
    assert first.id == second.id == (out / "wandb-id").read_text().strip()
    assert first.settings["learner"] == "sft"
    assert first.settings["seed"] == 3
    assert first.settings["optim"]["batch_size"] == 2
    assert first.settings["policy"] == str(policy)
    assert first.x_axes["train/*"] == "train/step"
    for logged, steps in ((first, [1, 2, 3, 4]), (second, [3, 4])):
        assert logged.values("train/step") == steps
        for key in ("loss", "logps/chosen", "grad_norm", "learning_rate", "num_tokens"):
            expected = [metrics[step - 1][key] for step in steps]
            assert logged.values(f"train/{key}") == pytest.approx(expected, rel=1e-5)
        assert any("examples 8" in text for text in logged.values("remark"))
