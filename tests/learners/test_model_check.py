"""Models whose log-probs are not what the short way would say, and sequences too long for them."""

from dataclasses import replace

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MixtralConfig,
    Phi3Config,
    RecurrentGemmaConfig,
)

from learners import make_learner
from learners.numerics import attention, model_check
from learners.numerics.logprobs import token_logps
from learners.numerics.model_check import check_lengths, head_use, note_experts
from learners.preferences import Example, Sample
from learners.training.checkpoint import save_checkpoint
from learners.training.parallel import Devices, Policy
from learners.training.reference import frozen_logps
from learners.training.train import Stage, TrainConfig, train
from mathenv import notices
from mathenv.errors import ConfigError, TrainingError

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
SMALL = {k: v for k, v in SHAPE.items() if k != "max_position_embeddings"}


class Halved(LlamaForCausalLM):
    """Of a kind that nobody here knows: it does something to its logits that no setting tells."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output


class Normed(LlamaForCausalLM):
    """Does something to the hidden states before its head."""

    def forward(self, input_ids=None, **kwargs):
        hidden = self.model(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = self.lm_head(torch.nn.functional.normalize(hidden, dim=-1))
        return transformers.modeling_outputs.CausalLMOutputWithPast(logits=logits)


def recurrent_gemma(**more):
    config = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    # Three layers: every third one has attention, and its cache is looked for.
    return RecurrentGemmaConfig(**{**config, "num_hidden_layers": 3}, lru_width=32, **more)


# How to build one, and whether the model's own logits are needed.
HEADS = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)), False),
    "recurrent gemma": (lambda: of(recurrent_gemma(logits_soft_cap=0.5)), False),
    # The default bound: an untrained model's logits are far below it.
    "recurrent gemma, 30": (lambda: of(recurrent_gemma()), False),
    "cohere": (lambda: of(transformers.CohereConfig(**SHAPE, logit_scale=0.25)), True),
    "granite": (lambda: of(transformers.GraniteConfig(**SHAPE, logits_scaling=4.0)), True),
    "granite, 1": (lambda: of(transformers.GraniteConfig(**SHAPE, logits_scaling=1.0)), False),
    "halved": (lambda: Halved(LlamaConfig(**SHAPE)), True),
    "normed": (lambda: Normed(LlamaConfig(**SHAPE)), True),
}


def of(config):
    return AutoModelForCausalLM.from_config(config)


def build(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def samples(*lengths):
    return [
        Sample(f"s{n}", tuple((7 * t + n) % 290 for t in range(n)), (False, *(True,) * (n - 1)))
        for n in lengths
    ]


@torch.no_grad()
def from_full_logits(model, sample):
    logps = model(input_ids=torch.tensor([sample.ids])).logits[0].double().log_softmax(-1)
    return logps[:-1].gather(-1, torch.tensor(sample.ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("scale", [1, 8])
def test_log_probs_are_those_of_the_models_own_logits(name, scale, caplog):
    notices.notice.cache_clear()
    make, full = HEADS[name]
    model = build(make)
    model.get_output_embeddings().weight.data *= scale  # as trained models are sure of tokens
    assert head_use(model).full == full
    for sample in samples(9, 20):
        found = token_logps(model, [sample, *samples(15)])[: sample.targets].double()
        assert found.tolist() == pytest.approx(from_full_logits(model, sample).tolist(), abs=1e-4)
    assert len([m for m in caplog.messages if "takes more memory and time" in m]) == full


class Failing(LlamaForCausalLM):
    """Its code does not fit the length, as xLSTM's where a chunk is not full."""

    def forward(self, *args, **kwargs):
        raise ValueError("state has wrong shape")


def test_a_model_whose_own_code_fails_is_named():
    with pytest.raises(TrainingError, match=r"Failing fails in a forward .*state has wrong shape"):
        head_use(build(lambda: Failing(LlamaConfig(**SHAPE))))


def test_a_cap_of_which_the_config_does_not_tell_is_found_in_an_untrained_model():
    model = build(lambda: of(recurrent_gemma()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_check, "_SOFTCAPS", ())
        assert head_use(model).full


def test_it_is_tried_once(monkeypatch):
    model = build(lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)))
    passes = []
    head_use(model)
    model.model.register_forward_hook(lambda *_: passes.append(1))
    for _ in range(3):
        token_logps(model, samples(5))
    assert len(passes) == 3


def test_in_half_precision_rounding_is_no_difference():
    for name in ("llama", "recurrent gemma, 30"):
        make, _ = HEADS[name]
        assert not head_use(build(make).to(torch.bfloat16)).full
    assert head_use(build(HEADS["halved"][0]).to(torch.bfloat16)).full


def test_a_model_that_looks_ahead_is_refused_by_name():
    config = Gemma3TextConfig(**SHAPE, head_dim=16, use_bidirectional_attention=True)
    with pytest.raises(TrainingError, match=r"use_bidirectional_attention = True.* is no causal"):
        head_use(build(lambda: Gemma3ForCausalLM(config)))
    sound = Gemma3TextConfig(**SHAPE, head_dim=16)
    assert not head_use(build(lambda: Gemma3ForCausalLM(sound))).full


# --- training with them


@pytest.fixture
def pair():
    chosen, rejected = samples(9, 12)
    return make_learner("mdpo"), [Example((chosen, rejected))]


@pytest.fixture
def saved(policy, tmp_path):
    """Write a model with the tokenizer of the micro policy."""

    def save(model):
        tokenizer = transformers.AutoTokenizer.from_pretrained(policy)
        save_checkpoint(tmp_path / "model", model, tokenizer, {})
        return tmp_path / "model"

    return save


