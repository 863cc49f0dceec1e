"""`mathenv iterate` end to end on a micro recipe: files, tables, resume, wandb offline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)  # seconds of work; a busy machine may take minutes

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
        command, capture_output=True, text=True, env={**os.environ, **environment}, timeout=800
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
    names = {"results.md", "experiment.json", "curve.png", "report.html", "seed-0", "seed-1"}
    assert names <= {p.name for p in run.iterdir()}
    manifest = json.loads((run / "seed-1" / "manifest.json").read_text())
    assert manifest["recipe"]["seed"] == 1
    assert manifest["environment"]["packages"]["torch"]
    for iteration in (1, 2):
        result = run / "seed-0" / "sft" / f"iteration-{iteration}" / "result.json"
        assert 0.0 <= json.loads(result.read_text())["validation"] <= 1.0
    results = json.loads((run / "experiment.json").read_text())
    stages = [stage["stage"] for stage in results["runs"][0]["stages"]]
    assert stages == ["SFT", "sft, iteration 1", "sft, iteration 2"]
    assert (run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "pass@1" in finished.stdout


def read(file: Path):
    return json.loads(file.read_text())


def test_wandb_logs_offline(done, logged_offline):
    """Every seed, learner and iteration has keys of its own, and what is there is right."""
    folder, _, _ = done
    run: Path = folder / "run"
    logged = logged_offline(run)[0]
    assert logged.id == (run / "wandb-id").read_text().strip()
    assert logged.settings["methods"]["sft"]["train"]["lr"] == 1e-3
    stages = ["sft/train", "sft/iteration-1/train", "sft/iteration-2/train"]
    for name in (f"seed-{seed}/{stage}" for seed in (0, 1) for stage in stages):
        steps = [json.loads(x) for x in (run / name / "metrics.jsonl").read_text().splitlines()]
        assert logged.x_axes[f"{name}/*"] == f"{name}/step"
        for key in ("step", "loss", "logps/chosen", "learning_rate", "num_tokens"):
            expected = [row[key] for row in steps]
            assert logged.values(f"{name}/{key}") == pytest.approx(expected, rel=1e-5)
    remarks = logged.values("remark")
    for name in (f"seed-{seed}/sft/iteration-{i}" for seed in (0, 1) for i in (1, 2)):
        result = read(run / name / "result.json")
        assert logged.values(f"{name}/validation/accuracy") == [result["validation"]]
        assert logged.values(f"{name}/validation/before") == [result["validation_before"]]
        assert any(text.startswith(f"{name}: ") and "examples" in text for text in remarks)
        assert {f"{name}: {warning}" for warning in result["warnings"]} <= set(remarks)
    assert not [
        key for key in logged.keys - {"remark"} if not key.startswith(("seed-0/", "seed-1/"))
    ]


def test_the_same_command_changes_nothing(done, logged_offline):
    folder, words, _ = done
    before = (folder / "run" / "results.md").read_text()
    weights = next((folder / "run" / "seed-0" / "sft").rglob("model.safetensors"))
    stamp = weights.stat().st_mtime_ns
    again = mathenv(*words, "--seeds", "0", "1", "--wandb", WANDB_MODE="offline")
    assert again.returncode == 0, again.stderr
    assert (folder / "run" / "results.md").read_text() == before
    assert weights.stat().st_mtime_ns == stamp
    first, second = logged_offline(folder / "run")
    assert second.id == first.id  # one run there, of which nothing is logged twice
    assert second.keys <= {"remark"}


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
