import json
import math
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from learners import make_learner
from learners.learner import LearnerConfig
from learners.numerics.model_check import head_use
from learners.preferences import PairRules
from learners.training.checkpoint import drop_state, load_state, read_manifest, step_folders
from learners.training.parallel import Devices, Policy
from learners.training.train import Stage, TrainConfig, train
from mathenv.errors import ConfigError, DataError, TrainingError

CONFIG = TrainConfig(lr=3e-3, epochs=2, batch_size=4, checkpoints=3, betas=(0.9, 0.98))
LOSS = LearnerConfig(eta=0.2, nll_coef=0.5, pairs=PairRules(per_problem=2))


@pytest.fixture(scope="module")
def trajectories(make_trajectory):
    return [make_trajectory(f"p{p}", i < 2, sample=i, turns=2) for p in range(9) for i in range(4)]


@pytest.fixture(scope="module")
def mdpo():
    return make_learner("mdpo", LOSS)


@pytest.fixture(scope="module")
def examples(mdpo, trajectories):
    found, _ = mdpo.examples(trajectories, seed=0)
    assert len(found) == 18  # 5 steps an epoch, the last of 2 pairs
    return found


@pytest.fixture
def stage(policy, reference, tmp_path):
    return Stage(policy, tmp_path / "train", reference, seed=3)


