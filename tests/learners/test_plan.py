import json
import math
from dataclasses import replace

import pytest
from transformers import AutoModelForCausalLM, Gemma2Config, MixtralConfig

from agents.tiny import TinyConfig, make_tiny
from benchmarks.cli import main
from learners import BaseLearner, KTOConfig, learner_names, make_learner, registry
from learners.iterate import Method
from learners.planning import preflight
from learners.planning.costs import (
    ALTERNATIVES,
    EIGHT_BIT,
    GB,
    LORA,
    USABLE,
    Lengths,
    Range,
    best_engine,
    compute_seconds,
    decode_rate,
    fits,
    forward_flops,
    remedies,
    sampling_seconds,
    training_flops,
    training_memory,
)
from learners.planning.plan import make_plan
from learners.planning.shapes import DEVICES, SHAPES, Shape, parse_gpus, shape_of
from learners.recipe import Recipe, load_recipe
from learners.training.train import TrainConfig
from mathenv.errors import ConfigError

A100, H100, H200 = DEVICES["A100-80G"], DEVICES["H100-80G"], DEVICES["H200-141G"]
MISTRAL = SHAPES["mistralai/Mistral-7B-v0.3"]
GEMMA = SHAPES["google/gemma-1.1-7b-it"]
QWEN = Shape("7.6B", 3584, 28, 28, 4, 128, 18944, 152064, tied=False)  # Qwen2.5-7B


@pytest.fixture(scope="module")
def mistral():
    return load_recipe("mistral-7b-v0.3")


def stage(plan, name):
    return next(s for s in plan.stages if s.name == name)


# --- shapes


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("google/gemma-1.1-7b-it", 8_537_680_896),
        ("google/codegemma-1.1-7b-it", 8_537_680_896),
        ("mistralai/Mistral-7B-v0.3", 7_248_023_552),
        ("google/gemma-2-9b-it", 9_241_705_984),
    ],
)
def test_parameters_are_the_published_ones(name, published):
    assert SHAPES[name].parameters == pytest.approx(published, rel=1e-4)


def test_keys_and_values_per_token():
    sizes = {name.split("/")[1]: shape.kv_bytes for name, shape in SHAPES.items()}
    assert sizes["Mistral-7B-v0.3"] == 2 * 32 * 8 * 128 * 2 == 131_072
    assert sizes["gemma-1.1-7b-it"] == 458_752
    assert sizes["gemma-2-9b-it"] == 344_064


def test_a_local_folder_is_read_and_the_tiny_shape_agrees(tmp_path):
    config = TinyConfig(hidden=64, layers=3, heads=2, intermediate=96, vocab=400)
    folder = make_tiny(tmp_path / "model", config=config)
    counted = AutoModelForCausalLM.from_pretrained(folder).num_parameters()
    assert shape_of(Recipe(model=str(folder))).parameters == counted
    assert shape_of(Recipe(tiny=config)).parameters == counted


def test_grouped_queries_and_wide_heads_of_a_local_folder(tmp_path):
    config = Gemma2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        intermediate_size=128,
        vocab_size=300,
    )
    config.save_pretrained(tmp_path)
    counted = AutoModelForCausalLM.from_config(config).num_parameters()
    shape = shape_of(Recipe(model=str(tmp_path)))
    assert shape.parameters == counted - 2 * 2 * 64  # Gemma 2 has two norms more per layer
    assert shape.kv_bytes == 2 * 2 * 2 * 32 * 2


