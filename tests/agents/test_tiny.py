"""The embedded model: made on the spot, the same every time, loadable like any other."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import agents
from agents.models.hf import load_causal_lm, load_tokenizer
from agents.rendering import ChatRenderer
from agents.tiny import TinyConfig, make_tiny
from mathenv.problems import words
from mathenv.protocol import code_block

SMALL = TinyConfig(hidden=32, layers=1, heads=1, intermediate=32)


def test_this_is_our_agents_package():
    # `agents` is also the import name of the openai-agents distribution.
    root = Path(__file__).resolve().parents[2]
    assert Path(agents.__file__).resolve() == root / "agents" / "__init__.py"
    spec = find_spec("agents.rollout")
    assert spec is not None
    assert Path(str(spec.origin)).is_relative_to(root)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    state = torch.get_rng_state()
    one = make_tiny(tmp_path / "one", config=SMALL, seed=3)
    two = make_tiny(tmp_path / "two", config=SMALL, seed=3)
    other = make_tiny(tmp_path / "other", config=SMALL, seed=4)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are its own
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()


def test_the_folder_is_replaced(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stale.txt").write_text("old")
    make_tiny(tmp_path / "model", config=SMALL)
    assert not (tmp_path / "model" / "stale.txt").exists()
    assert load_causal_lm(tmp_path / "model").config.hidden_size == 32


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return load_tokenizer(tiny)


def test_the_saved_renderer_is_the_one_that_was_made(tiny, tokenizer):
    renderer = ChatRenderer(tokenizer)
    assert tokenizer.convert_ids_to_tokens(renderer.end_id) == "<end_of_turn>"
    assert renderer.end_id == load_causal_lm(tiny).config.eos_token_id
    assert renderer.fingerprint == ChatRenderer(load_tokenizer(tiny)).fingerprint
    (bos, start, *_, newline) = renderer.prompt_ids("Q")
    assert tokenizer.convert_ids_to_tokens([bos, start]) == ["<bos>", "<start_of_turn>"]
    assert tokenizer.decode([newline]) == "\n"


def test_text_comes_back_as_it_was(tokenizer):
    texts = [p.question for p in words.load("test", count=20)]
    texts += [code_block("for i in range(3):\n    print(i, end='')"), "é ∑ 数 \t\r\n  x", ""]
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_digits_stand_alone(tokenizer):
    for number in range(1000):
        tokens = tokenizer.tokenize(f"{number}+{number}")
        digits = [token for token in tokens if any(c.isdigit() for c in token)]
        assert len(digits) == 2 * len(str(number))


def test_held_out_questions_are_short(tokenizer):
    lengths = [len(tokenizer.tokenize(p.question)) for p in words.load("test", count=50)]
    assert sum(lengths) / len(lengths) < 100  # words, not bytes: the corpus was learned from