@pytest.fixture(scope="module")
def trained(mdpo, examples, policy, reference, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "train"
    train(mdpo, examples, CONFIG, Stage(policy, out, reference, seed=3))
    return out


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# --- what it writes


def test_checkpoints_are_evenly_spaced_and_the_last_step_is_one(trained):
    assert [step for step, _ in step_folders(trained)] == [3, 7, 10]
    assert [row["step"] for row in rows(trained)] == list(range(1, 11))


def test_a_checkpoint_loads_with_from_pretrained_and_is_another_policy(trained, policy):
    folder = trained / "step-10"
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(policy).chat_template
    ids = torch.tensor([tokenizer("What is 1 + 1?")["input_ids"]])
    before = AutoModelForCausalLM.from_pretrained(policy)
    with torch.no_grad():
        assert not torch.allclose(model(ids).logits, before(ids).logits, atol=1e-3)


def test_the_manifest_says_how_it_was_made(trained, policy):
    manifest = read_manifest(trained / "step-7")
    assert manifest["learner"] == "mdpo"
    assert (manifest["step"], manifest["steps"], manifest["seed"]) == (7, 10, 3)
    assert manifest["loss"]["eta"] == 0.2
    assert manifest["loss"]["pairs"]["per_problem"] == 2
    assert manifest["config"]["lr"] == 3e-3
    assert manifest["policy"] == "/".join(policy.parts[-3:])
    assert manifest["reference"].endswith("base")
    assert len(manifest["data"]) == 16


def test_metrics_carry_trl_names_and_the_first_step_starts_at_the_reference(
    mdpo, examples, policy, tmp_path
):
    out = tmp_path / "train"
    train(mdpo, examples, replace(CONFIG, epochs=1), Stage(policy, out, policy))
    first = rows(out)[0]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert first["loss"] == pytest.approx(math.log(2) + 0.5 * first["nll_loss"], rel=1e-4)
    names = {"rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen"}
    assert names <= set(first)


def test_tokens_are_counted_from_the_first_step_on_as_trl_does(mdpo, examples, trained):
    counts = [row["num_tokens"] for row in rows(trained)]
    assert all(later > earlier > 0 for earlier, later in pairwise(counts))
    assert counts[4] == sum(e.tokens for e in examples)  # an epoch
    assert counts[-1] == 2 * counts[4]
    # No float: those are logged with six digits, and a run sees more tokens than that.
    assert {type(count) for count in counts} == {int}


def test_a_resumed_run_counts_tokens_on_and_to_the_last_one(mdpo, examples, stage):
    with pytest.raises(KeyboardInterrupt):
        train(mdpo, examples, CONFIG, stage, on_step=stopping(4))
    seen = {}
    train(mdpo, examples, CONFIG, stage, on_step=lambda n, _, figures: seen.update({n: figures}))
    assert min(seen) == 4
    assert [row["num_tokens"] for row in rows(stage.out)][3:] == [
        seen[step]["num_tokens"] for step in range(4, 11)
    ]
    assert seen[10]["num_tokens"] == 2 * sum(e.tokens for e in examples)


def test_the_loss_falls_and_the_margin_grows(trained):
    found = rows(trained)
    assert found[-1]["loss"] < found[0]["loss"]
    assert found[-1]["rewards/margins"] > found[0]["rewards/margins"] + 0.1


@pytest.mark.parametrize(
    ("schedule", "rate"),
    [
        ("constant", lambda p: 1.0),
        ("linear", lambda p: 1 - p),
        ("cosine", lambda p: (1 + math.cos(math.pi * p)) / 2),
    ],
)
def test_learning_rates_follow_warmup_and_schedule(mdpo, examples, stage, schedule, rate):
    config = replace(CONFIG, lr=1e-3, schedule=schedule, warmup=0.4)
    train(mdpo, examples, config, stage)
    expected = [1e-3 * step / 4 for step in (1, 2, 3)]
    expected += [1e-3 * rate((step - 4) / 7) for step in range(4, 11)]  # 0 would be step 11
    assert [row["learning_rate"] for row in rows(stage.out)] == pytest.approx(expected, abs=1e-9)


def test_the_first_step_of_a_run_of_one_step_is_at_the_full_rate(mdpo, examples, stage):
    train(mdpo, examples, replace(CONFIG, epochs=1, batch_size=99), stage)
    assert [row["learning_rate"] for row in rows(stage.out)] == [3e-3]


def test_betas_weight_decay_and_rate_reach_the_optimizer(mdpo, examples, stage):
    train(mdpo, examples, replace(CONFIG, weight_decay=0.3), stage)
    group = load_state(stage.out / "step-10")["optimizer"]["param_groups"][0]
    assert tuple(group["betas"]) == (0.9, 0.98)
    assert group["weight_decay"] == 0.3


def test_the_gradient_is_clipped(mdpo, examples, stage, tmp_path):
    config = replace(CONFIG, epochs=1, batch_size=99, schedule="constant", checkpoints=1)
    train(mdpo, examples, config, stage)
    # Adam's first step does not depend on the gradient's size; its moments do.
    tight = replace(config, clip_norm=rows(stage.out)[0]["grad_norm"] / 10)
    train(mdpo, examples, tight, replace(stage, out=tmp_path / "tight"))
    moments = [
        math.sqrt(sum((s["exp_avg"].double() / 0.1).square().sum().item() for s in state.values()))
        for state in (
            load_state(out / "step-1")["optimizer"]["state"]
            for out in (stage.out, tmp_path / "tight")
        )
    ]
    assert moments[0] == pytest.approx(min(config.clip_norm, tight.clip_norm * 10), rel=1e-3)
    assert moments[1] == pytest.approx(tight.clip_norm, rel=1e-3)


def test_the_token_budget_changes_nothing_but_rounding(mdpo, examples, policy, reference, tmp_path):
    config = replace(CONFIG, epochs=1, batch_size=99, checkpoints=1)
    found = {}
    for budget in (1, 100, 10**6):
        out = tmp_path / f"{budget}"
        train(mdpo, examples, replace(config, token_budget=budget), Stage(policy, out, reference))
        state = load_state(out / "step-1")["optimizer"]["state"]
        found[budget] = rows(out)[0], [s["exp_avg"] for s in state.values()]
    row, moments = found[1]
    for other, others in (found[100], found[10**6]):
        assert other == pytest.approx(row, rel=1e-4, abs=1e-6)
        for a, b in zip(moments, others, strict=True):
            assert torch.allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("every", [1, 2])
def test_activations_computed_again_change_nothing_at_all(mdpo, examples, stage, trained, every):
    train(mdpo, examples, replace(CONFIG, recompute_every=every), stage)
    for step in (3, 7, 10):
        assert weights(stage.out / f"step-{step}") == weights(trained / f"step-{step}")


@pytest.mark.parametrize(("every", "passes"), [(0, [1, 1, 1]), (1, [2, 2, 2]), (2, [2, 1, 2])])
def test_of_every_nth_layer_activations_are_computed_again(examples, every, passes):
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=300, num_hidden_layers=3, **shape)).eval()
    head_use(model)  # its passes are not counted
    counted = [0, 0, 0]

    def count(layer):
        counted[layer] += 1

    for number, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_pre_hook(lambda *_, number=number: count(number))
    policy = Policy(model, Devices(), TrainConfig(recompute_every=every))
    policy.logps(examples[0].samples).sum().backward()
    assert counted == passes


def test_in_fp16_a_step_whose_gradient_overflows_is_left_out(mdpo, examples, stage, policy):
    """The first scale, 65536, is too large for this loss; it halves until steps are taken."""
    steep = make_learner("mdpo", replace(LOSS, eta=2000.0))
    train(steep, examples, replace(CONFIG, precision="fp16"), stage)
    found = rows(stage.out)
    left_out = [row for row in found if "grad_norm" not in row]
    assert 0 < len(left_out) < len(found)
    assert found[-1]["loss_scale"] == 65536 / 2 ** len(left_out)
    assert load_state(stage.out / "step-10")["scaler"]["scale"] == found[-1]["loss_scale"]


# --- determinism and resuming


