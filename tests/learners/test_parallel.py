"""Training in several processes: really started, with gloo between them on the CPU."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from benchmarks.cli import main
from learners import KTOConfig, LearnerConfig, make_learner
from learners.preferences import Example, PairRules, Sample
from learners.training.checkpoint import load_state, read_manifest, step_folders
from learners.training.parallel import Devices, shares
from learners.training.train import Stage, TrainConfig, train
from mathenv.errors import ConfigError, MathEnvError
from mathenv.store import TrajectoryStore

PAIRS = PairRules(per_problem=2)
# Steps of 5, 5 and 2 pairs, twice, in passes of one or two.
CONFIG = TrainConfig(
    lr=1e-3, epochs=2, batch_size=5, checkpoints=2, token_budget=90, betas=(0.9, 0.98)
)
LEARNERS = {
    "mdpo": LearnerConfig(eta=0.2, nll_coef=0.5, pairs=PAIRS),
    "mkto": KTOConfig(eta=0.2, kl_sequences=7, pairs=PAIRS),  # a baseline over all processes
    "sft": LearnerConfig(pairs=PAIRS),  # tokens as denominator
    "grpo": None,  # log-probs per token
}


def learner_of(name):
    return make_learner(name, *(x for x in [LEARNERS.get(name)] if x))


def run(name, trajectories, config, stage):
    learner = learner_of(name)
    examples, _ = learner.examples(trajectories, seed=0)
    train(learner, examples, config, stage)


def run_all(names, trajectories, config, stage):
    """Several learners one after another, which is one start of processes."""
    for name in names:
        run(name, trajectories, config, replace(stage, out=stage.out / name))


def run_until_killed(name, trajectories, config, stage):
    """Stop before the last step: the one who kills may come late."""
    learner = learner_of(name)
    examples, _ = learner.examples(trajectories, seed=0)
    train(learner, examples, config, stage, on_step=lambda step, *_: step < 5 or signal.pause())


def run_to_an_error(name, trajectories, config, stage):
    """Keep what each process says was wrong."""
    with pytest.raises(MathEnvError) as caught:
        run(name, trajectories, config, stage)
    stage.out.with_name(f"error-{os.environ['RANK']}").write_text(str(caught.value))


@pytest.fixture(scope="module")
def trajectories(make_trajectory):
    return [make_trajectory(f"p{p}", i < 2, sample=i, turns=2) for p in range(6) for i in range(4)]


@pytest.fixture(scope="module")
def alone(trajectories, policy, reference, tmp_path_factory):
    """What one process makes of it."""
    out = tmp_path_factory.mktemp("alone")
    run_all(LEARNERS, trajectories, CONFIG, Stage(policy, out, reference, seed=3))
    return out


@pytest.fixture
def stage(policy, reference, tmp_path):
    return Stage(policy, tmp_path / "train", reference, seed=3)


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(found, expected, within=1e-5):
    steps = [step for step, _ in step_folders(expected)]
    assert [step for step, _ in step_folders(found)] == steps
    for step in steps:
        a, b = (load_file(out / f"step-{step}" / "model.safetensors") for out in (found, expected))
        assert a.keys() == b.keys()
        assert max((a[k] - b[k]).abs().max().item() for k in a) <= within


# --- the same as one process


@pytest.mark.parametrize("shard", [False, True], ids=["whole", "sharded"])
def test_two_processes_end_with_the_weights_of_one(
    launch, alone, trajectories, stage, policy, shard
):
    config = replace(CONFIG, shard=shard)
    assert launch(run_all, list(LEARNERS), trajectories, config, stage) == [0, 0]
    for name in LEARNERS:
        assert_same_weights(stage.out / name, alone / name)
        for row, expected in zip(rows(stage.out / name), rows(alone / name), strict=True):
            assert row == pytest.approx(expected, rel=1e-3, abs=1e-5)
    moved = load_file(alone / "mdpo" / "step-6" / "model.safetensors")
    before = load_file(policy / "model.safetensors")
    assert max((moved[k] - before[k]).abs().max().item() for k in before) > 1e-3


def test_a_process_without_an_example_of_the_step_keeps_up(launch, trajectories, stage, tmp_path):
    """Three processes, two pairs a step; and one of them needs two passes, the others none."""
    config = replace(CONFIG, batch_size=2, epochs=1, token_budget=1, checkpoints=1)
    run("mdpo", trajectories[:12], config, replace(stage, out=tmp_path / "alone"))
    for shard in (False, True):
        out = replace(stage, out=tmp_path / f"{shard}")
        settings = replace(config, shard=shard)
        codes = launch(run, "mdpo", trajectories[:12], settings, out, count=3)
        assert codes == [0, 0, 0]
        assert_same_weights(out.out, tmp_path / "alone")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_near_and_weights_stay_float32(
    launch, alone, trajectories, stage, tmp_path, precision
):
    config = replace(CONFIG, precision=precision)
    run("mdpo", trajectories, config, replace(stage, out=tmp_path / "one"))
    for shard in (False, True):
        out = tmp_path / f"{shard}"
        settings = replace(config, shard=shard)
        codes = launch(run, "mdpo", trajectories, settings, replace(stage, out=out))
        assert codes == [0, 0]
        found = [row["loss"] for row in rows(out)]
        assert found == pytest.approx([row["loss"] for row in rows(tmp_path / "one")], rel=0.02)
        assert found == pytest.approx([row["loss"] for row in rows(alone / "mdpo")], rel=0.05)
        tensors = load_file(out / "step-6" / "model.safetensors")
        assert {t.dtype for t in tensors.values()} == {torch.float32}


def test_a_reference_is_evaluated_in_the_precision_in_which_the_policy_is(
    launch, trajectories, stage, tmp_path
):
    """Policy and reference are one model: what is between them is what batching rounds."""
    for shard in (False, True):
        config = replace(CONFIG, epochs=1, precision="bf16", shard=shard, token_budget=1)
        out = replace(stage, out=tmp_path / f"{shard}", reference=stage.policy)
        assert launch(run, "mdpo", trajectories, config, out) == [0, 0]
        first = rows(out.out)[0]
        assert max(abs(first[f"rewards/{side}"]) for side in ("chosen", "rejected")) == 0


# --- who writes, and what


def test_a_sharded_run_writes_whole_checkpoints_once(launch, trajectories, stage, alone, policy):
    config = replace(CONFIG, shard=True, recompute_every=1)
    assert launch(run, "mdpo", trajectories, config, stage) == [0, 0]
    assert_same_weights(stage.out, alone / "mdpo")
    assert [row["step"] for row in rows(stage.out)] == list(range(1, 7))
    folder = stage.out / "step-6"
    names = {p.name for p in (alone / "mdpo" / "step-6").iterdir()}
    assert {p.name for p in folder.iterdir()} == names
    assert read_manifest(folder)["processes"] == 2
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert sum(p.numel() for p in model.parameters()) == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(policy).parameters()
    )
    found, expected = (load_state(f)["optimizer"] for f in (folder, alone / "mdpo" / "step-6"))
    assert found["param_groups"] == expected["param_groups"]
    for index, moments in expected["state"].items():
        for name, value in moments.items():
            assert torch.allclose(found["state"][index][name], value, rtol=1e-3, atol=1e-5)


# --- killed


@pytest.mark.parametrize("shard", [False, True], ids=["whole", "sharded"])
def test_killed_it_goes_on_with_as_many_processes_or_others(
    launch, alone, trajectories, stage, tmp_path, shard
):
    config = replace(CONFIG, shard=shard, checkpoints=6)  # after each step
    pattern = str(stage.out / "metrics.jsonl")
    kill = (pattern, 3, (0, 1))
    assert launch(run_until_killed, "mdpo", trajectories, config, stage, kill=kill) == [-9, -9]
    assert 2 <= step_folders(stage.out)[-1][0] < 6
    killed = tmp_path / "killed"
    shutil.copytree(stage.out, killed)
    assert launch(run, "mdpo", trajectories, config, stage) == [0, 0]
    # One process goes on with what two have begun, and shards with what was whole.
    run("mdpo", trajectories, config, replace(stage, out=killed))
    for out in (stage.out, killed):
        for name in ("step-3", "step-6"):
            a, b = (load_file(f / name / "model.safetensors") for f in (out, alone / "mdpo"))
            assert max((a[k] - b[k]).abs().max().item() for k in a) <= 1e-5
        assert [row["step"] for row in rows(out)] == list(range(1, 7))


def test_shards_go_on_with_what_one_process_began(launch, alone, trajectories, stage):
    shutil.copytree(alone / "mdpo", stage.out)
    shutil.rmtree(stage.out / "step-6")
    config = replace(CONFIG, shard=True)
    # Three processes do not divide the rows of any weight.
    assert launch(run, "mdpo", trajectories, config, stage, count=3) == [0, 0, 0]
    assert_same_weights(stage.out, alone / "mdpo")
    assert read_manifest(stage.out / "step-3")["processes"] == 1
    assert read_manifest(stage.out / "step-6")["processes"] == 3


def test_if_one_process_dies_the_other_does_not_hang(launch, trajectories, stage):
    pattern = str(stage.out / "metrics.jsonl")
    config = replace(CONFIG, epochs=200)
    codes = launch(run, "mdpo", trajectories, config, stage, kill=(pattern, 3, (1,)))
    assert codes == [1, -9]


# --- errors


def with_broken_token(trajectories, folder):
    """Give one trajectory a token that no other has, and break its embedding, not its logit."""
    token = 310
    *others, last = trajectories
    tensors = load_file(folder / "model.safetensors")
    embeddings = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embeddings.clone()
    embeddings[token] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    ids = (*last.tokens.ids[:-2], token, last.tokens.ids[-1])
    return [*others, replace(last, tokens=replace(last.tokens, ids=ids))], last.key


@pytest.mark.parametrize("part", ["policy", "reference"])
@pytest.mark.parametrize("shard", [False, True], ids=["whole", "sharded"])
def test_one_process_nan_is_an_error_of_all_that_names_the_trajectory(
    launch, trajectories, stage, tmp_path, part, shard
):
    broken = tmp_path / "broken"
    shutil.copytree(getattr(stage, part), broken)
    bad, key = with_broken_token(trajectories, broken)
    config = replace(CONFIG, shard=shard, batch_size=99)
    codes = launch(run_to_an_error, "mdpo", bad, config, replace(stage, **{part: broken}))
    assert codes == [0, 0]
    first, second = (tmp_path / f"error-{rank}" for rank in range(2))
    assert first.read_text() == second.read_text()
    assert "not finite" in first.read_text()
    assert key in first.read_text()
    assert step_folders(stage.out) == []


def run_other_seeds(trajectories, config, stage):
    run_to_an_error("mdpo", trajectories, config, replace(stage, seed=int(os.environ["RANK"])))


def test_processes_with_other_settings_are_refused(launch, trajectories, stage, tmp_path):
    assert launch(run_other_seeds, trajectories, CONFIG, stage) == [0, 0]
    for rank in range(2):
        assert "different data or settings" in (tmp_path / f"error-{rank}").read_text()


def test_a_launcher_that_says_otherwise_is_refused(trajectories, stage, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match=r"--precision bf16"):
        run("mdpo", trajectories, CONFIG, stage)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match=r"--fsdp_version 2"):
        run("mdpo", trajectories, CONFIG, stage)


# --- pieces


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_all_examples_and_about_as_long(count):
    rng = random.Random(0)
    lengths = [rng.randint(2, 90) for _ in range(40)]
    examples = [Example((Sample(f"{i}", (0,) * n, (True,) * n),)) for i, n in enumerate(lengths)]
    dealt = shares(examples, count)
    assert sorted(e.samples[0].key for share in dealt for e in share) == sorted(
        e.samples[0].key for e in examples
    )
    sizes = [sum(e.tokens for e in share) for share in dealt]
    assert max(sizes) - min(sizes) <= max(lengths)
    assert shares(examples, count) == dealt


def test_one_process_is_all_there_is():
    devices = Devices()
    assert (devices.rank, devices.count, devices.is_main) == (0, 1, True)
    assert devices.gather("mine") == devices.together(lambda: "mine") == ["mine"]
    devices.wait()
    devices.close()


# --- as a user starts it

TORCHRUN = ("torch.distributed.run", "--nproc_per_node", "2", "--master_port", "{port}", "-m")
# Without a GPU `--multi_gpu` starts processes on the CPU; `--cpu` would start one.
ACCELERATE = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "{port}", "-m"),
)
FSDP2 = tuple(
    part
    for word in ACCELERATE
    for part in (("--use_fsdp", "--fsdp_version", "2") if word == "--multi_gpu" else (word,))
)


def words_of(files, out):
    stored, policy = files
    settings = "--lr 1e-3 --batch-size 5 --checkpoints 1 --token-budget 200"
    where = f"--trajectories {stored} --policy {policy} --out {out}"
    return ["train", "sft", *where.split(), *settings.split()]


def command(words):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 0


@pytest.fixture(scope="module")
def files(trajectories, policy, tmp_path_factory):
    """Demonstrations without tokens, as the oracle's are."""
    file = tmp_path_factory.mktemp("stored") / "trajectories.jsonl"
    with TrajectoryStore(file) as store:
        for trajectory in trajectories:
            store.append(replace(trajectory, tokens=None))
    return file, policy


def assert_trained_by_two(files, tmp_path, printed):
    assert [line for line in printed.splitlines() if line.startswith(str(tmp_path))] == [
        str(tmp_path / "two" / "step-5")
    ]
    assert read_manifest(tmp_path / "two" / "step-5")["processes"] == 2
    assert (tmp_path / "two" / "selection.json").exists()
    command(words_of(files, tmp_path / "one"))
    assert_same_weights(tmp_path / "two", tmp_path / "one")


def test_the_command_in_two_processes(launch, files, tmp_path):
    assert launch(command, words_of(files, tmp_path / "two")) == [0, 0]
    assert_trained_by_two(files, tmp_path, launch.wrote(0) + launch.wrote(1))
    assert "problems" not in launch.wrote(1)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "launcher", [TORCHRUN, ACCELERATE, FSDP2], ids=["torchrun", "accelerate", "accelerate-fsdp2"]
)
def test_the_command_under_a_launcher(files, tmp_path, launcher):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    start = [sys.executable, "-m", *(word.format(port=port) for word in launcher), "benchmarks"]
    done = subprocess.run(
        [*start, *words_of(files, tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert_trained_by_two(files, tmp_path, done.stdout)
