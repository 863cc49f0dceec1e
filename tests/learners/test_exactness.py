"""Losses against slow references in float64, and what must not change them."""

import math
import random
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from learners import KTOConfig, LearnerConfig, LogProbs, learner_names, make_learner
from learners.numerics.logprobs import micro_batches, reference_logps, summed_logps, token_logps
from learners.preferences import PairRules, prompt
from learners.training.loop import Frozen, Loop
from learners.training.parallel import Devices, Policy
from learners.training.train import Stage, TrainConfig, train
from mathenv.types import Span, SpanKind, TokenRecord

ETA = 0.3
CONFIG = LearnerConfig(eta=ETA, nll_coef=0.2, pairs=PairRules(per_problem=2))


def gpt2(seed):
    """A model that computes in float64 throughout; Llama's norms and rotations do not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=300, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3
        )
        return GPT2LMHeadModel(config).double().eval()


def near(model, seed):
    """A policy of which the model may be a later one."""
    other = gpt2(seed)
    with torch.no_grad():
        for mine, its in zip(other.parameters(), model.parameters(), strict=True):
            mine.lerp_(its, 0.9)
    return other


@pytest.fixture(scope="module")
def model():
    return gpt2(0)


@pytest.fixture(scope="module")
def frozen():
    return gpt2(1)


@pytest.fixture(scope="module")
def trajectories(make_trajectory):
    """Right and wrong answers; each two of a problem have their first turn in common."""
    found = []
    for p in "abc":
        for i in range(4):
            one = make_trajectory(p, i % 2 == 0, sample=i, turns=2 + i % 2)
            found.append(with_first_turn_of(make_trajectory(p, sample=10 + i // 2, turns=2), one))
    return found


def with_first_turn_of(other, trajectory):
    """The trajectory after the other's prompt and first turn."""
    cut = [next(s.start for s in t.tokens.spans if s.turn == 1) for t in (other, trajectory)]
    shift = cut[0] - cut[1]
    spans = [s for s in other.tokens.spans if s.turn == 0]
    spans += [
        Span(s.kind, s.turn, s.start + shift, s.end + shift)
        for s in trajectory.tokens.spans
        if s.turn > 0
    ]
    ids = (*other.tokens.ids[: cut[0]], *trajectory.tokens.ids[cut[1] :])
    return replace(trajectory, tokens=TokenRecord(ids, tuple(spans)))


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# --- slow references, written from the equations


def log_pi(model, ids, t):
    """log pi(ids[t] | ids[:t]) from a forward pass over ids[:t] alone."""
    logits = model(input_ids=torch.tensor([ids[:t]])).logits[0, -1]
    return logits.log_softmax(-1)[ids[t]]


def actions(trajectory):
    """The positions of a trajectory's own tokens, turn by turn."""
    spans = [s for s in trajectory.tokens.spans if s.kind is SpanKind.SAMPLED]
    return [t for span in spans for t in range(span.start, span.end)]


def log_ratio(model, frozen, trajectory):
    """sum_h log pi(a_h | s_h) / pi_ref(a_h | s_h), turn by turn, token by token."""
    ids, total = trajectory.tokens.ids, torch.zeros((), dtype=torch.float64)
    for t in actions(trajectory):
        with torch.no_grad():
            reference = log_pi(frozen, ids, t)
        total = total + log_pi(model, ids, t) - reference
    return total


@torch.no_grad()
def weighted_kl(model, frozen, start, trajectory):
    """The KL's estimate from tokens that `start` sampled (docs/theory.md), token by token."""
    total = torch.zeros((), dtype=torch.float64)
    for t in actions(trajectory):
        pi, ref, old = (log_pi(x, trajectory.tokens.ids, t).exp() for x in (model, frozen, start))
        total += pi / old * torch.log(pi / ref) - pi / old + ref / old
    return total


def fast(learner, model, frozen, examples, start=None):
    """The loss as the trainer computes it, in one forward pass."""
    evaluate = token_logps if learner.per_token else summed_logps

    def given(samples):
        with torch.no_grad():
            rest = [evaluate(x, samples) if x else None for x in (frozen, start)]
        return LogProbs(evaluate(model, samples), *rest)

    logps = given([s for e in examples for s in e.samples])
    controls = [e.control for e in examples if e.control]
    if learner.controls:
        with torch.no_grad():
            logps = replace(logps, baseline=learner.baseline(given(controls), controls).mean())
    return learner.loss(logps, examples).loss / learner.denominator(examples)