def test_it_trains_and_starts_at_the_reference(saved, pair, tmp_path):
    folder = saved(build(HEADS["halved"][0]))  # loads as a plain Llama, and that is another model
    (step,) = train(*pair, TrainConfig(), Stage(folder, tmp_path / "out", folder))
    assert step.name == "step-1"


def gpt2():
    return of(GPT2Config(vocab_size=300, n_embd=32, n_layer=1, n_head=2, n_positions=16))


@pytest.mark.parametrize(
    "make", [gpt2, lambda: of(LlamaConfig(**{**SHAPE, "max_position_embeddings": 16}))]
)
def test_a_sequence_beyond_the_models_positions_is_named(saved, tmp_path, make, policy):
    folder = saved(build(make))
    for place in ("policy", "reference"):
        config = TrainConfig(batch_size=1)
        stage = Stage(policy, tmp_path / place, policy)
        fits = [Example(tuple(samples(10, 16)))]
        train(make_learner("mdpo"), fits, config, replace(stage, **{place: folder}))
        long = [Example(tuple(samples(10, 17)))]
        with pytest.raises(TrainingError, match=r"s17 has 17 tokens.*16 positions.*= 16"):
            train(
                make_learner("mdpo"),
                long,
                config,
                replace(stage, out=tmp_path / f"{place}-long", **{place: folder}),
            )


def longrope():
    scaling = {"rope_type": "longrope", "rope_theta": 1e4}
    factors = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    return Phi3Config(
        **SHAPE, original_max_position_embeddings=16, rope_parameters={**scaling, **factors}
    )


def dynamic():
    scaling = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    return LlamaConfig(**{**SHAPE, "max_position_embeddings": 16}, rope_parameters=scaling)


@pytest.mark.parametrize("make", [longrope, dynamic])
def test_rope_whose_frequencies_follow_the_longest_of_a_pass_stops_at_its_original_length(
    make, saved, tmp_path
):
    config = make()
    model = build(lambda: of(config))
    model.get_output_embeddings().weight.data *= 30
    short, fits, long = samples(12, 16, 24)

    def alone_and_together(other):
        with torch.no_grad():
            alone = token_logps(model, [short], packed=False)
            together = token_logps(model, [short, other], packed=False)[: short.targets]
        return (alone - together).abs().max().item()

    assert alone_and_together(fits) < 1e-4
    assert alone_and_together(long) > 1e-3  # what is refused
    check_lengths(config, [short, fits], "m")
    with pytest.raises(TrainingError, match=r"s24 has 24 tokens.*beyond 16.*depend on the batch"):
        check_lengths(config, [short, fits, long], "m")
    folder = saved(model)
    with pytest.raises(TrainingError, match="depend on the batch"):
        frozen_logps(folder, [Example((long,))], tmp_path / "cache", budget=99)


def test_a_mixture_of_experts_is_told_of_its_missing_loss_once(caplog):
    notices.notice.cache_clear()
    for _ in range(2):
        note_experts(MixtralConfig(**SHAPE, num_local_experts=4), "a policy")
    assert len(caplog.messages) == 1
    assert "without the load-balancing loss" in caplog.text
    note_experts(LlamaConfig(**SHAPE), "another policy")
    note_experts(MixtralConfig(**SHAPE, num_local_experts=1), "a third")
    assert len(caplog.messages) == 1


# --- shared out, and without torch's newest attention


def test_of_nested_layers_the_outermost_are_shared_out():
    """Mamba's list of what must not be split names a block and its mixer inside."""
    model = build(lambda: of(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2)))
    calls = []
    for block in model.backbone.layers:
        block.mixer.register_forward_pre_hook(lambda *_: calls.append(1))
    policy = Policy(model, Devices(), TrainConfig(recompute_every=1))
    calls.clear()
    policy.logps(samples(9)).sum().backward()
    assert len(calls) == 2 * 2  # once forward and once again, not three times


def shard_mamba():
    model = build(lambda: of(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2)))
    whole = token_logps(model, samples(9)).sum().item()
    devices = Devices()
    policy = Policy(model, devices, TrainConfig(shard=True))
    found = policy.logps(samples(9))
    assert abs(found.sum().item() - whole) < 1e-3
    found.sum().backward()
    devices.close()


def test_mamba_is_shared_out(launch):
    assert launch(shard_mamba) == [0, 0]


def test_what_cannot_be_shared_out_is_a_config_error(monkeypatch):
    def refuse(*_, **__):
        raise TypeError("value was None")

    monkeypatch.setattr("learners.training.parallel.fully_shard", refuse)
    monkeypatch.setattr("learners.training.parallel.init_device_mesh", lambda *_: None)
    devices = Devices()
    monkeypatch.setattr(devices, "count", 2)
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM cannot be shared out.*value was None"):
        Policy(build(HEADS["llama"][0]), devices, TrainConfig(shard=True))


def old_varlen(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
    """As in torch 2.10 and 2.11."""


@pytest.mark.parametrize("old", ["missing", "without windows"])
def test_without_attention_over_lengths_each_sequence_has_a_call_of_its_own(monkeypatch, old):
    model = build(HEADS["llama"][0])
    expected = token_logps(model, samples(9, 20))
    if old == "missing":
        monkeypatch.setitem(__import__("sys").modules, "torch.nn.attention.varlen", None)
    else:
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", old_varlen)
    assert attention._varlen() is None
    monkeypatch.setattr(attention, "_VARLEN", None)
    monkeypatch.setattr(attention, "_flash", lambda *_: pytest.fail("the kernel is not there"))
    # What decides on a GPU: a half-precision query there.
    assert torch.equal(token_logps(model, samples(9, 20)), expected)
    half = token_logps(model.to(torch.bfloat16), samples(9, 20))
    assert half.isfinite().all()


def test_this_torch_has_what_the_kernel_needs():
    assert attention._varlen() is not None
