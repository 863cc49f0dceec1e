"""The transformers engine against Hugging Face's own generation and forward pass."""

import asyncio
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from agents.base import Completion, CompletionRequest, LanguageModel
from agents.models.hf import TransformersModel, load_causal_lm, load_tokenizer
from agents.policy import load_policy
from mathenv.errors import ConfigError, InfraError
from mathenv.types import FinishReason

VOCAB = 48
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # wide, so that the largest logit stands apart
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
WINDOW = 7  # shorter than the prompts below
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, head_dim=8, query_pre_attn_scalar=8, sliding_window=WINDOW)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=WINDOW)),
    # Learned positions: unlike rotary ones they show a shift that all tokens share.
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=128,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
}
PROMPTS = [
    [int(t) for t in torch.randint(3, VOCAB, (n,), generator=torch.Generator().manual_seed(n))]
    for n in (1, 4, 7, 8, 15, 15, 23)
]


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MODELS[request.param]().eval()


@pytest.fixture(scope="module")
def engine(model):
    engine = TransformersModel(model, None, name="small")
    yield engine
    engine.close()


def ask(ids, *, temperature=0.0, top_p=1.0, seed=0, new=20, stops=(), strings=()):
    return CompletionRequest(
        ids=ids,
        max_new_tokens=new,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop_ids=frozenset(stops),
        stop_strings=tuple(strings),
    )