def test_mixtures_of_experts_and_unknown_models_are_refused(tmp_path):
    MixtralConfig().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="num_local_experts"):
        shape_of(Recipe(model=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"not known.*config\.json"):
        shape_of(Recipe(model="some/model"))


def test_gpus_are_read():
    assert parse_gpus("8xA100-80G") == (8, A100)
    assert parse_gpus(" h200-141g ") == (1, H200)


@pytest.mark.parametrize("text", ["8xA100", "", "0xH100-80G", "x", "8 A100-80G"])
def test_other_gpus_are_refused_with_the_names(text):
    with pytest.raises(ConfigError, match=r"8xA100-80G.*RTX4090-24G"):
        parse_gpus(text)


def test_cpus_are_refused():
    with pytest.raises(ConfigError, match="no plan for CPUs"):
        parse_gpus("2xCPU")


# --- memory, by hand


def test_a_full_fine_tune_of_7_6_billion_does_not_fit_one_h200():
    """4 + 4 + 4 + 4 bytes each: 122 GB, before a single activation."""
    memory = training_memory(QWEN, 1, 4096)
    assert memory["weights, gradients, optimizer"] == pytest.approx(122, abs=0.5)
    assert not fits(memory, H200)
    assert fits(training_memory(QWEN, 1, 4096, EIGHT_BIT), H200)
    assert fits(training_memory(QWEN, 1, 4096, LORA), H200)


def test_activations_of_mistral():
    """2 bytes x 32 layers x (10 x 4,096 + 4 x 14,336) = 6.29 MB per token."""
    memory = training_memory(MISTRAL, 8, 8192)
    assert memory["activations"] == pytest.approx(8192 * 6.2915e-3, rel=1e-3)
    assert memory["weights, gradients, optimizer"] == pytest.approx(7.248 * 16 / 8, rel=1e-3)


def test_lora_counts_its_adapters():
    """Rank 16 on q, o (4,096 x 4,096), k, v (4,096 x 1,024) and three of 4,096 x 14,336."""
    rows = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert MISTRAL.lora_parameters(16) == 16 * 32 * rows
    memory = training_memory(MISTRAL, 1, 4096, LORA)
    by_hand = 7.248 * 2 + 16 * 32 * rows * 16 / GB
    assert memory["weights, gradients, optimizer"] == pytest.approx(by_hand, rel=1e-3)


@pytest.mark.parametrize("shape", [MISTRAL, GEMMA])
def test_more_gpus_and_checkpointing_never_take_more(shape):
    sizes = [sum(training_memory(shape, n, 4096).values()) for n in (1, 2, 4, 8, 16, 64)]
    assert sizes == sorted(sizes, reverse=True)
    checkpointed = replace(LORA, checkpointing=True)
    assert sum(training_memory(shape, 8, 4096, checkpointed).values()) < sum(
        training_memory(shape, 8, 4096, LORA).values()
    )


@pytest.mark.parametrize("gpus", [1, 2])
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_what_is_said_to_fit_does(gpus, device):
    """Every remedy is true, and of each kind the smallest that is true is named."""
    named = remedies(GEMMA, gpus, device, 8192, 4096)
    for group in ALTERNATIVES:
        works = [s.name for s in group if fits(training_memory(GEMMA, gpus, 8192, s), device)]
        assert [s.name for s in group if s.name in named] == works[:1]
    assert ("token_budget = 4096" in named) == fits(training_memory(GEMMA, gpus, 4096), device)
    counts = [int(n.split(" x ")[0]) for n in named if n.endswith(f"x {device.name}")]
    for count in counts:
        assert fits(training_memory(GEMMA, count, 8192), device)
        assert count // 2 <= gpus or not fits(training_memory(GEMMA, count // 2, 8192), device)


# --- time, by hand


def test_flops_of_mistral():
    """6 per parameter of the layers and, for half of the tokens, of the head; and attention."""
    layers = 6 * (7_248_023_552 - 2 * 32768 * 4096)
    head = 6 * 0.5 * 32768 * 4096
    attention = 3 * 2 * 1000 * 32 * 32 * 128
    assert training_flops(MISTRAL, 1000, 0.5) == pytest.approx(layers + head + attention, rel=1e-4)
    assert training_flops(MISTRAL, 1000, 0.5) == pytest.approx(
        3 * forward_flops(MISTRAL, 1000, 0.5)
    )


def test_utilisation_gives_the_ends_of_the_range():
    flops = Range(312e12 * 8 * 45, 312e12 * 8 * 60)
    seconds = compute_seconds(flops, 8, A100, (0.30, 0.45))
    assert seconds.low == pytest.approx(100)
    assert seconds.high == pytest.approx(200)


@pytest.mark.parametrize(
    ("sequences", "rate"),
    [(64, 10_900), (128, 20_100), (200, 26_200), (256, 27_000), (512, 28_500)],
)
def test_decoding_follows_the_model_of_one_h200(sequences, rate):
    """1 ms, then weights at 3.4 TB/s or 590 TFLOP/s, then 57 KB per token of context."""
    assert decode_rate(QWEN, H200, sequences, 420) == pytest.approx(rate, rel=0.09)
    n = QWEN.body_parameters + QWEN.head_parameters
    weights = max(2 * n / 3.4e12, 2 * n * sequences / 590e12)
    step = 1e-3 + weights + sequences * 420 * 57_344 / 3.4e12
    assert decode_rate(QWEN, H200, sequences, 420) == pytest.approx(sequences / step, rel=1e-6)


def test_slots_follow_the_memory_of_keys_and_values():
    engine = best_engine(GEMMA, 1, A100, Lengths(), 2048, 512)
    room = USABLE * 80 - 2 * 8.5377 - 2
    assert engine.slots == int(room * GB / (458_752 * Lengths().trajectory))
    assert best_engine(MISTRAL, 1, A100, Lengths(), 2048, 256).slots == 256
    assert best_engine(GEMMA, 1, DEVICES["RTX4090-24G"], Lengths(), 16_384, 256) is None


def test_a_model_that_one_gpu_cannot_hold_spans_several():
    large = replace(QWEN, layers=28 * 9)
    engine = best_engine(large, 8, A100, Lengths(), 2048, 256)
    assert engine.gpus_each * engine.count <= 8
    assert engine.gpus_each * USABLE * 80 > 2 * large.parameters / GB


def test_few_cores_hold_up_the_engines():
    lengths = Lengths()
    engine = best_engine(MISTRAL, 8, A100, lengths, 2048, 384)
    arguments = (MISTRAL, A100, engine, lengths, 600_000, 20_000)
    free, many, few = (sampling_seconds(*arguments, cores) for cores in (None, 10_000, 1))
    assert many == free
    assert few == Range(600_000 * 1.65 * 0.05, 600_000 * 1.65 * 0.1)


def test_lengths_shrink_with_the_token_limit():
    assert Lengths().within(2048) == Lengths()
    assert Lengths().within(400).trajectory == pytest.approx(200)
    assert Lengths().within(400).turns == Lengths().turns


# --- plans


def test_the_stages_of_a_plan(mistral):
    plan = make_plan(mistral, 8, A100)
    assert [s.name for s in plan.stages] == [
        "SFT",
        "sampling",
        "reference",
        "mdpo",
        "validation",
        "test",
    ]
    assert [s.runs for s in plan.stages] == [1, 3, 3, 3, 3, 4]
    assert not plan.refusals
    assert stage(plan, "sampling").work == "600,000 trajectories"
    assert plan.seconds.low == pytest.approx(sum(s.seconds.low * s.runs for s in plan.stages))
    assert plan.seconds.low < plan.seconds.high
    assert not any("precision" in gap or "FSDP" in gap for gap in plan.gaps)
    plain = replace(mistral, sft=TrainConfig(), methods={"mdpo": Method()})
    gaps = make_plan(plain, 8, A100).gaps
    assert any("FSDP over 8 GPUs" in gap for gap in gaps)
    assert any('precision = "bf16" in sft and methods.mdpo.train' in gap for gap in gaps)
    assert not any("FSDP" in gap for gap in make_plan(plain, 1, A100).gaps)


def test_supervised_fine_tuning_agrees_with_the_paper():
    """Gemma-1.1-7B, up to four epochs on eight A100: the paper reports 10 to 15 hours."""
    recipe = load_recipe("gemma-1.1-it-7b")
    recipe = replace(recipe, sft=replace(recipe.sft, epochs=4))
    seconds = stage(make_plan(recipe, 8, A100), "SFT").seconds
    assert seconds.low < 15 * 3600
    assert seconds.high > 10 * 3600


def test_what_learners_differ_in(mistral):
    plans = {name: make_plan(mistral, 8, A100, learner=name) for name in ("mdpo", "mkto", "raft")}
    assert "reference" not in [s.name for s in plans["raft"].stages]
    # z0 costs a forward pass more per example, and as much again of the reference.
    trained = {name: stage(plan, name).seconds for name, plan in plans.items()}
    assert trained["mkto"].low == pytest.approx(trained["mdpo"].low * 4 / 3, rel=1e-3)
    references = [stage(plans[name], "reference").seconds.low for name in ("mdpo", "mkto")]
    assert references[1] == pytest.approx(2 * references[0])
    sft = make_plan(mistral, 8, A100, learner="sft")
    assert [s.name for s in sft.stages] == ["SFT", "sft", "validation", "test"]


class Third(BaseLearner):
    """A third party's, which has yet to learn."""

    name = "third"


@pytest.mark.parametrize(("unit", "like"), [("pair", "simpo"), ("side", "mkto"), ("right", "raft")])
def test_a_third_partys_learner_is_planned_by_what_it_says_of_its_examples(
    mistral, monkeypatch, unit, like
):
    monkeypatch.setattr(Third, "unit", unit)
    monkeypatch.setitem(registry._REGISTRY, "third", Third)
    methods = dict.fromkeys((like, "third"), Method())
    if like == "mkto":
        methods[like] = Method(KTOConfig(kl="none"))
    known, third = (
        stage(make_plan(replace(mistral, methods=methods), 8, A100, learner=name), name)
        for name in (like, "third")
    )
    assert replace(third, name=like) == known


def test_every_sample_is_an_example_of_grpo(mistral, monkeypatch):
    monkeypatch.setattr(Third, "unit", "sample")
    monkeypatch.setitem(registry._REGISTRY, "third", Third)
    third, grpo = (
        stage(make_plan(replace(mistral, methods={}), 8, A100, learner=name), name)
        for name in ("third", "grpo")
    )
    assert replace(third, name="grpo") == grpo
    steps = mistral.problems.prompts // 3 * mistral.iterate.current_samples / 32
    assert third.work.split(" steps")[0].endswith(f"{steps:,.0f}")


def test_a_unit_that_is_none_is_refused(mistral, monkeypatch):
    monkeypatch.setattr(Third, "unit", "token")
    monkeypatch.setitem(registry._REGISTRY, "third", Third)
    with pytest.raises(ConfigError, match=r"third: unit is one of pair, side.*'token'"):
        make_plan(mistral, 8, A100, learner="third")


@pytest.mark.parametrize("name", learner_names())
def test_only_pairs_have_two_sequences(make_trajectory, name):
    """As `unit` says; what is made of step-wise pairs' common turns is no matter here."""
    given = {"shared_turns": 0} if name == "stepdpo" else {}
    made = make_learner(name, registry.settings_type(name)(**given))
    trajectories = [make_trajectory(p, i < 2, sample=i) for p in "abc" for i in range(4)]
    examples, _ = made.examples(trajectories, seed=0)
    assert {len(e.samples) for e in examples} == {2 if made.unit == "pair" else 1}


def test_the_policy_that_begins_the_stage_is_evaluated_too_where_it_is_not_the_reference(mistral):
    on_policy = replace(mistral, methods={"mkto": Method(KTOConfig(kl="on_policy"))})
    seconds = {
        (name, moves): stage(
            make_plan(
                replace(recipe, iterate=replace(mistral.iterate, reference=moves)),
                8,
                A100,
                learner=name,
            ),
            "reference",
        ).seconds.low
        for name, recipe in (("mkto", on_policy), ("grpo", mistral))
        for moves in ("last", "first")
    }
    assert seconds["mkto", "first"] == pytest.approx(2 * seconds["mkto", "last"])
    assert seconds["grpo", "first"] == seconds["grpo", "last"] > 0  # without a reference


def test_faster_gpus_and_more_of_them_take_less_time(mistral):
    order = [(8, A100), (8, H100), (8, H200), (16, H200)]
    times = [make_plan(mistral, *gpus).seconds.high for gpus in order]
    assert times == sorted(times, reverse=True)


def test_activations_computed_again_take_less_memory_and_more_time(mistral):
    config = replace(mistral.sft, recompute_every=1)
    kept, again = (
        stage(make_plan(replace(mistral, sft=sft), 8, A100), "SFT") for sft in (mistral.sft, config)
    )
    assert again.memory["activations"] < kept.memory["activations"] / 4
    assert 1.2 < again.seconds.low / kept.seconds.low < 1.34


def test_what_does_not_fit_is_refused_with_what_would(mistral):
    plan = make_plan(mistral, 1, A100)
    (refusal,) = plan.refusals
    assert refusal.startswith("training (SFT, mdpo) needs 1")
    assert "4 x A100-80G" in refusal
    assert "LoRA (rank 16)" in refusal
    assert any("no 8-bit optimizer states" in gap for gap in plan.gaps)
    for named in stage(plan, "mdpo").advice:
        assert named in refusal


def test_a_demonstration_is_not_cut_to_fit(mistral):
    """SFT takes demonstrations of up to 4,096 tokens: a lower token budget changes nothing."""
    plan = make_plan(mistral, 8, DEVICES["L40S-48G"], learner="raft")
    assert not any("token_budget" in a for a in stage(plan, "SFT").advice)
    assert "token_budget = 2048" in stage(plan, "raft").advice


def test_where_not_even_sampling_fits(mistral):
    plan = make_plan(replace(mistral, model="google/gemma-2-9b-it"), 1, DEVICES["RTX4090-24G"])
    assert not any(refusal.startswith("sampling") for refusal in plan.refusals)
    long = replace(mistral.iterate, sampling=replace(mistral.iterate.sampling, max_tokens=16_384))
    plan = make_plan(
        replace(mistral, model="google/gemma-2-9b-it", iterate=long), 1, DEVICES["RTX4090-24G"]
    )
    assert plan.refusals[0].startswith("sampling: 18 GB")
    assert math.isinf(plan.seconds.high)


def test_the_tiny_recipe_fits_anywhere():
    assert not make_plan(load_recipe("tiny"), 1, DEVICES["RTX4090-24G"]).refusals


# --- the command


def run(capsys, *words):
    with pytest.raises(SystemExit) as raised:
        main(["plan", *words])
    captured = capsys.readouterr()
    return raised.value.code, captured.out, captured.err


def test_the_command_prints_stages_assumptions_and_gaps(capsys):
    code, out, _ = run(capsys, "mistral-7b-v0.3", "--gpus", "8xA100-80G")
    assert code == 0
    for text in ("sampling", "GB per GPU", "Assumed:", "Not done here yet:", "with one engine"):
        assert text in out


def test_the_command_refuses_with_code_2(capsys):
    code, out, error = run(capsys, "gemma-1.1-it-7b", "--gpus", "H200-141G")
    assert code == 2
    assert "too much" in out
    assert "Would fit: 8-bit Adam" in error


def test_the_command_prints_json(capsys):
    code, out, _ = run(
        capsys, "mistral-7b-v0.3", "--gpus", "4xL40S-48G", "--json", "--learner", "raft"
    )
    data = json.loads(out)
    assert code == 2
    assert data["fits"] is False
    assert data["refusals"]
    assert {"name", "memory", "seconds", "work", "runs", "advice"} <= data["stages"][0].keys()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("nope", "--gpus", "A100-80G"), "no recipe nope"),
        (("tiny", "--gpus", "A100"), "RTX4090"),
        (("tiny", "--gpus", "A100-80G", "--learner", "ppo"), "no learner is called"),
        (("tiny", "--gpus", "A100-80G", "--interpreter-cores", "0"), "at least 1"),
    ],
)
def test_wrong_words_are_named(capsys, words, named):
    code, _, error = run(capsys, *words)
    assert code == 2
    assert named in error


# --- before a run


def test_a_run_is_refused_with_all_that_is_missing(capsys, tmp_path, monkeypatch, mistral):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "_memory", lambda: 64 * GB)
    with pytest.raises(ConfigError) as raised:
        preflight.require(mistral)
    for text in ("data/paper", "demonstrations.jsonl", "116 GB", "64 GB", "mathenv plan"):
        assert text in str(raised.value)
    with pytest.raises(SystemExit) as ended:
        main(["iterate", "--recipe", "mistral-7b-v0.3", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "mathenv convert" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_with_all_it_needs_goes_on(tmp_path, monkeypatch, mistral):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "paper").mkdir(parents=True)
    (tmp_path / "data" / "paper" / "demonstrations.jsonl").touch()
    monkeypatch.setattr(preflight, "_memory", lambda: 117 * GB)
    with pytest.raises(ConfigError, match="the package vllm"):
        preflight.require(mistral)
    monkeypatch.setattr(preflight, "find_spec", lambda name: name)
    preflight.require(mistral)
    monkeypatch.setattr(preflight, "_memory", lambda: GB)
    preflight.require(load_recipe("tiny"))
    with pytest.raises(ConfigError, match="116 GB"):
        preflight.require(mistral)
