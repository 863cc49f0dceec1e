"""`mathenv iterate` end to end on a micro recipe: files, tables, resume, wandb offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = """
model = "tiny"
learner = "sft"
threads = 1

[tiny]
hidden = 32
heads = 1
layers = 1
intermediate = 64

[problems]
source = "words"
demonstrations = 24
prompts = 6
validation = 4
test = 6

[sft]
lr = 1e-2
epochs = 2
checkpoints = 2

[iterate]
iterations = 2

[iterate.sampling]
max_turn_tokens = 16
max_tokens = 200

[methods.sft.train]
lr = 1e-3
epochs = 1
checkpoints = 1
"""


def mathenv(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *words]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=170
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("iterate")
    recipe = folder / "micro.toml"
    recipe.write_text(RECIPE)
    words = ("iterate", "--recipe", str(recipe), "--out", str(folder / "run"))
    finished = mathenv(*words, "--seeds", "0", "1", "--wandb", WANDB_MODE="offline")
    assert finished.returncode == 0, finished.stderr
    return folder, words, finished


def test_everything_is_in_the_run_folder(done):
    folder, _, finished = done
    run: Path = folder / "run"
    names = {"results.md", "results.json", "curve.png", "report.html", "seed-0", "seed-1"}
    assert names <= {p.name for p in run.iterdir()}
    manifest = json.loads((run / "seed-1" / "manifest.json").read_text())
    assert manifest["recipe"]["seed"] == 1
    assert manifest["environment"]["packages"]["torch"]
    for iteration in (1, 2):
        result = run / "seed-0" / "sft" / f"iteration-{iteration}" / "result.json"
        assert 0.0 <= json.loads(result.read_text())["validation"] <= 1.0
    results = json.loads((run / "results.json").read_text())
    stages = [stage["stage"] for stage in results["runs"][0]["stages"]]
    assert stages == ["SFT", "sft, iteration 1", "sft, iteration 2"]
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "pass@1" in finished.stdout


def test_wandb_logs_offline(done):
    folder, _, _ = done
    runs = list((folder / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    assert runs
    assert runs[0].stat().st_size > 0


def test_the_same_command_changes_nothing(done):
    folder, words, _ = done
    before = (folder / "run" / "results.md").read_text()
    weights = next((folder / "run" / "seed-0" / "sft").rglob("model.safetensors"))
    stamp = weights.stat().st_mtime_ns
    again = mathenv(*words, "--seeds", "0", "1")
    assert again.returncode == 0, again.stderr
    assert (folder / "run" / "results.md").read_text() == before
    assert weights.stat().st_mtime_ns == stamp


def test_another_recipe_is_refused(done):
    _, words, _ = done
    refused = mathenv(*words, "--sft.lr", "0.5")
    assert refused.returncode == 2
    assert "another recipe" in refused.stderr
    assert "sft" in refused.stderr


def test_wrong_learner_is_said_at_once(done):
    _, words, _ = done
    refused = mathenv(*words, "--learners", "ppo")
    assert refused.returncode == 2
    assert "no learner is called 'ppo'" in refused.stderr


def test_wrong_key_in_a_recipe_is_named(tmp_path):
    recipe = tmp_path / "wrong.toml"
    recipe.write_text("[iterate]\niteration = 3\n")
    refused = mathenv("iterate", "--recipe", str(recipe))
    assert refused.returncode == 2
    assert "iteration" in refused.stderr
