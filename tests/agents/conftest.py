"""A byte tokenizer whose ids can be read, tiny models, and a sandboxed interpreter."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from agents.models.hf import load_causal_lm, load_tokenizer
from agents.rendering import ChatRenderer
from agents.tiny import CHAT_TEMPLATE, TinyConfig, make_tiny
from mathenv.interpreter import Limits, LocalInterpreter
from mathenv.problems import words
from mathenv.protocol import code_block
from mathenv.types import Turn

SPECIAL = (
    "<pad>",
    "<bos>",
    "<eos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)


def _byte_characters() -> dict[int, str]:
    """The characters that stand for bytes in GPT-2's byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


def _byte_tokenizer(template: str | None, **settings: Any) -> PreTrainedTokenizerFast:
    """Special tokens are 0 to 9 in the order of `SPECIAL`, byte b is 10 + b."""
    vocabulary = {token: index for index, token in enumerate(SPECIAL)}
    vocabulary |= {character: 10 + byte for byte, character in _byte_characters().items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = {"additional_special_tokens": list(SPECIAL[3:])} | settings
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template=template,
        **special,
    )


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return _byte_tokenizer


@pytest.fixture(scope="session")
def gemma() -> ChatRenderer:
    """The tiny model's template over the byte tokenizer."""
    return ChatRenderer(_byte_tokenizer(CHAT_TEMPLATE))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained tiny model's folder."""
    shape = TinyConfig(hidden=64, layers=2, heads=2, intermediate=96)
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny", config=shape)


TURNS = (Turn(code_block("x = 6\nx * 7"), observation="42"), Turn(r"It is \boxed{42}."))


@pytest.fixture(scope="session")
def taught(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, taught to answer most questions with `TURNS`: two turns, one cell.

    Not taught to the end, so that samples at temperature 1 differ.
    """
    model: LlamaForCausalLM = load_causal_lm(tiny)
    tokenizer = load_tokenizer(tiny)
    renderer = ChatRenderer(tokenizer)
    questions = ["What is it?", *(p.question for p in words.load("train", count=12))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for step in range(120):
            record = renderer.record_turns(questions[step % len(questions)], TURNS)
            ids = torch.tensor([record.ids])
            labels = ids.masked_fill(~torch.tensor([record.action_mask]), -100)
            loss = model(input_ids=ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    path = tmp_path_factory.mktemp("model") / "taught"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def interpreter() -> Iterator[LocalInterpreter]:
    with LocalInterpreter(Limits(memory_bytes=512 << 20)) as interpreter:
        if interpreter.description["tier"] == "rlimits":
            pytest.skip("no sandbox that hides files works on this machine")
        yield interpreter
