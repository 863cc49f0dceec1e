"""The embedded default: a tiny Llama-style model and tokenizer, made on the spot.

Nothing is downloaded. The tokenizer is a byte-level BPE with single-digit numbers,
trained on `words` problems; the chat template is Gemma's, whose turns the paper uses.
The folder it writes loads with `from_pretrained` like any other checkpoint.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mathenv.errors import ConfigError
from mathenv.problems import words
from mathenv.protocol import code_block, output_block
from mathenv.settings import Count, Range, check_settings

BOS, EOS, PAD, START, END = "<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"

# Gemma's published template in its essentials: no system role, "assistant" is "model".
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\\n'"
    " + message['content'] + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class TinyConfig:
    """Shape of the tiny model. `hidden / heads` = 32 is a head size vLLM's CPU kernels know."""

    hidden: Count = 128
    layers: Count = 4
    heads: Count = 4
    intermediate: Count = 384
    vocab: Annotated[int, Range(261)] = 512
    max_positions: Count = 1024

    def __post_init__(self) -> None:
        check_settings(self)
        if self.hidden % (2 * self.heads):
            raise ConfigError(
                f"hidden must be an even multiple of heads, not {self.hidden} for {self.heads} "
                "heads: each head has an even share of it"
            )


def make_tiny(path: str | Path, *, config: TinyConfig | None = None, seed: int = 0) -> Path:
    """Write an untrained model and its tokenizer to `path`, replacing what is there."""
    config = config or TinyConfig()
    path = Path(path)
    tokenizer = _tokenizer(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_llama_config(config, tokenizer))
    if path.exists():
        shutil.rmtree(path)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def _llama_config(config: TinyConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    shape = asdict(config)
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape["hidden"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        intermediate_size=shape["intermediate"],
        max_position_embeddings=shape["max_positions"],
        tie_word_embeddings=True,
        # Llama's 0.02 suits widths of thousands (see learners/README.md on tuning).
        initializer_range=0.08,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.pad_token_id,
    )


def _tokenizer(config: TinyConfig) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            # Single digits, a blank before them kept with the first: " 14" is " 1", "4".
            pre_tokenizers.Split(
                Regex(r" ?[0-9]| ?[A-Za-z]+| ?[^\sA-Za-z0-9]+|\s+"), behavior="isolated"
            ),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab,
        special_tokens=[PAD, BOS, EOS, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[START, END],
        chat_template=CHAT_TEMPLATE,
    )


def _corpus() -> list[str]:
    # Words and their code only: no answer can leak through 500 sub-words.
    problems = words.load("train", count=500)
    texts = [p.question for p in problems]
    texts += [code_block(cell) for p in problems for cell in p.solution]
    texts += [output_block("0") + "\nmodel\nuser\n\\boxed{0}"] * 200
    return texts