def test_the_same_seed_gives_the_same_weights_bit_for_bit(mdpo, examples, stage, trained, tmp_path):
    train(mdpo, examples, CONFIG, stage)
    for step in (3, 7, 10):
        assert weights(stage.out / f"step-{step}") == weights(trained / f"step-{step}")
    assert (stage.out / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()
    other = replace(stage, seed=4, out=tmp_path / "other")
    train(mdpo, examples, CONFIG, other)
    assert weights(other.out / "step-10") != weights(trained / "step-10")


def test_killed_at_random_moments_it_ends_with_the_same_weights(
    mdpo, examples, stage, trained, kill_and_restart
):
    moments = [("train/metrics.jsonl", 2), ("train/metrics.jsonl", 5), ("train/step-7/*.pt", 0)]
    folder = stage.out.parent
    codes = kill_and_restart(train, (mdpo, examples, CONFIG, stage), folder, moments)
    assert -9 in codes
    assert weights(stage.out / "step-10") == weights(trained / "step-10")
    assert (stage.out / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()
    assert [step for step, _ in step_folders(stage.out)] == [3, 7, 10]


def stopping(at):
    def on_step(step, steps, metrics):
        if step == at:
            raise KeyboardInterrupt

    return on_step


@pytest.mark.parametrize("at", [1, 3, 4, 9])
def test_interrupted_at_a_step_it_ends_with_the_same_weights(mdpo, examples, stage, trained, at):
    with pytest.raises(KeyboardInterrupt):
        train(mdpo, examples, CONFIG, stage, on_step=stopping(at))
    redone = []
    train(mdpo, examples, CONFIG, stage, on_step=lambda step, *_: redone.append(step))
    assert redone[0] == {1: 1, 3: 1, 4: 4, 9: 8}[at]
    assert weights(stage.out / "step-10") == weights(trained / "step-10")
    assert (stage.out / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


def test_a_finished_run_is_not_trained_again(mdpo, examples, stage):
    first = train(mdpo, examples, CONFIG, stage)
    steps = []
    assert train(mdpo, examples, CONFIG, stage, on_step=lambda *_: steps.append(1)) == first
    assert steps == []


def test_resuming_with_anything_changed_is_refused(
    mdpo, examples, stage, tmp_path, policy, reference
):
    with pytest.raises(KeyboardInterrupt):
        train(mdpo, examples, CONFIG, stage, on_step=stopping(4))
    before = weights(stage.out / "step-3")
    softer = make_learner("mdpo", replace(LOSS, eta=0.3))
    for learner, data, config, where in (
        (mdpo, examples[:-1], CONFIG, stage),
        (mdpo, list(reversed(examples)), CONFIG, stage),
        (mdpo, examples, replace(CONFIG, lr=1e-3), stage),
        (mdpo, examples, CONFIG, replace(stage, seed=4)),
        (mdpo, examples, CONFIG, replace(stage, reference=policy)),
        (mdpo, examples, CONFIG, replace(stage, policy=reference)),
        (softer, examples, CONFIG, stage),
        (make_learner("dpo", LOSS), examples, CONFIG, stage),
    ):
        with pytest.raises(TrainingError, match="other data or settings"):
            train(learner, data, config, where)
    assert weights(stage.out / "step-3") == before
    assert [step for step, _ in step_folders(stage.out)] == [3]


def test_a_checkpoint_without_optimizer_state_cannot_be_resumed(mdpo, examples, stage):
    with pytest.raises(KeyboardInterrupt):
        train(mdpo, examples, CONFIG, stage, on_step=stopping(4))
    drop_state(stage.out / "step-3")
    with pytest.raises(DataError, match="finished policy"):
        train(mdpo, examples, CONFIG, stage)


# --- errors


def test_no_examples_is_an_error_that_says_why(mdpo, stage):
    with pytest.raises(TrainingError, match="nothing to train on: it was given no example"):
        train(mdpo, [], CONFIG, stage)


def test_a_missing_reference_is_an_error(mdpo, examples, stage):
    with pytest.raises(TrainingError, match="mdpo needs a reference"):
        train(mdpo, examples, CONFIG, replace(stage, reference=None))


def test_weights_that_are_not_finite_stop_training_before_a_checkpoint(
    mdpo, examples, stage, tmp_path
):
    broken = tmp_path / "broken"
    shutil.copytree(stage.policy, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingError, match=r"step 1: loss nan.*#current#"):
        train(mdpo, examples, CONFIG, replace(stage, policy=broken))
    assert step_folders(stage.out) == []


def test_a_diverging_run_stops(mdpo, examples, stage):
    with pytest.raises(TrainingError, match="Lower the learning rate"):
        train(mdpo, examples, replace(CONFIG, lr=1e30), stage)


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "step"},
        {"precision": "fp8"},
        {"recompute_every": -1},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"epochs": 0},
        {"batch_size": 0},
        {"checkpoints": 0},
        {"token_budget": -1},
        {"clip_norm": 0.0},
        {"warmup": 1.5},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)
