"""M-KTO: its labels, and where z0 comes from."""

import json
import math
from dataclasses import replace

import pytest
import torch

import learners.parallel
from agents.models.transformers import load_causal_lm
from learners import KTOConfig, LearnerConfig, LogProbs, make_learner
from learners.logprobs import reference_logps, summed_logps
from learners.preferences import PairRules, action_sample, completion_sample, prompt
from learners.train import Stage, TrainConfig, train
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


def test_an_on_policy_control_is_a_whole_sample_of_the_current_agent(trajectories):
    by_key = {t.key: t for t in trajectories}
    _, examples, _ = examples_of(trajectories, kl="on_policy")
    found = {}
    for example in examples:
        control = by_key[example.control.key]
        assert example.control == action_sample(control)
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


def first_row(trajectories, stage, train_config, **settings):
    learner, examples, _ = examples_of(trajectories, **settings)
    train(learner, examples, train_config, stage)
    return json.loads((stage.out / "metrics.jsonl").read_text().splitlines()[0])


@pytest.mark.parametrize("kl", ["mismatched", "on_policy"])
def test_the_kl_of_a_step_is_the_mean_over_its_sequences_however_it_is_cut(
    trajectories, policy, reference, tmp_path, kl
):
    _, examples, _ = examples_of(trajectories, kl=kl)
    controls = [e.control for e in examples]
    with torch.no_grad():
        # The policies this way round have a positive KL, which the clamp leaves.
        ref = reference_logps(load_causal_lm(policy), examples, budget=10**6)
        logps = summed_logps(load_causal_lm(reference), controls)
    expected = max((logps - torch.cat([ref[c] for c in controls])).mean().item(), 0)
    found = []
    for batch_size, budget in ((99, 10**6), (7, 1)):
        stage = Stage(reference, tmp_path / f"{batch_size}-{budget}", policy)
        config = replace(TRAIN, batch_size=batch_size, token_budget=budget)
        found.append(first_row(trajectories, stage, config, kl=kl, kl_sequences=99)["kl"])
    assert expected > 1e-3
    assert found == pytest.approx([expected] * 2, rel=1e-4)


def test_a_step_of_one_example_still_has_many_sequences_behind_its_kl(
    trajectories, policy, reference, tmp_path, monkeypatch
):
    counted = []

    def count(model, samples):
        if not torch.is_grad_enabled():
            counted.append(len(samples))
        return summed_logps(model, samples)

    monkeypatch.setattr(learners.parallel, "summed_logps", count)
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
