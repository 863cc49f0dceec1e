"""Packed sequences, shared prefixes and the tiled head change results by rounding alone."""

import random

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from learners import LearnerConfig, LogProbs, learner_names, make_learner
from learners.numerics import attention, head
from learners.numerics.attention import PACKED, can_pack, prepare
from learners.numerics.batching import TokenBatch, micro_batches
from learners.numerics.head import target_logps
from learners.numerics.logprobs import reference_logps, summed_logps, token_logps
from learners.preferences import Example, PairRules, Sample
from learners.training.train import Stage, TrainConfig, train
from mathenv.types import Span, SpanKind, TokenRecord

CONFIG = LearnerConfig(eta=0.3, nll_coef=0.2, pairs=PairRules(per_problem=2))
VOCABULARY = 300
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
# Windows shorter than the sequences, and caps so low that leaving them out would show.
MODELS = {
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SHAPE)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **SHAPE, final_logit_softcapping=0.5, attn_logit_softcapping=0.7, sliding_window=4
        )
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
    "mistral-window": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=5)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen2-window": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SHAPE, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
}


def build(name, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MODELS[name]().eval()
        # Larger weights than at initialisation, so that log-probs differ between tokens.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data *= 5
        # As the model's authors wrote it: the other implementations leave soft-capping out.
        model.set_attn_implementation("eager")
        return model


@pytest.fixture(params=sorted(MODELS))
def model(request):
    return build(request.param)


def some_pairs(count=4, seed=0, prompts=(3, 12)):
    """Pairs of one prompt each; some are alike beyond it, targets included."""
    rng = random.Random(seed)

    def tokens(low, high):
        return tuple(rng.randrange(2, VOCABULARY) for _ in range(rng.randint(low, high)))

    found = []
    for i in range(count):
        start = tokens(*prompts)
        more = tokens(2, 6) if i % 2 else ()
        on_more = tuple(rng.random() < 0.5 for _ in more)
        sides = []
        for side in "wl":
            rest = tokens(2, 20)
            mask = (
                *(False for _ in start),
                *on_more,
                True,
                *(rng.random() < 0.6 for _ in rest[1:]),
            )
            sides.append(Sample(f"{i}{side}", (*start, *more, *rest), mask))
        found.append(Example(tuple(sides)))
    return found


def samples_of(examples):
    return [s for e in examples for s in e.samples]


@torch.no_grad()
def from_full_logits(model, sample):
    """One sequence alone, logits of the whole vocabulary at every position."""
    logps = model(input_ids=torch.tensor([sample.ids])).logits[0].double().log_softmax(-1)
    pairs = enumerate(zip(sample.ids, sample.mask, strict=True))
    return [logps[t - 1, token].item() for t, (token, on) in pairs if on]


def value_and_gradient(model, samples, **how):
    """Log-probs, and the gradient of a sum in which each has another weight."""
    model.zero_grad(set_to_none=True)
    logps = token_logps(model, samples, **how)
    (logps * torch.linspace(-1, 2, len(logps))).sum().backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return logps.detach(), found


# --- packing


@pytest.mark.parametrize("packed", [False, True])
def test_log_probs_are_those_of_each_sequence_alone(model, packed):
    samples = samples_of(some_pairs())
    expected = [logp for s in samples for logp in from_full_logits(model, s)]
    with torch.no_grad():
        found = token_logps(model, samples, packed=packed)
    assert found.tolist() == pytest.approx(expected, abs=2e-5)
    assert max(expected) - min(expected) > 0.5


def test_the_gradient_is_that_of_padded_sequences(model):
    samples = samples_of(some_pairs())
    (logps, expected), (others, found) = (
        value_and_gradient(model, samples, packed=packed) for packed in (False, True)
    )
    assert torch.allclose(logps, others, atol=1e-5)
    assert expected.norm() > 1e-2
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_a_prepared_model_still_runs_on_its_own(model):
    """The rollouts' engine may share it: padded on the left, with a cache."""
    ids = torch.tensor([[0, 0, 5, 6, 7, 8, 9], [11, 12, 13, 14, 15, 16, 17]])
    mask = (ids > 0).long()

    def run():
        with torch.no_grad():
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            given = model(ids, attention_mask=mask, position_ids=positions, use_cache=True)
            return given.logits[mask.bool()], model(ids[1:]).logits

    before = run()
    prepare(model)
    assert model.config._attn_implementation == PACKED
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(before, run(), strict=True))