def forward_logprobs(model, prompt, ids):
    """Log-probability of each of `ids` after `prompt`: one forward pass, no cache."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[*prompt, *ids]]), use_cache=False).logits[0]
    steps = logits[len(prompt) - 1 : -1].float().log_softmax(-1)
    return [steps[i, token].item() for i, token in enumerate(ids)]


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_greedy_equals_hugging_face_generation(engine, model, prompt):
    expected = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=None,
        pad_token_id=0,
    )
    (completion,) = engine.generate([ask(prompt)])
    assert list(completion.ids) == expected[0, len(prompt) :].tolist()
    assert completion.finish is FinishReason.LENGTH


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.5])
def test_logprobs_equal_a_full_forward_pass_at_temperature_one(engine, model, temperature):
    requests = [ask(p, temperature=temperature, seed=n) for n, p in enumerate(PROMPTS)]
    for prompt, completion in zip(PROMPTS, engine.generate(requests), strict=True):
        expected = forward_logprobs(model, prompt, completion.ids)
        assert completion.logprobs == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_gives_what_single_requests_give(engine, temperature):
    # Different lengths (padding), different ends (rows leave, the cache is cut).
    requests = [
        ask(p, temperature=temperature, seed=n, new=3 + 4 * n, stops=range(40, 48))
        for n, p in enumerate(PROMPTS)
    ]
    together = engine.generate(requests)
    assert len({len(c.ids) for c in together}) > 1
    for request, completion in zip(requests, together, strict=True):
        (alone,) = engine.generate([request])
        assert completion.ids == alone.ids
        assert completion.finish == alone.finish
        assert completion.logprobs == pytest.approx(alone.logprobs, abs=2e-4)
    assert [c.ids for c in engine.generate(requests[::-1])] == [c.ids for c in together[::-1]]


@pytest.fixture(scope="module")
def tiny_engine(tiny):
    engine = TransformersModel.load(tiny, name="tiny")
    yield engine
    engine.close()


def test_stop_ids_end_a_turn_and_belong_to_it(tiny_engine):
    (free,) = tiny_engine.generate([ask([5, 6, 7], temperature=1.0, seed=3)])
    stop = free.ids[4]
    (stopped,) = tiny_engine.generate([ask([5, 6, 7], temperature=1.0, seed=3, stops=[stop])])
    assert stopped.ids == free.ids[: free.ids.index(stop) + 1]
    assert stopped.finish is FinishReason.STOP
    assert len(stopped.logprobs) == len(stopped.ids)
    last = ask([5, 6, 7], temperature=1.0, seed=3, stops=[stop], new=len(stopped.ids))
    assert tiny_engine.generate([last])[0].finish is FinishReason.STOP  # not LENGTH


def test_stop_strings_end_a_turn_wherever_they_lie_in_the_tokens(tiny_engine, tiny):
    tokenizer = load_tokenizer(tiny)
    request = ask([5, 6, 7], temperature=1.0, seed=3, new=80)
    (free,) = tiny_engine.generate([request])
    text = tokenizer.decode(free.ids)
    readable = max(text.split("\N{REPLACEMENT CHARACTER}"), key=len)
    assert len(readable) >= 6, text
    for stop in (readable[1:4], readable[2:]):
        (stopped,) = tiny_engine.generate(
            [ask([5, 6, 7], temperature=1.0, seed=3, new=80, strings=["never there", stop])]
        )
        assert stopped.finish is FinishReason.STOP_STRING
        assert stopped.ids == free.ids[: len(stopped.ids)]
        assert stop in tokenizer.decode(stopped.ids)
        assert stop not in tokenizer.decode(stopped.ids[:-1])


def test_a_long_stop_string_is_found(tiny_engine, tiny):
    tokenizer = load_tokenizer(tiny)
    long = "\N{SNOWMAN}" * 40  # three byte tokens each: more tokens than characters
    ids = tokenizer(long, add_special_tokens=False)["input_ids"]
    assert len(ids) > 64
    model = _Parrot(ids, len(tokenizer))
    engine = TransformersModel(model, tokenizer, name="parrot")
    (completion,) = engine.generate([ask([5], new=len(ids) + 5, strings=[long])])
    engine.close()
    assert completion.finish is FinishReason.STOP_STRING
    assert list(completion.ids) == ids


class _Parrot(torch.nn.Module):
    """A model that says the same tokens over and over, whatever it is asked."""

    def __init__(self, ids: list[int], vocabulary: int) -> None:
        super().__init__()
        self.config = LlamaConfig(**SHAPE)
        self.device = torch.device("cpu")
        self._ids, self._vocabulary, self._next = ids, vocabulary, 0

    def forward(self, input_ids, **_):
        logits = torch.zeros(*input_ids.shape, self._vocabulary)
        logits[..., self._ids[self._next % len(self._ids)]] = 9.0
        self._next += 1
        return _Output(logits)


class _Output:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


def test_seeds_are_each_requests_own(tiny_engine):
    one, other = ask([5, 6], temperature=1.0, seed=1), ask([5, 6], temperature=1.0, seed=2)
    a, b, c = tiny_engine.generate([one, other, one])
    assert a.ids == c.ids
    assert a.ids != b.ids


# 99.9th percentiles of the chi-square distribution, by degrees of freedom.
CHI_SQUARE = {2: 13.82, 3: 16.27, 4: 18.47, 5: 20.52, 35: 66.62}


@pytest.fixture(scope="module")
def dice():
    """A model over six tokens, far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        shape = SHAPE | {"vocab_size": 6, "initializer_range": 0.1}
        return LlamaForCausalLM(LlamaConfig(**shape)).eval()


def next_probs(model, prompt, temperature):
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
    return (logits / temperature).softmax(-1)


def chi_square(counts, probs):
    expected = probs * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (2.0, 1.0), (1.0, 0.7)])
def test_samples_follow_the_models_distribution(dice, temperature, top_p):
    engine = TransformersModel(dice, None, name="dice")
    prompt = [3, 4, 5]
    completions = engine.generate(
        [ask(prompt, temperature=temperature, top_p=top_p, seed=s, new=1) for s in range(3000)]
    )
    engine.close()
    counts = torch.bincount(torch.tensor([c.ids[0] for c in completions]), minlength=6).double()
    probs = next_probs(dice, prompt, temperature)
    if top_p < 1:  # the smallest set of tokens that holds top_p, spelled out
        kept, total = set(), 0.0
        for token in sorted(range(6), key=lambda t: -probs[t].item()):
            kept.add(token)
            total += probs[token].item()
            if total >= top_p:
                break
        probs = torch.tensor([probs[t].item() / total if t in kept else 0.0 for t in range(6)])
        assert len(kept) < 6
        assert counts[[t for t in range(6) if t not in kept]].sum() == 0
    alive = probs > 0
    assert chi_square(counts[alive], probs[alive]) < CHI_SQUARE[int(alive.sum()) - 1]