def assert_same(model, slow, quick):
    values = []
    for loss in (slow, quick):
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        values.append((value.item(), gradient(model)))
    (a, grad_a), (b, grad_b) = values
    assert b == pytest.approx(a, rel=1e-12)
    assert grad_a.norm() > 1e-3
    assert torch.allclose(grad_a, grad_b, rtol=1e-8, atol=1e-10)


def test_mdpo_is_equation_14(model, frozen, trajectories):
    learner = make_learner("mdpo", LearnerConfig(eta=ETA))
    examples, _ = learner.examples(trajectories, seed=0)
    by_key = {t.key: t for t in trajectories}
    assert len(examples) == 3

    def equation_14():
        losses = []
        for example in examples:
            winner, loser = (by_key[s.key] for s in example.samples)
            difference = log_ratio(model, frozen, winner) - log_ratio(model, frozen, loser)
            losses.append(-torch.log(torch.sigmoid(ETA * difference)))
        return sum(losses) / len(losses)

    assert_same(model, equation_14, lambda: fast(learner, model, frozen, examples))


@pytest.mark.parametrize("kl", ["mismatched", "on_policy", "none"])
def test_mkto_is_equation_15_with_one_eta(model, frozen, trajectories, kl):
    learner = make_learner("mkto", KTOConfig(eta=ETA, kl=kl, desirable_weight=1.2))
    examples, _ = learner.examples(trajectories, seed=0)
    by_key = {t.key: t for t in trajectories}
    assert len(examples) == 6
    start = None
    if kl == "on_policy":  # policies of one run: ratios of strangers would fill z0
        start, frozen = near(model, 2), near(model, 1)

    def z0():
        if kl == "none":
            return 0.0
        ratios = []
        for example in examples:
            mine, control = by_key[example.samples[0].key], example.control
            other = by_key[control.key.split("|")[-1]]
            if kl == "on_policy":
                ratios.append(weighted_kl(model, frozen, start, other))
                continue
            ids = (*prompt(mine), *other.tokens.ids[len(prompt(other)) :])
            shift = len(ids) - len(other.tokens.ids)
            spans = [
                Span(s.kind, s.turn, s.start + shift, s.end + shift) for s in other.tokens.spans
            ]
            ratios.append(
                log_ratio(model, frozen, replace(other, tokens=TokenRecord(ids, tuple(spans))))
            )
        return max(torch.stack(ratios).mean().item(), 0.0)

    def equation_15():
        baseline, losses = z0(), []
        for example in examples:
            r = log_ratio(model, frozen, by_key[example.samples[0].key])
            if by_key[example.samples[0].key].grade.correct:
                losses.append(1.2 - 1.2 * torch.sigmoid(ETA * (r - baseline)))
            else:
                losses.append(1 - torch.sigmoid(ETA * (baseline - r)))
        return sum(losses) / len(losses)

    assert_same(model, equation_15, lambda: fast(learner, model, frozen, examples, start))


# --- what a target that is masked out cannot do


@pytest.mark.parametrize("name", learner_names())
def test_masked_tokens_have_no_gradient_through_their_own_targets(
    model, frozen, trajectories, name
):
    """The head's input at a position feeds the next token's target and nothing else."""
    learner = make_learner(name, CONFIG)
    examples, _ = learner.examples(trajectories, seed=0)
    seen = []

    def keep(module, arguments, output):
        if torch.is_grad_enabled():
            output.last_hidden_state.retain_grad()
            seen.append(output.last_hidden_state)

    hook = model.base_model.register_forward_hook(keep)
    try:
        step(learner, model, frozen, examples, budget=10**6)
    finally:
        hook.remove()
    (hidden,) = seen
    samples = [s for e in next(iter(micro_batches(examples, 10**6))) for s in e.samples]
    for row, sample in enumerate(samples):
        on = torch.tensor([*sample.mask[1:], False])
        moved = hidden.grad[row, : len(sample.ids)].abs().amax(-1)
        assert (moved[~on] == 0).all()
        assert (moved[on] > 0).all()


# --- a table of equivalences: what changes a step by no more than rounding


