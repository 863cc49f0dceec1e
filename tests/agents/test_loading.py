"""Model folders as people have them: damaged, with settings that cannot be saved, too short."""

import json
import random
import shutil

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    Phi3Config,
)

from agents.models.loading import (
    company_limit,
    load_causal_lm,
    load_tokenizer,
    position_limit,
)
from agents.tiny import TinyConfig, make_tiny
from mathenv import notices
from mathenv.errors import ConfigError

MICRO = TinyConfig(hidden=32, layers=1, heads=1, intermediate=32, vocab=320, max_positions=64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model", config=MICRO)


@pytest.fixture
def folder(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "model")


# --- generation_config.json

# What is in the file, and what of it must be gone. transformers refuses to save all of them
# (github.com/huggingface/transformers/issues/29988), some it refuses to load.
BROKEN = {
    "temperature without sampling": ({"temperature": 0.6, "top_p": 0.9}, {"temperature", "top_p"}),
    "sampling switched off": (
        {"do_sample": False, "temperature": 0.6, "top_k": 20, "repetition_penalty": 1.05},
        {"temperature", "top_k"},
    ),
    "beam settings without beams": (
        {"length_penalty": 0.8, "early_stopping": True, "do_sample": True, "temperature": 0.6},
        {"length_penalty", "early_stopping"},
    ),
    "more sequences than beams": ({"num_return_sequences": 4}, {"num_return_sequences"}),
    "no new tokens": ({"max_new_tokens": 0, "do_sample": True}, {"max_new_tokens"}),
    "wrong type": ({"max_new_tokens": "many", "temperature": 1.0}, {"max_new_tokens"}),
    "unknown cache": ({"cache_implementation": "of mine", "top_k": 50}, {"cache_implementation"}),
    "cache switched off": (
        {"use_cache": False, "cache_implementation": "static"},
        {"cache_implementation"},
    ),
    "negative padding": ({"pad_token_id": -1, "eos_token_id": [2, 4]}, {"pad_token_id"}),
    "outputs nobody gets": ({"output_scores": True}, {"output_scores"}),
    "an argument of generate": ({"streamer": "x", "eos_token_id": 2}, {"streamer"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_saved_is_left_out_and_said(folder, tmp_path, caplog, name):
    values, wrong = BROKEN[name]
    (folder / "generation_config.json").write_text(json.dumps(values))
    model = load_causal_lm(folder)
    (line,) = caplog.messages
    assert "generation_config.json holds settings" in line
    assert all(f"{key} = {values[key]!r}" in line for key in wrong)
    assert not any(f"{key} = " in line for key in values.keys() - wrong)
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert not saved.keys() & wrong
    kept = {k: v for k, v in values.items() if k not in wrong}
    assert {k: getattr(model.generation_config, k) for k in kept} == kept
    caplog.clear()
    load_causal_lm(tmp_path / "saved")
    assert caplog.messages == []


def test_settings_of_an_older_model_are_repaired_in_its_config(folder, tmp_path):
    """Before there was a generation_config.json they stood among the model's own."""
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "temperature": 0.6, "top_p": 0.9}))
    load_causal_lm(folder).save_pretrained(tmp_path / "saved")
    assert load_causal_lm(tmp_path / "saved")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", bytes(99), random.Random(0).randbytes(99)])
def test_a_damaged_one_is_left_out_and_said(folder, tmp_path, caplog, content):
    (folder / "generation_config.json").write_bytes(content)
    load_causal_lm(folder).save_pretrained(tmp_path / "saved")
    assert "generation_config.json is damaged" in caplog.text
    assert GenerationConfig.from_pretrained(tmp_path / "saved")


def test_a_sound_one_is_kept_without_a_word(folder, caplog):
    values = {"do_sample": True, "temperature": 0.6, "eos_token_id": [2, 4], "chat_format": "x"}
    (folder / "generation_config.json").write_text(json.dumps(values))
    config = load_causal_lm(folder).generation_config
    assert {k: getattr(config, k) for k in values} == values
    assert caplog.messages == []


def test_others_than_the_first_process_say_nothing(caplog, monkeypatch):
    notices.notice.cache_clear()
    monkeypatch.setenv("RANK", "1")
    notices.notice("of the second process")
    monkeypatch.setenv("RANK", "0")
    notices.notice("of the first process")
    notices.notice("of the first process")
    assert caplog.messages == ["mathenv: of the first process"]


# --- damaged files


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize(
    "damage",
    [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: bytes(len(d))],
    ids=["cut", "emptied", "zeroed"],
)
def test_a_damaged_file_is_named(folder, name, damage):
    file = folder / name
    file.write_bytes(damage(file.read_bytes()))

    def load():
        load_tokenizer(folder)
        load_causal_lm(folder)

    with pytest.raises(ConfigError, match=r"is damaged .*Restore it") as caught:
        load()
    assert str(file) in str(caught.value)


# --- devices


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_one_sentence(tiny, device):
    with pytest.raises(ConfigError, match=rf"there is no device '{device}': torch .* no GPU here"):
        load_causal_lm(tiny, device=device)


@pytest.mark.parametrize(("device", "said"), [("gpu", "must be cpu"), ("xpu", "no device 'xpu'")])
def test_other_wrong_devices_are_too(tiny, device, said):
    with pytest.raises(ConfigError, match=said):
        load_causal_lm(tiny, device=device)


# --- how long a sequence may be


def rope(kind, **more):
    return LlamaConfig(
        max_position_embeddings=64,
        rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **more},
    )


LIMITS = {
    "plain": (LlamaConfig(max_position_embeddings=64), 64, None),
    "learned": (GPT2Config(n_positions=32), 32, None),
    "none": (MambaConfig(), None, None),
    "linear": (rope("linear", factor=4.0), 256, None),
    "dynamic": (rope("dynamic", factor=2.0), 128, 64),
    "yarn": (rope("yarn", factor=4.0, original_max_position_embeddings=32), 128, None),
    "longrope": (
        Phi3Config(
            hidden_size=64,
            num_attention_heads=2,
            max_position_embeddings=128,
            original_max_position_embeddings=32,
            pad_token_id=0,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "short_factor": [1.0] * 16,
                "long_factor": [2.0] * 16,
            },
        ),
        128,
        32,
    ),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits_follow_the_configuration(name):
    config, positions, company = LIMITS[name]
    assert position_limit(config) == positions
    assert company_limit(config) == company


def test_a_model_beyond_its_positions_is_what_the_limit_says():
    model = AutoModelForCausalLM.from_config(
        GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=2, n_positions=32)
    )
    limit = position_limit(model.config)
    model(input_ids=torch.ones(1, limit, dtype=torch.long))
    with pytest.raises(IndexError):
        model(input_ids=torch.ones(1, limit + 1, dtype=torch.long))