def test_tokens_of_one_sample_are_independent_draws(dice):
    engine = TransformersModel(dice, None, name="dice")
    prompt = [3, 4, 5]
    completions = engine.generate(
        [ask(prompt, temperature=1.0, seed=s, new=2) for s in range(4000)]
    )
    engine.close()
    counts = torch.zeros(6, 6, dtype=torch.double)
    for completion in completions:
        counts[completion.ids] += 1
    first = next_probs(dice, prompt, 1.0)
    joint = torch.stack([first[t] * next_probs(dice, [*prompt, t], 1.0) for t in range(6)])
    assert chi_square(counts.flatten(), joint.flatten()) < CHI_SQUARE[35]


def complete_all(engine, requests, *, late=()) -> list[Completion | BaseException]:
    """Ask from one session each; the numbers in `late` wait a little first."""

    async def one(number, request):
        async with engine.session() as session:
            if number in late:
                await asyncio.sleep(0.02)
            return await session.complete(request)

    async def run():
        work = (one(number, request) for number, request in enumerate(requests))
        return await asyncio.gather(*work, return_exceptions=True)

    return asyncio.run(run())


class _Counted(TransformersModel):
    """Notes the batches that it decodes."""

    def generate(self, requests):
        self.batches = [*getattr(self, "batches", []), [tuple(r.ids) for r in requests]]
        return super().generate(requests)


@pytest.mark.parametrize("max_batch", [1, 2, 4, 128])
def test_batches_do_not_depend_on_who_was_late(tiny, max_batch):
    requests = [ask([5] * n, temperature=1.0, seed=n, new=4) for n in (3, 1, 4, 2, 5)]
    batches, answers = [], []
    for late in ((), (0,), (1, 2), (4, 0, 3)):
        engine = _Counted(load_causal_lm(tiny), load_tokenizer(tiny), name="x", max_batch=max_batch)
        answers.append(complete_all(engine, requests, late=late))
        engine.close()
        batches.append(engine.batches)
    assert all(other == batches[0] for other in batches)
    assert all(other == answers[0] for other in answers)
    assert max(map(len, batches[0])) == min(max_batch, 5)


def test_a_failing_batch_is_everyones_infra_error_and_the_engine_goes_on(tiny):
    engine = TransformersModel.load(tiny, name="sick")
    requests = [ask([5, 6]), ask([10**6]), ask([7])]  # no such token: the lookup raises
    failures = complete_all(engine, requests)
    assert [type(f) for f in failures] == [InfraError] * 3
    assert all("sick: IndexError" in str(f) for f in failures)
    (answer,) = complete_all(engine, [ask([5, 6])])
    assert answer == engine.generate([ask([5, 6])])[0]
    engine.close()
    engine.close()
    (closed,) = complete_all(engine, [ask([5, 6])])
    assert isinstance(closed, InfraError)


def test_broken_weights_are_an_infra_error_not_a_sample(tiny):
    model = load_causal_lm(tiny)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    engine = TransformersModel(model, None, name="nan")
    (failure,) = complete_all(engine, [ask([5, 6], temperature=1.0)])
    engine.close()
    assert isinstance(failure, InfraError)
    assert "not finite" in str(failure)


