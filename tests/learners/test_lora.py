"""LoRA: what is trained, what a checkpoint holds, and that the base stays what it was."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig

from agents.models.hf import load_causal_lm, load_tokenizer
from learners import make_learner
from learners.learner import LearnerConfig
from learners.numerics.logprobs import summed_logps, token_logps
from learners.planning import preflight
from learners.planning.costs import GB
from learners.planning.plan import make_plan
from learners.planning.shapes import DEVICES, SHAPES
from learners.preferences import PairRules
from learners.recipe import load_recipe
from learners.training import reference as cache
from learners.training.checkpoint import drop_state, load_state, read_manifest, step_folders
from learners.training.lora import ADAPTER, LoRA, adapters_off, dropping, load_trained, merged_state
from learners.training.train import Stage, TrainConfig, train
from mathenv.errors import ConfigError, DataError, TrainingError

peft = pytest.importorskip("peft")

ADAPTERS = LoRA(rank=4, alpha=8)
CONFIG = TrainConfig(lr=1e-2, epochs=2, batch_size=4, checkpoints=2, lora=ADAPTERS)


@pytest.fixture(scope="module")
def learner():
    return make_learner("mdpo", LearnerConfig(pairs=PairRules(per_problem=2)))


@pytest.fixture(scope="module")
def examples(learner, make_trajectory):
    trajectories = [
        make_trajectory(f"p{p}", i < 2, sample=i, turns=2) for p in range(6) for i in range(4)
    ]
    found, _ = learner.examples(trajectories, seed=0)
    assert len(found) == 12
    return found


@pytest.fixture(scope="module")
def samples(examples):
    return [s for e in examples for s in e.samples]


@pytest.fixture
def stage(policy, tmp_path):
    return Stage(policy, tmp_path / "train", policy, seed=3)


@pytest.fixture(scope="module")
def trained(learner, examples, policy, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "train"
    train(learner, examples, CONFIG, Stage(policy, out, policy, seed=3))
    return out


def small(folder, policy, config):
    """Write an untrained model of another architecture with the policy's tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    load_tokenizer(policy).save_pretrained(folder)
    return folder


SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "vocab_size": 320,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def untied(policy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("untied") / "llama"
    return small(folder, policy, LlamaConfig(**SIZES))


@pytest.fixture(scope="module")
def gemma(policy, tmp_path_factory):
    config = Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=5.0)
    return small(tmp_path_factory.mktemp("gemma") / "gemma2", policy, config)


def random_adapters(path, lora=ADAPTERS, checkpoint=None):
    """A model whose adapters do something."""
    model = load_trained(path, checkpoint, lora)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    return model


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.safetensors")}


# --- the base


def test_adapters_begin_as_nothing_and_can_be_switched_off(policy, samples):
    base = summed_logps(load_causal_lm(policy), samples)
    model = random_adapters(policy)
    assert not torch.allclose(summed_logps(model, samples), base, atol=0.1)
    with adapters_off(model):
        assert torch.equal(summed_logps(model, samples), base)
    assert not torch.allclose(summed_logps(model, samples), base, atol=0.1)
    fresh = load_trained(policy, None, ADAPTERS)
    assert torch.equal(summed_logps(fresh, samples), base)


def test_only_adapters_have_gradients_also_after_they_were_off(policy, samples):
    model = random_adapters(policy)
    with adapters_off(model), torch.no_grad():
        summed_logps(model, samples)
    summed_logps(model, samples).sum().backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None}
    assert trained == {n for n, _ in model.named_parameters() if ".lora_" in n}
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)


def test_training_moves_the_adapted_matrices_and_nothing_else(trained, policy):
    before = load_file(policy / "model.safetensors")
    after = load_file(trained / "step-6" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == ("proj" not in name), name


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("down_proj",)])
def test_targets_by_name(policy, targets):
    model = load_trained(policy, None, replace(ADAPTERS, targets=targets))
    adapted = {n.split(".")[-4] for n, p in model.named_parameters() if p.requires_grad}
    assert adapted == set(targets)


