import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from learners import make_learner
from learners.learner import LearnerConfig, LogProbs
from learners.losses import dpo
from learners.numerics import logprobs
from learners.numerics.batching import TokenBatch, micro_batches
from learners.numerics.head import target_logps
from learners.numerics.logprobs import reference_logps, summed_logps
from learners.preferences import Example, Sample, action_sample, completion_sample
from mathenv.types import SpanKind

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama-tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    # A cap so low that leaving it out would show, and a window shorter than the sequences.
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=0.5, sliding_window=4)
    ),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4)),
    "cohere": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)),
}


def build(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name]().eval()
        # Larger weights than at initialisation, so that log-probs differ between tokens.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data *= 5
        return model


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request):
    return build(request.param)


@pytest.fixture(scope="module")
def llama():
    return build("llama")


def random_samples(count, seed=0):
    rng = random.Random(seed)
    found = []
    for i in range(count):
        ids = tuple(rng.randrange(300) for _ in range(rng.randint(2, 24)))
        mask = [False] + [rng.random() < 0.5 for _ in ids[1:]]
        mask[rng.randrange(1, len(ids))] = True
        found.append(Sample(f"s{i}", ids, tuple(mask)))
    return found


def from_full_logits(model, sample):
    """One sequence, no padding, logits of the whole vocabulary at every position."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([sample.ids])).logits[0].double()
    logps = logits.log_softmax(-1)
    return sum(
        logps[t - 1, token].item()
        for t, (token, on) in enumerate(zip(sample.ids, sample.mask, strict=True))
        if on
    )


def test_the_sum_is_that_of_the_full_logits(model):
    samples = random_samples(9)
    with torch.no_grad():
        found = summed_logps(model, samples)
    assert found.dtype == torch.float32
    expected = [from_full_logits(model, s) for s in samples]
    assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert max(expected) - min(expected) > 1


@torch.no_grad()
def test_padding_and_company_do_not_matter(model):
    samples = random_samples(6)
    together = summed_logps(model, samples).tolist()
    alone = [summed_logps(model, [s]).item() for s in samples]
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-4)


@torch.no_grad()
def test_the_head_sees_the_target_positions_alone(llama, monkeypatch):
    samples = random_samples(5)
    rows = []

    def look(head, hidden, tokens, softcap):
        rows.append(len(hidden))
        return target_logps(head, hidden, tokens, softcap)

    monkeypatch.setattr(logprobs, "target_logps", look)
    summed_logps(llama, samples)
    assert rows == [sum(s.targets for s in samples)]


def gradients(model, samples):
    model.zero_grad(set_to_none=True)
    summed_logps(model, samples).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_a_masked_last_token_changes_neither_loss_nor_gradient(llama, make_trajectory):
    """No later token sees the last one, so all it could do is be a target."""
    sample = action_sample(make_trajectory(turns=2, dangling=True))
    assert not sample.mask[-1]
    other = Sample(sample.key, (*sample.ids[:-1], 299 - sample.ids[-1]), sample.mask)
    first, second = gradients(llama, [sample]), gradients(llama, [other])
    assert torch.equal(summed_logps(llama, [sample]), summed_logps(llama, [other]))
    assert all(torch.equal(first[n], second[n]) for n in first)
    # The same change does show where the last token is a target.
    on = (*sample.mask[:-1], True)
    changed = [summed_logps(llama, [Sample(s.key, s.ids, on)]).item() for s in (sample, other)]
    assert changed[0] != changed[1]


def test_logit_gradients_are_zero_off_the_mask_and_softmax_minus_one_on_it(llama):
    """The loss by our function, and by full logits whose gradient can be looked at."""
    sample = random_samples(3)[2]
    logits = llama(input_ids=torch.tensor([sample.ids])).logits[0].detach().requires_grad_()
    mask = torch.tensor(sample.mask[1:])
    targets = torch.tensor(sample.ids[1:])
    logps = logits.log_softmax(-1)[:-1].gather(-1, targets[:, None])[:, 0]
    (logps * mask).sum().backward()
    onehot = torch.nn.functional.one_hot(targets, 300)
    expected = (onehot - logits.detach().softmax(-1)[:-1]) * mask[:, None]
    assert torch.equal(logits.grad[:-1][~mask], torch.zeros_like(expected[~mask]))
    assert torch.allclose(logits.grad[:-1], expected, atol=1e-6)
    # Chain rule through the head: the weights' gradient is made of these rows alone.
    hidden = llama.base_model(input_ids=torch.tensor([sample.ids])).last_hidden_state[0].detach()
    ours = gradients(llama, [sample])["lm_head.weight"]
    assert torch.allclose(ours, expected.T @ hidden[:-1], atol=1e-4)


def test_single_turn_adds_exactly_what_stands_between_the_turns(llama, make_trajectory):
    trajectory = make_trajectory(turns=3)
    between = {
        t
        for s in trajectory.tokens.spans
        if s.kind in (SpanKind.OBSERVATION, SpanKind.SCAFFOLD)
        for t in range(s.start, s.end)
    }
    action, completion = action_sample(trajectory), completion_sample(trajectory)
    rest = Sample("rest", action.ids, tuple(t in between for t in range(len(action.ids))))
    with torch.no_grad():
        a, c, r = summed_logps(llama, [action, completion, rest]).tolist()
    assert c == pytest.approx(a + r, rel=1e-5)
    assert r < -1


@torch.no_grad()
def turn_logps(model, trajectory):
    """log pi(a_h | s_h) for each turn h, token by token from the history alone."""
    ids, found = trajectory.tokens.ids, []
    for span in trajectory.tokens.spans:
        if span.kind is SpanKind.SAMPLED:
            found.append(0.0)
            for t in range(span.start, span.end):
                logits = model(input_ids=torch.tensor([ids[:t]])).logits[0, -1].double()
                found[-1] += logits.log_softmax(-1)[ids[t]].item()
    return found


def test_mdpo_is_equation_14_turn_by_turn(llama, make_trajectory):
    reference = build("llama-tied")
    pairs = [
        (make_trajectory(p, True, sample=0, turns=2), make_trajectory(p, False, sample=1, turns=3))
        for p in "ab"
    ]
    eta = 0.3
    expected = 0.0
    for winner, loser in pairs:
        ratios = [
            sum(turn_logps(llama, t)) - sum(turn_logps(reference, t)) for t in (winner, loser)
        ]
        z = torch.tensor(eta * (ratios[0] - ratios[1]), dtype=torch.float64)
        expected -= z.sigmoid().log().item()
    learner = make_learner("mdpo", LearnerConfig(eta=eta))
    examples, _ = learner.examples([t for pair in pairs for t in pair], seed=0)
    samples = [s for e in examples for s in e.samples]
    cached = reference_logps(reference, examples, budget=64)
    ref = torch.cat([cached[s] for s in samples])
    output = learner.loss(LogProbs(summed_logps(llama, samples), ref), examples)
    assert output.loss.item() == pytest.approx(expected, rel=1e-4)
    assert learner.denominator(examples) == len(pairs)


def test_the_loss_of_a_step_does_not_depend_on_micro_batches(llama, make_trajectory):
    trajectories = [make_trajectory(p, i < 2, sample=i) for p in "abcde" for i in range(4)]
    learner = make_learner("mdpo", LearnerConfig(eta=0.3, nll_coef=0.7))
    examples, _ = learner.examples(trajectories, seed=0)
    losses = []
    for budget in (1, 80, 10**6):
        total = 0.0
        for batch in micro_batches(examples, budget):
            samples = [s for e in batch for s in e.samples]
            logps = summed_logps(llama, samples)
            total += learner.loss(LogProbs(logps, logps.detach() + 1), batch).loss.item()
        losses.append(total)
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_nll_coef_adds_the_token_mean_of_the_chosen_side():
    mask = (False, True, True, True)
    pair = Example((Sample("w", (1, 2, 3, 4), mask), Sample("l", (1, 2, 3, 4), mask)))
    logps, ref = torch.tensor([-6.0, -8.0]), torch.tensor([-7.0, -7.0])
    given = LogProbs(logps, ref)
    plain = make_learner("mdpo", LearnerConfig(eta=0.1)).loss(given, [pair])
    with_nll = make_learner("mdpo", LearnerConfig(eta=0.1, nll_coef=0.5)).loss(given, [pair])
    expected = dpo(logps[:1], logps[1:], ref[:1], ref[1:], eta=0.1).item()
    assert plain.loss.item() == pytest.approx(expected)
    assert with_nll.loss.item() == pytest.approx(expected + 0.5 * 6 / 3)
    metrics = {k: v.item() for k, v in plain.metrics.items()}
    assert metrics["rewards/chosen"] == pytest.approx(0.1)
    assert metrics["rewards/rejected"] == pytest.approx(-0.1)
    assert metrics["rewards/margins"] == pytest.approx(0.2)
    assert metrics["rewards/accuracies"] == 1
    assert metrics["nll_loss"] == pytest.approx(2)


def test_reference_logps_are_those_of_the_reference_and_carry_no_gradient(llama):
    samples = random_samples(6)
    examples = [Example((samples[i], samples[i + 1])) for i in (0, 2, 4)]
    found = reference_logps(llama, examples, budget=30)
    with torch.no_grad():
        assert torch.cat([found[s] for s in samples]).tolist() == pytest.approx(
            summed_logps(llama, samples).tolist(), rel=1e-5
        )


def test_a_target_is_predicted_one_position_before_it():
    batch = TokenBatch.padded(
        [Sample("a", (5, 6, 7), (False, False, True)), Sample("b", (8, 9), (False, True))]
    )
    assert batch.ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch.rows.tolist() == [1, 3]
    assert batch.tokens.tolist() == [7, 9]


lengths = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=2), max_size=30)


@given(lengths, st.integers(1, 200), st.booleans())
def test_micro_batches_cover_all_once_within_the_budget(lengths, budget, packed):
    examples = [
        Example(tuple(Sample(f"{i}/{j}", (1,) * n, (True,) * n) for j, n in enumerate(row)))
        for i, row in enumerate(lengths)
    ]
    batches = list(micro_batches(examples, budget, packed=packed))
    assert sorted(map(hash, (e for b in batches for e in b))) == sorted(map(hash, examples))
    for batch in batches:
        rows = [len(s.ids) for e in batch for s in e.samples]
        size = sum(rows) if packed else max(rows) * len(rows)
        assert len(batch) == 1 or size <= budget