def test_a_checkpoint_does_not_name_our_attention(tmp_path):
    model = build("llama")
    prepare(model)
    model.save_pretrained(tmp_path)
    assert PACKED not in (tmp_path / "config.json").read_text()
    LlamaForCausalLM.from_pretrained(tmp_path)


def test_models_with_other_ways_to_mix_positions_are_padded():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2))
    assert not can_pack(model)
    prepare(model)
    assert model.config._attn_implementation != PACKED


def test_checkpointed_activations_are_computed_again_in_the_packed_layout():
    model = build("llama")
    samples = samples_of(some_pairs())
    _, expected = value_and_gradient(model, samples, packed=True)
    model.train()
    model.gradient_checkpointing_enable()
    _, found = value_and_gradient(model, samples, packed=True)
    assert (found - expected).norm() < 1e-6 * expected.norm()


def test_the_loop_ends_with_the_same_weights_packed_or_padded(
    policy, reference, make_trajectory, tmp_path, monkeypatch
):
    learner = make_learner("mdpo", LearnerConfig(eta=0.3))
    trajectories = [make_trajectory(p, i < 2, sample=i) for p in "abcd" for i in range(4)]
    examples, _ = learner.examples(trajectories, seed=0)
    weights, losses = [], []
    for types in (frozenset(), attention._MODEL_TYPES):
        monkeypatch.setattr(attention, "_MODEL_TYPES", types)
        rows = []
        (last,) = train(
            learner,
            examples,
            TrainConfig(lr=1e-3, epochs=3, batch_size=4, token_budget=150, checkpoints=1),
            Stage(policy, tmp_path / str(len(types)), reference),
            on_step=lambda *row, rows=rows: rows.append(row[2]["loss"]),
        )
        losses.append(rows)
        model = LlamaForCausalLM.from_pretrained(last)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][0] != pytest.approx(losses[0][-1], rel=1e-3)
    assert (weights[0] - weights[1]).norm() < 1e-4 * weights[0].norm()


# --- shared prefixes


def test_a_prefix_is_there_once_where_that_pays():
    first = Sample("a", (5, 6, 7, 8), (False, False, True, True))
    second = Sample("b", (5, 6, 9), (False, False, True))
    other = Sample("c", (7, *range(10, 30)), (False,) + (True,) * 20)
    hardly = Sample("d", (7, *range(40, 60)), (False,) + (True,) * 20)
    batch = TokenBatch.packed([first, second, other, hardly])
    assert batch.ids[0, :5].tolist() == [5, 6, 7, 8, 9]
    assert batch.positions[0, :5].tolist() == [0, 1, 2, 3, 2]
    assert batch.ids.shape == (1, 5 + 21 + 21)
    assert batch.rows[:3].tolist() == [1, 2, 1]  # both first targets from the shared prefix
    assert batch.tokens[:3].tolist() == [7, 8, 9]
    assert batch.segments.lengths == (4, 3, 21, 21)
    assert batch.segments.rows[:7].tolist() == [0, 1, 2, 3, 0, 1, 4]
    assert batch.segments.kept[:5].tolist() == [0, 1, 2, 3, 6]
    alone = TokenBatch.packed([first, other])
    assert alone.segments.rows is None


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_sharing_prefixes_changes_neither_log_probs_nor_gradient(name, monkeypatch):
    model = build(name)
    samples = samples_of(some_pairs(prompts=(20, 30)))
    shared = TokenBatch.packed(samples)
    logps, gradient = value_and_gradient(model, samples, packed=True)
    monkeypatch.setattr("learners.numerics.batching._WORTH_SHARING", 1.0)
    apart = TokenBatch.packed(samples)
    assert shared.ids.numel() < 0.7 * apart.ids.numel()
    others, expected = value_and_gradient(model, samples, packed=True)
    assert torch.allclose(logps, others, atol=1e-5)
    assert (gradient - expected).norm() < 1e-5 * expected.norm()