def test_all_matrices_but_the_head_are_the_default(untied):
    model = load_trained(untied, None, ADAPTERS)
    adapted = {n.split(".")[-4] for n, p in model.named_parameters() if p.requires_grad}
    expected = {f"{x}_proj" for x in ("q", "k", "v", "o", "gate", "up", "down")}
    assert adapted == expected


# --- packing and the head


@pytest.mark.parametrize("targets", [(), ("q_proj", "lm_head")])
@pytest.mark.parametrize("architecture", ["untied", "gemma"])
def test_packing_and_the_tiled_head_equal_the_models_own_logits(
    request, architecture, targets, samples
):
    path = request.getfixturevalue(architecture)
    model = random_adapters(path, replace(ADAPTERS, targets=targets))
    packed, padded = (token_logps(model, samples, packed=p) for p in (True, False))
    expected = []
    for sample in samples:
        logits = model(input_ids=torch.tensor([sample.ids])).logits[0].log_softmax(-1)
        expected += [logits[t - 1, sample.ids[t]] for t, on in enumerate(sample.mask) if on]
    assert torch.allclose(packed, torch.stack(expected), atol=1e-5)
    assert torch.allclose(padded, torch.stack(expected), atol=1e-5)


def test_the_head_learns_where_it_is_a_target(untied, samples):
    model = random_adapters(untied, replace(ADAPTERS, targets=("lm_head",)))
    summed_logps(model, samples).sum().backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert len(grads) == 2
    assert all(g.abs().max() > 0 for g in grads)


# --- checkpoints


def test_a_checkpoint_is_the_merged_model(trained, policy, samples):
    adapted = load_trained(policy, trained / "step-6", ADAPTERS)
    merged = load_causal_lm(trained / "step-6")
    assert torch.allclose(token_logps(merged, samples), token_logps(adapted, samples), atol=1e-5)
    base = token_logps(load_causal_lm(policy), samples)
    assert not torch.allclose(token_logps(merged, samples), base, atol=0.1)


def test_its_folder_has_the_files_of_any_other(trained, policy):
    folder = trained / "step-6"
    names = {p.name for p in policy.iterdir()}
    assert names - {"manifest.json"} <= {p.name for p in folder.iterdir()}
    first, second = (json.loads((p / "config.json").read_text()) for p in (policy, folder))
    for key in ("architectures", "dtype", "hidden_size", "tie_word_embeddings", "model_type"):
        assert first[key] == second[key]
    manifest = read_manifest(folder)
    assert manifest["config"]["lora"]["rank"] == 4


def test_the_adapter_loads_with_peft(trained, policy, samples):
    base = AutoModelForCausalLM.from_pretrained(policy)
    model = peft.PeftModel.from_pretrained(base, trained / "step-6" / ADAPTER).eval()
    ours = load_causal_lm(trained / "step-6")
    ids = torch.tensor([samples[0].ids])
    assert torch.allclose(model(input_ids=ids).logits, ours(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("targets", [(), ("lm_head",)])
def test_merging_is_what_peft_does(untied, targets):
    lora = replace(ADAPTERS, targets=targets)
    model = random_adapters(untied, lora)
    ours = merged_state(model.state_dict(), 8 / 4)
    wrapped = peft.get_peft_model(
        load_causal_lm(untied),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=list(targets) or "all-linear"),
    )
    tensors = {
        name.replace("base_model.model.", ""): p
        for name, p in wrapped.named_parameters()
        if ".lora_" in name
    }
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in tensors.items():
            parameter.copy_(own[name])
    theirs = wrapped.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, atol=1e-6), name


