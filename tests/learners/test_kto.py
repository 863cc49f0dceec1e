"""M-KTO: its labels, and where z0 comes from."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch

import learners.training.parallel
import learners.training.reference
from agents.models.hf import load_causal_lm
from learners import KTOConfig, LearnerConfig, LogProbs, make_learner
from learners.losses import off_policy_k3
from learners.numerics.logprobs import reference_logps, summed_logps, token_logps
from learners.preferences import PairRules, Sample, action_sample, completion_sample, prompt
from learners.training.train import Stage, TrainConfig, train
from mathenv.errors import ConfigError, TrainingError

RULES = PairRules(per_problem=2)
TRAIN = TrainConfig(lr=3e-3, batch_size=4, checkpoints=1)


@pytest.fixture(scope="module")
def trajectories(make_trajectory):
    own = [make_trajectory(p, i < 2, sample=i) for p in "abc" for i in range(4)]
    older = [(p, i) for p in "abd" for i in (0, 2)]
    return own + [make_trajectory(p, i < 2, sample=i, agent="previous") for p, i in older]


def examples_of(trajectories, name="mkto", **settings):
    learner = make_learner(name, KTOConfig(pairs=RULES, **settings))
    return learner, *learner.examples(trajectories, seed=0)


def test_the_samples_are_those_of_the_pairs_labelled(trajectories):
    _, examples, report = examples_of(trajectories)
    pairs, _ = make_learner("mdpo", LearnerConfig(pairs=RULES)).examples(trajectories, seed=0)
    assert [e.samples[0] for e in examples] == [s for pair in pairs for s in pair.samples]
    right = {t.key: t.grade.correct for t in trajectories}
    assert [e.score for e in examples] == [float(right[e.samples[0].key]) for e in examples]
    assert {k for row in report.provenance for k in row} == {"chosen", "rejected"}


@pytest.mark.parametrize(("name", "sample"), [("mkto", action_sample), ("kto", completion_sample)])
def test_a_mismatched_control_is_a_prompt_with_the_completion_of_another_problem(
    trajectories, name, sample
):
    by_key = {t.key: t for t in trajectories}
    _, examples, _ = examples_of(trajectories, name)
    for example in examples:
        mine = by_key[example.samples[0].key]
        problem, _, key = example.control.key.partition("|")
        other = by_key[key]
        assert problem == mine.problem.id != other.problem.id
        assert other.grade.correct == mine.grade.correct  # as many good ones as bad
        begin, cut = prompt(mine), len(prompt(other))
        assert example.control.ids == (*begin, *other.tokens.ids[cut:])
        assert example.control.mask[len(begin) :] == sample(other).mask[cut:]
        assert not any(example.control.mask[: len(begin)])


@pytest.mark.parametrize("name", ["mkto", "kto"])
def test_an_on_policy_control_is_a_whole_sample_of_the_current_agent(trajectories, name):
    by_key = {t.key: t for t in trajectories}
    _, examples, _ = examples_of(trajectories, name, kl="on_policy")
    found = {}
    for example in examples:
        control = by_key[example.control.key]
        assert example.control == action_sample(control)  # an observation was not sampled
        assert control.agent == "current"
        found.setdefault(by_key[example.samples[0].key].problem.id, set()).add(control.problem.id)
    # Where the current agent has samples of the problem they are taken; d has none.
    assert {p: found[p] for p in "abc"} == {p: {p} for p in "abc"}
    assert found["d"] <= set("abc")


def test_on_policy_controls_are_chosen_whatever_their_answer(make_trajectory):
    """z0 is an expectation over what the policy samples, not over balanced labels."""
    every = [make_trajectory(f"p{p}", i < 1, sample=i) for p in range(40) for i in range(8)]
    _, examples, _ = examples_of(every, kl="on_policy")
    right = {t.key for t in every if t.grade.correct}
    share = sum(e.control.key in right for e in examples) / len(examples)
    assert 0.02 < share < 0.3  # one of eight


def test_no_kl_has_no_controls(trajectories):
    learner, examples, _ = examples_of(trajectories, kl="none")
    assert learner.controls == 0
    assert all(e.control is None for e in examples)


def test_one_problem_cannot_be_mismatched(make_trajectory):
    only = [make_trajectory("a", True), make_trajectory("a", False, sample=1)]
    with pytest.raises(TrainingError, match=r'a#current#0: no other problem.*kl = "on_policy"'):
        examples_of(only)
    assert len(examples_of(only, kl="on_policy")[1]) == 2


def test_on_policy_needs_samples_of_the_agent(trajectories):
    with pytest.raises(TrainingError, match=r"agent 'newest', only by current, previous"):
        examples_of(trajectories, kl="on_policy", agent="newest")


@pytest.mark.parametrize("wrong", [{"kl": "fresh"}, {"kl_sequences": 0}])
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        KTOConfig(**wrong)


def test_z0_is_detached_and_at_least_zero(trajectories):
    learner, examples, _ = examples_of(trajectories)
    n = len(examples)
    policy, ref = -torch.linspace(1, 9, n), -torch.linspace(2, 8, n)
    for baseline, z0 in ((0.7, 0.7), (-0.7, 0.0)):
        given = torch.tensor(baseline, requires_grad=True)
        logps = policy.clone().requires_grad_()
        output = learner.loss(LogProbs(logps, ref, None, given), examples)
        output.loss.backward()
        assert given.grad is None
        assert output.metrics["kl"].tolist() == pytest.approx([z0] * n)
        expected = 0.0
        for example, a, b in zip(examples, policy.tolist(), ref.tolist(), strict=True):
            sign = 1 if example.score else -1
            expected += 1 - 1 / (1 + math.exp(-sign * 0.1 * (a - b - z0)))
        assert output.loss.item() == pytest.approx(expected, rel=1e-5)


# --- the on-policy estimate of z0, against all sequences of a small world

ACTIONS, END, SEEN = (1, 2, 3), 3, {1: 4, 2: 5}  # what an action is answered with


def every_sequence():
    """A question, up to three actions and the observations between them, which no policy gives."""
    found, begun = [], [((0,), (False,))]
    while begun:
        ids, mask = begun.pop()
        for action in ACTIONS:
            longer, on = (*ids, action), (*mask, True)
            if action == END or sum(on) == 3:
                found.append(Sample(str(longer), longer, on))
            else:
                begun.append(((*longer, SEEN[action]), (*on, False)))
    return found


def row_of(seeds, history):
    """Log-probs of the actions after a history. A policy is seeds, and what each weighs."""
    logits = torch.zeros(len(ACTIONS), dtype=torch.float64)
    for seed, weight in seeds.items():
        rng = random.Random(f"{seed}/{history}")
        logits += weight * torch.tensor([rng.gauss(0, 1) for _ in ACTIONS], dtype=torch.float64)
    return logits.log_softmax(-1)


def histories(sample):
    return [(sample.ids[:t], sample.ids[t]) for t, on in enumerate(sample.mask) if on]


def tokens_of(policy, samples):
    """As `token_logps`."""
    return torch.stack([row_of(policy, s)[a - 1] for x in samples for s, a in histories(x)])


def chances(policy, samples):
    return torch.stack([tokens_of(policy, [sample]).sum().exp() for sample in samples])


def exact_kl(policy, reference, visitor, samples):
    """KL(policy, reference) at each state, summed along the sequences that `visitor` samples."""

    def at(state):
        p, q = row_of(policy, state), row_of(reference, state)
        return (p.exp() * (p - q)).sum()

    sums = torch.stack([sum(at(state) for state, _ in histories(s)) for s in samples])
    return (chances(visitor, samples) * sums).sum().item()


START, MOVED, OLDER = {"start": 1}, {"start": 1, "step": 0.7}, {"start": 1, "before": -0.9}


@pytest.mark.parametrize(
    ("policy", "reference"),
    [(MOVED, START), (START, OLDER), (MOVED, OLDER)],
    ids=["reference = start", "first step", "another reference"],
)
def test_the_on_policy_estimate_is_the_kl_at_the_states_of_the_start_in_expectation(
    policy, reference
):
    samples = every_sequence()
    chance = chances(START, samples)
    assert chance.sum().item() == pytest.approx(1)
    learner = make_learner("mkto", KTOConfig(kl="on_policy"))
    logps = LogProbs(*(tokens_of(x, samples) for x in (policy, reference, START)))
    values = learner.baseline(logps, samples)
    assert (values >= 0).all()
    expected = exact_kl(policy, reference, START, samples)
    assert (chance * values).sum().item() == pytest.approx(expected, rel=1e-12)
    assert expected > 0.1
    if policy is MOVED:
        # Not of equation 15 to the letter: the policy itself comes to other states.
        assert exact_kl(policy, reference, policy, samples) != pytest.approx(expected, rel=1e-2)
    if reference is START:  # the mean of the log-ratios alone would be clamped to no z0 at all
        ratios = chances(policy, samples).log() - chances(START, samples).log()
        assert (chance * ratios).sum() < 0


def test_a_token_that_the_policy_has_all_but_ruled_out_does_not_break_the_estimate():
    logps, ref = torch.tensor([-300.0, -1.0]), torch.tensor([-1.0, -1.0])
    found = off_policy_k3(logps, ref, torch.tensor([-2.0, -1.0]))
    assert found.tolist() == pytest.approx([math.e, 0])


def first_row(trajectories, stage, train_config, **settings):
    learner, examples, _ = examples_of(trajectories, **settings)
    train(learner, examples, train_config, stage)
    return json.loads((stage.out / "metrics.jsonl").read_text().splitlines()[0])


def test_the_kl_of_a_step_is_the_mean_over_its_sequences_however_it_is_cut(
    trajectories, policy, reference, tmp_path
):
    _, examples, _ = examples_of(trajectories)
    controls = [e.control for e in examples]
    with torch.no_grad():
        # The policies this way round have a positive mean, which the clamp leaves.
        ref = reference_logps(load_causal_lm(policy), examples, budget=10**6)
        logps = summed_logps(load_causal_lm(reference), controls)
    expected = max((logps - torch.cat([ref[c] for c in controls])).mean().item(), 0)
    found = []
    for batch_size, budget in ((99, 10**6), (7, 1)):
        stage = Stage(reference, tmp_path / f"{batch_size}-{budget}", policy)
        config = replace(TRAIN, batch_size=batch_size, token_budget=budget)
        found.append(first_row(trajectories, stage, config, kl_sequences=99)["kl"])
    assert expected > 1e-3
    assert found == pytest.approx([expected] * 2, rel=1e-4)


@pytest.mark.parametrize("fixed", [False, True], ids=["reference = start", "another reference"])
def test_the_on_policy_kl_of_a_step_weighs_the_tokens_of_the_start(
    trajectories, policy, reference, tmp_path, fixed
):
    """As the second step finds it: start and reference at rest, the policy moved by the first."""
    learner, examples, _ = examples_of(trajectories, kl="on_policy", kl_sequences=99)
    controls = [e.control for e in examples]
    found = []
    for budget in (10**6, 1):
        stage = Stage(policy, tmp_path / str(budget), reference if fixed else policy)
        config = replace(TRAIN, lr=3e-2, batch_size=7, token_budget=budget, checkpoints=2)
        moved, _ = train(learner, examples, config, stage)
        rows = (stage.out / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(row)["kl"] for row in rows])
    ids = (moved, stage.reference, policy)
    with torch.no_grad():
        now, ref, start = (token_logps(load_causal_lm(path), controls).double() for path in ids)
    rho = (now - start).exp()
    terms = rho * (now - ref) - rho + (ref - start).exp()
    assert terms.min() > -1e-6
    expected = terms.sum().item() / len(controls)
    assert expected > 1e-2
    assert [row[1] for row in found] == pytest.approx([expected] * 2, rel=1e-3)
    if not fixed:  # the policy has not moved yet
        assert [row[0] for row in found] == pytest.approx([0, 0], abs=1e-4)


def test_where_the_start_is_the_reference_it_is_evaluated_once(
    trajectories, policy, reference, tmp_path, monkeypatch
):
    asked = []

    def count(model, samples):
        asked.append(len(samples))
        return token_logps(model, samples)

    monkeypatch.setattr(learners.training.reference, "token_logps", count)
    sizes = []
    for path in (policy, reference):
        first_row(
            trajectories, Stage(policy, tmp_path / path.parent.name, path), TRAIN, kl="on_policy"
        )
        sizes.append(sum(asked))
        asked.clear()
    assert sizes[1] == 2 * sizes[0] > 0


def test_a_step_of_one_example_still_has_many_sequences_behind_its_kl(
    trajectories, policy, reference, tmp_path, monkeypatch
):
    counted = []

    def count(model, samples):
        if not torch.is_grad_enabled():
            counted.append(len(samples))
        return summed_logps(model, samples)

    monkeypatch.setattr(learners.training.parallel, "summed_logps", count)
    stage = Stage(policy, tmp_path / "train", reference)
    first_row(trajectories, stage, replace(TRAIN, batch_size=7), kl_sequences=6)
    assert len(examples_of(trajectories)[1]) == 14
    assert sum(counted) == 2 * 6


def test_it_learns_and_ends_the_same_when_interrupted(trajectories, policy, tmp_path):
    learner, examples, _ = examples_of(trajectories, kl_sequences=5)
    config = replace(TRAIN, epochs=2, checkpoints=4)
    whole, halved = (Stage(policy, tmp_path / name, policy) for name in ("whole", "halved"))
    train(learner, examples, config, whole)

    def stop(step, steps, metrics):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(learner, examples, config, halved, on_step=stop)
    train(learner, examples, config, halved)
    texts = [(s.out / "metrics.jsonl").read_text() for s in (whole, halved)]
    assert texts[0] == texts[1]
    rows = [json.loads(line) for line in texts[0].splitlines()]
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-4)  # r = z0 = 0
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["rewards/chosen"] > rows[-1]["rewards/rejected"]


@pytest.mark.parametrize("name", ["kto", "mkto"])
def test_the_margin_is_trls_the_difference_of_the_means_of_a_step(
    trajectories, policy, reference, tmp_path, name
):
    """KTOTrainer logs it for steps with good and bad samples; examples have none of their own."""
    learner, examples, _ = examples_of(trajectories, name, kl="none")
    config = replace(TRAIN, batch_size=2, token_budget=1, epochs=2)  # a pass for each sample
    rows = []
    stage = Stage(policy, tmp_path / "train", reference)
    train(learner, examples, config, stage, on_step=lambda *row: rows.append(row[2]))
    sides = ("rewards/chosen", "rewards/rejected")
    assert {len(row.keys() & set(sides)) for row in rows} == {1, 2}
    for row in rows:
        chosen, rejected = (row.get(side, math.nan) for side in sides)
        assert row.get("rewards/margins", math.nan) == pytest.approx(chosen - rejected, nan_ok=True)