def test_a_cancelled_request_leaves_nothing_behind(tiny):
    engine = _Counted(load_causal_lm(tiny), load_tokenizer(tiny), name="x")

    async def cancelled():
        async def stuck():
            async with engine.session() as session:
                await session.complete(ask([5, 6], new=4))

        async with engine.session():  # a second session that never asks
            task = asyncio.create_task(stuck())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    (answer,) = complete_all(engine, [ask([7, 8], new=4)])  # in another event loop
    engine.close()
    assert engine.batches == [[(7, 8)]]
    assert isinstance(answer, Completion)


@pytest.mark.parametrize("request_", [ask([]), ask([5], new=0)])
def test_an_impossible_request_is_refused(tiny_engine, request_):
    (failure,) = complete_all(tiny_engine, [request_])
    assert isinstance(failure, ConfigError)


def test_the_engine_is_a_language_model(tiny_engine):
    assert isinstance(tiny_engine, LanguageModel)
    assert tiny_engine.name == "tiny"


def _without(name):
    def spoil(folder):
        (folder / name).unlink()

    return spoil


def _with(name, content):
    def spoil(folder):
        (folder / name).write_bytes(content)

    return spoil


SPOILED = {
    "no config": (_without("config.json"), "no config.json"),
    "no weights": (_without("model.safetensors"), "cannot load a causal language model"),
    "no tokenizer": (_without("tokenizer.json"), "cannot load a tokenizer"),
    "config is not JSON": (_with("config.json", b"{"), "cannot load"),
    "unknown model": (_with("config.json", b'{"model_type": "no such"}'), "cannot load"),
    "weights cut short": (_with("model.safetensors", b"x" * 50), "cannot load a causal"),
    "tokenizer is not JSON": (_with("tokenizer.json", b"{"), "cannot load a tokenizer"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_bad_folder_is_a_config_error(fault, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "model")
    spoil, message = SPOILED[fault]
    spoil(folder)
    with pytest.raises(ConfigError, match=message), load_policy(folder):
        pass


def test_a_missing_folder_and_a_wrong_dtype_are_config_errors(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"there is no folder"):
        TransformersModel.load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="float33"):
        load_causal_lm(tiny, dtype="float33")


def test_a_policy_is_named_after_its_folder_and_closed_after_use(tiny):
    with load_policy(tiny) as agent:
        assert agent.name == str(tiny)
        assert json.loads((tiny / "config.json").read_text())["model_type"] == "llama"
        engine = agent.model
    (closed,) = complete_all(engine, [ask([5])])
    assert isinstance(closed, InfraError)


# --- the end of the model's positions


def short(name, positions):
    if name == "gpt2":
        config = GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=positions)
        return GPT2LMHeadModel(config).eval()
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, "max_position_embeddings": positions})).eval()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_turn_ends_where_the_models_positions_do(name):
    engine = TransformersModel(short(name, 12), None, name="short")
    assert engine.context == 12
    # The short one goes on while the long ones, of which there are too few to leave, are done.
    long, brief = ask(list(range(5, 15))), ask([5, 6])
    found = complete_all(engine, [replace(r, max_new_tokens=40) for r in (long, brief, brief)])
    assert [len(c.ids) for c in found] == [2, 10, 10]
    assert {c.finish for c in found} == {FinishReason.LENGTH}
    (full,) = complete_all(engine, [ask(list(range(5, 17)))])
    assert isinstance(full, InfraError)
    assert "prompt of 12 tokens does not fit into the model's 12" in str(full)
    engine.close()


def test_an_episode_ends_at_the_models_positions_as_at_its_own_limit(tiny):
    """No room for another turn is an end of the episode, and no failure of the machinery."""
    with load_policy(tiny) as agent:
        agent.model.context = 40
        assert agent.max_tokens == 40

        async def play():
            async with agent.episode("What is 1 + 1?", sample=0, seed=0) as episode:
                actions = [await episode.act("What is 1 + 1?")]
                while actions[-1] is not None:
                    actions.append(await episode.act("2"))
                return actions, episode.tokens()

        actions, tokens = asyncio.run(play())
        assert actions[-1] is None
        assert len(tokens.ids) <= 40