def test_bfloat16_weights_have_float32_adapters_and_checkpoints(learner, examples, stage, samples):
    lora = replace(ADAPTERS, dtype="bfloat16")
    model = load_trained(stage.policy, None, lora)
    dtypes = {(".lora_" in n, p.dtype) for n, p in model.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    train(learner, examples, replace(CONFIG, lora=lora), stage)
    merged = load_file(stage.out / "step-6" / "model.safetensors")
    assert {v.dtype for v in merged.values()} == {torch.float32}
    base = load_file(stage.policy / "model.safetensors")
    weights = {n: v for n, v in merged.items() if "q_proj" in n}
    for name, value in weights.items():
        # W was rounded to 8 bits as it was loaded; the change to it was not.
        change = value - base[name].bfloat16().float()
        assert change.abs().max() > 0
        assert not torch.equal(change, change.bfloat16().float())
    adapted = load_trained(stage.policy, stage.out / "step-6", lora)
    assert torch.allclose(
        token_logps(load_causal_lm(stage.out / "step-6"), samples),
        token_logps(adapted, samples).float(),
        atol=0.3,
    )


# --- training


def test_the_loss_falls_and_the_first_margin_is_zero(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["rewards/margins"] == 0.0
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_the_reference_is_the_model_without_adapters(learner, examples, stage, monkeypatch):
    """No second model is loaded, and the values are those of the folder."""
    monkeypatch.setattr(cache, "load_causal_lm", lambda *a, **k: pytest.fail("a second model"))
    train(learner, examples, CONFIG, stage)
    monkeypatch.undo()
    loads = []
    real = cache.load_causal_lm

    def recorded(path, **settings):
        loads.append(path)
        return real(path, **settings)

    monkeypatch.setattr(cache, "load_causal_lm", recorded)
    plain = replace(CONFIG, lora=LoRA())
    train(learner, examples, plain, replace(stage, out=stage.out.parent / "full"))
    assert loads == [stage.policy]
    shared = replace(stage, cache=stage.out / "reference.sqlite")
    train(learner, examples, plain, replace(shared, out=stage.out.parent / "again"))
    assert loads == [stage.policy]  # what the model gave without its adapters is the folder's own


def test_another_reference_is_loaded(learner, examples, stage, reference):
    train(learner, examples, CONFIG, replace(stage, reference=reference))
    first = json.loads((stage.out / "metrics.jsonl").read_text().splitlines()[0])
    assert abs(first["rewards/margins"]) > 1e-3


def test_the_old_policy_of_grpo_is_the_model_without_adapters(examples, make_trajectory, stage):
    learner = make_learner("grpo")
    trajectories = [
        make_trajectory(f"p{p}", i < 2, sample=i, turns=2) for p in range(3) for i in range(4)
    ]
    examples, _ = learner.examples(trajectories, seed=0)
    train(learner, examples, replace(CONFIG, epochs=2), stage)
    rows = [json.loads(line) for line in (stage.out / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["clip_ratio/region_mean"] == 0.0


@pytest.mark.parametrize("name", ["sft", "mkto", "simpo"])
def test_every_kind_of_learner_trains(name, make_trajectory, stage):
    learner = make_learner(name)
    trajectories = [
        make_trajectory(f"p{p}", i < 2, sample=i, turns=2) for p in range(4) for i in range(4)
    ]
    examples, _ = learner.examples(trajectories, seed=0)
    (*_, last) = train(learner, examples, CONFIG, stage)
    assert files(last)["model.safetensors"] != files(stage.policy)["model.safetensors"]


# --- determinism and resuming


def test_killed_at_random_moments_it_ends_with_the_same_weights(
    learner, examples, stage, trained, kill_and_restart
):
    moments = [("train/metrics.jsonl", 1), ("train/step-3/*.pt", 0)]
    codes = kill_and_restart(train, (learner, examples, CONFIG, stage), stage.out.parent, moments)
    assert -9 in codes
    for step in (3, 6):
        assert files(stage.out / f"step-{step}") == files(trained / f"step-{step}")
    assert (stage.out / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


def stopping(at):
    def on_step(step, *_):
        if step == at:
            raise KeyboardInterrupt

    return on_step


def test_dropout_is_for_training_steps_repeatable_and_resumable(learner, examples, stage, policy):
    config = replace(CONFIG, lora=replace(ADAPTERS, dropout=0.3))
    train(learner, examples, config, stage)
    other = replace(stage, out=stage.out.parent / "other")
    with pytest.raises(KeyboardInterrupt):
        train(learner, examples, config, other, on_step=stopping(4))
    torch.manual_seed(123)
    train(learner, examples, config, other)
    assert files(stage.out / "step-6") == files(other.out / "step-6")
    without = replace(stage, out=stage.out.parent / "without")
    train(learner, examples, CONFIG, without)
    assert files(stage.out / "step-6") != files(without.out / "step-6")


def test_what_was_dropped_is_dropped_again_in_activations_computed_again(learner, examples, stage):
    config = replace(CONFIG, epochs=1, checkpoints=1, lora=replace(ADAPTERS, dropout=0.3))
    train(learner, examples, config, stage)
    other = replace(stage, out=stage.out.parent / "other")
    train(learner, examples, replace(config, recompute_every=1), other)
    found, expected = (load_file(s.out / "step-3/model.safetensors") for s in (other, stage))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-6), name


def test_dropout_acts_inside_the_context_alone(policy, samples):
    lora = replace(ADAPTERS, dropout=0.5)
    model = random_adapters(policy, lora)
    calm = summed_logps(model, samples)
    state = torch.get_rng_state()
    with dropping(model, lora, "a"):
        first = summed_logps(model, samples)
    with dropping(model, lora, "a"):
        again = summed_logps(model, samples)
    with dropping(model, lora, "b"):
        other = summed_logps(model, samples)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.allclose(first, calm, atol=1e-2)
    assert torch.equal(summed_logps(model, samples), calm)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_seed_gives_the_first_adapters(policy):
    states = [
        dict(load_trained(policy, None, ADAPTERS, seed=s).named_parameters()) for s in (1, 1, 2)
    ]
    (name, *_) = [n for n in states[0] if "lora_A" in n]
    assert torch.equal(states[0][name], states[1][name])
    assert not torch.equal(states[0][name], states[2][name])


def test_a_run_goes_on_only_with_its_own_adapters(learner, examples, stage):
    with pytest.raises(KeyboardInterrupt):
        train(learner, examples, CONFIG, stage, on_step=stopping(4))
    state = load_state(stage.out / "step-3")
    assert len(state["optimizer"]["state"]) == 2 * 7  # moments of A and B, not of the model
    for lora in (LoRA(), replace(ADAPTERS, alpha=16)):
        with pytest.raises((TrainingError, DataError)):
            train(learner, examples, replace(CONFIG, lora=lora), stage)
    shutil.rmtree(stage.out / "step-3" / ADAPTER)
    with pytest.raises(DataError, match=r"adapter.* is missing: restore it"):
        train(learner, examples, CONFIG, stage)


def test_a_new_stage_begins_at_the_merged_policy_with_new_adapters(
    learner, examples, trained, stage, samples
):
    """What the loop does from one iteration to the next."""
    merged = trained / "step-6"
    drop_state(merged)
    train(learner, examples, CONFIG, replace(stage, policy=merged, reference=merged))
    first = json.loads((stage.out / "metrics.jsonl").read_text().splitlines()[0])
    assert first["rewards/margins"] == 0.0
    assert [step for step, _ in step_folders(stage.out)] == [3, 6]
    folders = (merged, stage.out / "step-6")
    before, after = (summed_logps(load_causal_lm(p), samples) for p in folders)
    assert not torch.allclose(before, after, atol=0.1)


def run(learner, examples, config, stage):
    train(learner, examples, config, stage)


@pytest.mark.parametrize("shard", [False, True], ids=["whole", "sharded"])
def test_two_processes_end_with_the_weights_of_one(launch, learner, examples, stage, shard):
    config = replace(CONFIG, lr=1e-3, epochs=1, checkpoints=1, shard=shard)
    one = replace(stage, out=stage.out.parent / "one")
    train(learner, examples, config, one)
    assert launch(run, learner, examples, config, stage) == [0, 0]
    for file in ("model.safetensors", f"{ADAPTER}/adapter_model.safetensors"):
        found, expected = (load_file(s.out / "step-3" / file) for s in (stage, one))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(found[name], value, atol=1e-5), name


# --- what is refused, and the plan


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rank": -1}, "rank must be at least 0"),
        ({"alpha": 0}, "alpha must be at least 1"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        LoRA(**wrong)


def test_a_missing_peft_is_named_before_a_run_and_is_not_needed_for_a_plan(monkeypatch, policy):
    monkeypatch.setattr("learners.training.lora.find_spec", lambda name: None)
    recipe = load_recipe("tiny")
    preflight.require(recipe)
    adapted = replace(recipe, sft=replace(recipe.sft, lora=ADAPTERS))
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[lora\]"'):
        preflight.require(adapted)
    with pytest.raises(ConfigError, match=r'pip install -e "\.\[lora\]"'):
        load_trained(policy, None, ADAPTERS)
    make_plan(adapted, 1, DEVICES["H100-80G"])


def test_targets_that_cannot_be_adapted_are_refused(policy, untied):
    with pytest.raises(ConfigError, match="w_pack"):
        load_trained(policy, None, replace(ADAPTERS, targets=("w_pack",)))
    with pytest.raises(ConfigError, match="head is its input embedding"):
        load_trained(policy, None, replace(ADAPTERS, targets=("q_proj", "lm_head")))
    with pytest.raises(ConfigError, match=r"embed_tokens is no plain linear layer"):
        load_trained(untied, None, replace(ADAPTERS, targets=("embed_tokens",)))


def test_a_recipe_with_lora(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text('[methods.mdpo.train.lora]\nrank = 8\ntargets = ["q_proj"]\n')
    assert load_recipe(file).methods["mdpo"].train.lora == LoRA(rank=8, targets=("q_proj",))
    file.write_text("[methods.mdpo.train.lora]\nrank = 8\nbias = true\n")
    with pytest.raises(ConfigError, match="bias"):
        load_recipe(file)


def test_the_plan_counts_adapters_and_one_frozen_model():
    recipe, gpu = load_recipe("mistral-7b-v0.3"), DEVICES["A100-80G"]
    method = recipe.methods["mdpo"]
    lora = LoRA(rank=16, dtype="bfloat16")
    adapted = replace(
        recipe,
        sft=replace(recipe.sft, lora=lora),
        methods={**recipe.methods, "mdpo": replace(method, train=replace(method.train, lora=lora))},
    )
    full, small = make_plan(recipe, 1, gpu), make_plan(adapted, 1, gpu)
    assert full.refusals
    assert not small.refusals
    shape = SHAPES[recipe.model]
    stages = {s.name: s for s in small.stages}
    states = (2 * shape.parameters + 16 * shape.lora_parameters(16)) / GB
    assert stages["mdpo"].memory["weights, gradients, optimizer"] == pytest.approx(states)
    frozen = stages["reference"].memory["policy and reference"]
    assert frozen == pytest.approx(2 * shape.parameters / GB)
    behind = replace(adapted, iterate=replace(adapted.iterate, reference=2))
    kept = next(s for s in make_plan(behind, 1, gpu).stages if s.name == "reference")
    assert kept.memory["policy and reference"] == pytest.approx(2 * frozen)
    slow = next(s for s in full.stages if s.name == "mdpo").seconds.low
    assert 0.6 < stages["mdpo"].seconds.low / slow < 0.75
    assert small.disk_gigabytes < full.disk_gigabytes
    lacking = preflight._missing_memory
    assert lacking(recipe, 20 * GB)
    assert not lacking(adapted, 20 * GB)