def test_a_batch_of_pairs_holds_more_when_it_is_packed():
    pairs = some_pairs(12)
    batches = [list(micro_batches(pairs, 150, packed=packed)) for packed in (False, True)]
    assert len(batches[1]) < len(batches[0])


# --- a table of equivalences, as in test_exactness, for a model that packs


@pytest.fixture(scope="module")
def trajectories(make_trajectory):
    """Two turns each; of a problem's four samples each two have the first in common."""

    def tokens(problem, sample):
        parts = [(SpanKind.PROMPT, 0, problem)]
        parts += [(kind, 0, sample // 2) for kind in (SpanKind.SAMPLED, SpanKind.OBSERVATION)]
        ids, spans = [], []
        for kind, turn, name in (*parts, (SpanKind.SAMPLED, 1, f"{sample} ends")):
            rng, start = random.Random(f"{problem}/{kind}/{name}"), len(ids)
            ids += [rng.randrange(2, VOCABULARY) for _ in range(rng.randint(3, 9))]
            spans.append(Span(kind, turn, start, len(ids)))
        return TokenRecord(tuple(ids), tuple(spans))

    return [
        make_trajectory(p, i % 2 == 0, sample=i, tokens=tokens(p, i))
        for p in "abcd"
        for i in range(4)
    ]


def near(model, name, seed):
    """A policy of which the model may be a later one: learners clip or saturate on strangers."""
    other = build(name, seed)
    with torch.no_grad():
        for mine, its in zip(other.parameters(), model.parameters(), strict=True):
            mine.lerp_(its, 0.9)
    return other


def step(learner, models, examples, budget, packed, monkeypatch):
    """Loss and gradient of the first of the models: policy, reference, start."""
    if not packed:
        monkeypatch.setattr(attention, "_MODEL_TYPES", frozenset())
    model, per_token = models[0], learner.per_token
    model.zero_grad(set_to_none=True)
    evaluate = token_logps if per_token else summed_logps
    cached = [
        reference_logps(frozen, examples, budget=budget, per_token=per_token) if used else None
        for frozen, used in zip(
            models[1:], (learner.uses_reference, learner.uses_start), strict=True
        )
    ]

    def given(samples, baseline=None):
        rest = [x and torch.cat([x[s] for s in samples]) for x in cached]
        return LogProbs(evaluate(model, samples), *rest, baseline)

    total, baseline = 0.0, None
    if learner.controls:
        controls = [e.control for e in examples]
        with torch.no_grad():
            baseline = learner.baseline(given(controls), controls).mean()
    for batch in micro_batches(examples, budget, packed=packed):
        logps = given(samples_of(batch), baseline)
        loss = learner.loss(logps, batch).loss / learner.denominator(examples)
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    ("shuffle", "budget"), [(False, 10**6), (True, 10**6), (False, 60), (True, 1)]
)
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
@pytest.mark.parametrize("name", learner_names())
def test_a_packed_step_is_the_padded_one(name, kind, shuffle, budget, trajectories, monkeypatch):
    model = build(kind)
    models = [model, near(model, kind, 1), near(model, kind, 2)]
    learner = make_learner(name, CONFIG)
    examples, _ = learner.examples(trajectories, seed=0)
    assert len(examples) > 2
    with monkeypatch.context() as patch:
        loss, expected = step(learner, models, examples, 10**6, False, patch)
    if shuffle:
        examples = random.Random(0).sample(examples, len(examples))
    found, moved = step(learner, models, examples, budget, True, monkeypatch)
    assert found == pytest.approx(loss, rel=1e-5, abs=1e-6)
    assert expected.norm() > 1e-2
    assert (moved - expected).norm() < 1e-5 * expected.norm()


# --- the head


@pytest.mark.parametrize("softcap", [None, 0.5])
@pytest.mark.parametrize("kind", ["linear", "bias", "few"])
def test_the_tiled_head_is_log_softmax(kind, softcap, monkeypatch):
    monkeypatch.setattr(head, "_KEPT", 13 * 40 if kind == "few" else 0)
    monkeypatch.setattr(head, "_TOKENS", 5)
    monkeypatch.setattr(head, "_VOCABULARY", 7)
    torch.manual_seed(0)
    module = torch.nn.Linear(6, 40, bias=kind == "bias").double()
    hidden = torch.randn(13, 6, dtype=torch.float64)
    tokens = torch.randint(40, (13,))
    weights = torch.linspace(-1, 2, 13, dtype=torch.float64)

    def plain(x):
        logits = module(x)
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        return logits.log_softmax(-1)[torch.arange(13), tokens]

    found = []
    for logps in (lambda x: target_logps(module, x, tokens, softcap), plain):
        module.zero_grad(set_to_none=True)
        given = hidden.clone().requires_grad_()
        value = logps(given)
        (value * weights).sum().backward()
        found.append((value.detach(), given.grad, *(p.grad for p in module.parameters())))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_a_frozen_head_gets_no_gradient_and_passes_one_on():
    module = torch.nn.Linear(6, 40, bias=False).requires_grad_(False)
    hidden = torch.randn(3, 6, requires_grad=True)
    target_logps(module, hidden, torch.tensor([1, 2, 3]), None).sum().backward()
    assert module.weight.grad is None
    assert hidden.grad.norm() > 0


@pytest.mark.parametrize("how", ["weights", "autocast"])
def test_half_precision_is_summed_in_float32(how):
    torch.manual_seed(0)
    module = torch.nn.Linear(32, 500, bias=False)
    hidden, tokens = torch.randn(9, 32), torch.randint(500, (9,))
    expected = target_logps(module, hidden, tokens, None)
    if how == "weights":
        module, hidden = module.bfloat16(), hidden.bfloat16()
    hidden.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        found = target_logps(module, hidden, tokens, None)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=0.05)
    assert hidden.grad.dtype == hidden.dtype
    assert module.weight.grad.dtype == module.weight.dtype


def test_logits_are_never_whole():
    """No tensor of targets times vocabulary: the largest that is made is a tile."""
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.append(out.numel())
            return out

    module = torch.nn.Linear(2, 3 * head._VOCABULARY, bias=False)
    hidden = torch.randn(2 * head._TOKENS, 2, requires_grad=True)
    tokens = torch.randint(3 * head._VOCABULARY, (len(hidden),))
    with Watch():
        target_logps(module, hidden, tokens, None).sum().backward()
    assert max(sizes) == head._TOKENS * head._VOCABULARY


@pytest.mark.skipif(not torch.cuda.is_available(), reason="varlen attention needs a GPU")
@pytest.mark.parametrize("window", [None, 5])
def test_one_kernel_attends_as_one_sequence_after_the_other(window):
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, n, 40, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for n in (4, 2, 2)
    )
    lengths = (9, 30, 1)
    found = attention._flash(q, k, v, lengths, 0.125, window)
    parts = (x.split(lengths, dim=2) for x in (q, k, v))
    every = [attention._attend(*qkv, 0.125, None, window) for qkv in zip(*parts, strict=True)]
    assert torch.allclose(found, torch.cat(every, dim=2), atol=2e-2)