def step(learner, model, frozen, examples, *, budget, online=False):
    """Loss and gradient of one optimizer step, in as many forward passes as the budget takes.

    `online` evaluates the reference at every forward pass instead of once before.
    """
    model.zero_grad(set_to_none=True)
    evaluate = token_logps if learner.per_token else summed_logps
    cached = reference_logps(frozen, examples, budget=budget, per_token=learner.per_token)
    total, baseline = 0.0, None
    if learner.controls:
        controls = [e.control for e in examples]
        with torch.no_grad():
            ratios = summed_logps(model, controls) - torch.cat([cached[c] for c in controls])
        baseline = ratios.mean()
    for batch in micro_batches(examples, budget):
        samples = [s for e in batch for s in e.samples]
        with torch.no_grad():
            start = evaluate(model, samples)
            online_reference = evaluate(frozen, samples)
        reference = online_reference if online else torch.cat([cached[s] for s in samples])
        logps = LogProbs(
            evaluate(model, samples),
            reference if learner.uses_reference else None,
            start if learner.uses_start else None,
            baseline,
        )
        loss = learner.loss(logps, batch).loss / learner.denominator(examples)
        loss.backward()
        total += loss.item()
    return total, gradient(model)


def shuffled(examples):
    return random.Random(0).sample(examples, len(examples))


SAME = {
    "permuted": lambda examples: (shuffled(examples), {}),
    "one example at a time": lambda examples: (examples, {"budget": 1}),
    "some micro-batches": lambda examples: (examples, {"budget": 80}),
    "online reference": lambda examples: (examples, {"online": True}),
    "all of these": lambda examples: (shuffled(examples), {"budget": 50, "online": True}),
    "two processes": lambda examples: (shuffled(examples), {"processes": "whole"}),
    "two processes, sharded": lambda examples: (shuffled(examples), {"processes": "sharded"}),
}


def process_steps(cases, file):
    """The steps of the loop itself, of this process among several: loss and gradient of each."""
    devices, found = Devices(), []
    for learner, examples, how in cases:
        config = TrainConfig(token_budget=80, shard=how == "sharded")
        policy = Policy(gpt2(0), devices, config)
        assert policy.sharded == config.shard
        optimizer = torch.optim.SGD(policy.parameters)
        per_token = learner.per_token
        reference, start = (
            reference_logps(gpt2(seed), examples, budget=80, per_token=per_token) for seed in (1, 0)
        )
        controls = [e.control for e in examples if e.control]
        frozen = Frozen(
            reference if learner.uses_reference else None,
            start if learner.uses_start else None,
            controls,
        )
        loop = Loop(learner, policy, optimizer, devices, config, seed=0, steps=1)
        parts = devices.gather(loop.backward(1, examples, frozen))
        whole = [p.grad.full_tensor() if config.shard else p.grad for p in policy.parameters]
        moved = torch.cat([g.flatten() for g in whole])
        found.append((sum(part.loss for part in parts), moved))
    if devices.is_main:
        torch.save(found, file)


@pytest.fixture(scope="module")
def of_two_processes(launch, trajectories, tmp_path_factory):
    """Steps by learner and row, of all in one start of processes."""
    file = tmp_path_factory.mktemp("processes") / "steps.pt"
    keys, cases = [], []
    for name in learner_names():
        learner = make_learner(name, CONFIG)
        examples, _ = learner.examples(trajectories, seed=0)
        for row, change in SAME.items():
            changed, how = change(examples)
            if "processes" in how:
                keys.append((name, row))
                cases.append((learner, changed, how["processes"]))
    assert launch(process_steps, cases, file) == [0, 0]
    return dict(zip(keys, torch.load(file), strict=True))


@pytest.mark.parametrize("row", SAME)
@pytest.mark.parametrize("name", learner_names())
def test_the_step_is_the_same(request, model, frozen, trajectories, name, row):
    learner = make_learner(name, CONFIG)
    examples, _ = learner.examples(trajectories, seed=0)
    assert len(examples) > 2
    loss, expected = step(learner, model, frozen, examples, budget=10**6)
    changed, how = SAME[row](examples)
    if "processes" in how:
        found, moved = request.getfixturevalue("of_two_processes")[name, row]
    else:
        found, moved = step(learner, model, frozen, changed, **{"budget": 10**6, **how})
    assert found == pytest.approx(loss, rel=1e-11)
    assert expected.norm() > 1e-3
    assert (moved - expected).norm() < 1e-9 * expected.norm()


@pytest.mark.parametrize("name", learner_names())
def test_every_learner_trains_in_the_loop(policy, reference, trajectories, name, tmp_path):
    learner = make_learner(name, CONFIG)
    examples, _ = learner.examples(trajectories, seed=0)
    stage = Stage(policy, tmp_path / "train", reference)
    rows = []
    config = TrainConfig(lr=1e-2, batch_size=4, checkpoints=1)
    train(learner, examples, config, stage, on_step=lambda *row: rows.append(row[2]))
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert {"loss", "grad_norm", "logps/chosen"} <= set(rows[0])
    assert rows[0]["grad_norm"] > 0
