"""GRPO: advantages of a group, the clipped ratio to the policy that began the stage."""

import json
import math
from dataclasses import replace
from statistics import stdev

import pytest
import torch

from agents.models.hf import load_causal_lm
from learners import GRPOConfig, LogProbs, make_learner
from learners.numerics.logprobs import token_logps
from learners.preferences import PairRules
from learners.training.train import Stage, TrainConfig, train
from mathenv.errors import ConfigError, TrainingError

TRAIN = TrainConfig(lr=3e-3, batch_size=4, checkpoints=3)


@pytest.fixture(scope="module")
def trajectories(make_trajectory):
    """Groups of four: 2 of 4 right, 1 of 4, all, none; and what another agent sampled."""
    right = {"a": 2, "b": 1, "c": 4, "d": 0}
    found = [make_trajectory(p, i < n, sample=i) for p, n in right.items() for i in range(4)]
    return found + [make_trajectory("a", True, sample=i, agent="previous") for i in range(3)]


def examples_of(trajectories, **settings):
    learner = make_learner("grpo", GRPOConfig(**settings))
    return learner, *learner.examples(trajectories, seed=0)


def test_advantages_are_rewards_normalised_over_the_samples_of_a_problem(trajectories):
    _, examples, report = examples_of(trajectories)
    found = {e.samples[0].key: e.score for e in examples}
    for problem, rewards in (("a", [1, 1, 0, 0]), ("b", [1, 0, 0, 0])):
        mean, scale = sum(rewards) / 4, stdev(rewards) + 1e-4
        for i, reward in enumerate(rewards):
            key = f"{problem}#current#{i}"
            assert found.pop(key) == pytest.approx((reward - mean) / scale)
    assert not found  # groups without a difference teach nothing, nor do other agents' samples
    assert (report.problems, report.problems_used) == (4, 2)
    assert (report.all_right, report.all_wrong, report.unusable) == (1, 1, 0)
    assert (report.excluded_off_policy, report.examples) == (3, 8)
    _, unscaled, _ = examples_of(trajectories, scale=False)
    assert {e.score for e in unscaled} == {0.5, -0.5, 0.75, -0.25}


def test_a_problem_of_which_the_agent_sampled_nothing_is_unusable(make_trajectory):
    other = [make_trajectory("e", i < 1, sample=i, agent="previous") for i in range(2)]
    own = [make_trajectory("a", i < 1, sample=i) for i in range(2)]
    _, examples, report = examples_of(own + other)
    assert len(examples) == 2
    assert (report.problems, report.problems_used, report.unusable) == (2, 1, 1)
    with pytest.raises(TrainingError, match="'current', only by previous"):
        examples_of(other)


def by_hand(examples, policy, start, reference, config):
    """Equation 3 with plain floats, token by token."""
    total, at = 0.0, 0
    for example in examples:
        terms, a = [], example.score
        for t in range(at, at + example.targets):
            ratio = math.exp(policy[t] - start[t])
            clipped = min(max(ratio, 1 - config.clip_low), 1 + config.clip_high)
            gap = reference[t] - policy[t]
            kl = math.exp(gap) - gap - 1
            terms.append(-min(ratio * a, clipped * a) + config.kl_coef * kl)
        at += example.targets
        total += sum(terms) / (len(terms) if config.average == "sequence" else 1)
    return total


@pytest.mark.parametrize("average", ["sequence", "token"])
def test_the_loss_is_equation_3_token_by_token(trajectories, average):
    learner, examples, _ = examples_of(
        trajectories, kl_coef=0.3, clip_low=0.1, clip_high=0.25, average=average
    )
    count = sum(e.targets for e in examples)
    torch.manual_seed(0)
    policy, start, reference = -torch.rand(3, count, dtype=torch.float64)
    output = learner.loss(LogProbs(policy, reference, start), examples)
    expected = by_hand(
        examples, policy.tolist(), start.tolist(), reference.tolist(), learner.config
    )
    assert output.loss.item() == pytest.approx(expected, rel=1e-9)
    whole = len(examples) if average == "sequence" else count
    assert learner.denominator(examples) == whole
    assert 0 < output.metrics["clip_ratio/region_mean"].mean() < 1
    assert output.metrics["kl"].min() > 0


def test_at_the_start_the_gradient_is_that_of_reinforce(trajectories):
    learner, examples, _ = examples_of(trajectories)
    count = sum(e.targets for e in examples)
    policy = (-torch.rand(count)).requires_grad_()
    learner.loss(LogProbs(policy, None, policy.detach()), examples).loss.backward()
    expected = [-e.score / e.targets for e in examples for _ in range(e.targets)]
    assert policy.grad.tolist() == pytest.approx(expected, rel=1e-5)


def test_a_token_beyond_the_clip_has_no_gradient_in_that_direction(trajectories):
    learner, examples, _ = examples_of(trajectories)
    count = sum(e.targets for e in examples)
    advantages = torch.tensor([e.score for e in examples for _ in range(e.targets)])
    for shift, pulls in ((0.5, advantages < 0), (-0.5, advantages > 0)):
        policy = (-torch.rand(count)).requires_grad_()
        learner.loss(LogProbs(policy, None, policy.detach() - shift), examples).loss.backward()
        assert torch.equal(policy.grad != 0, pulls)


def test_a_reference_is_used_only_for_the_kl():
    assert not make_learner("grpo").uses_reference
    assert make_learner("grpo", GRPOConfig(kl_coef=0.1)).uses_reference
    with pytest.raises(ConfigError, match="average"):
        GRPOConfig(average="mean")


def rows(stage):
    return [json.loads(line) for line in (stage.out / "metrics.jsonl").read_text().splitlines()]


def test_training_starts_at_ratio_1_and_raises_what_was_right(trajectories, policy, tmp_path):
    learner, examples, _ = examples_of(trajectories, kl_coef=0.01)
    stage = Stage(policy, tmp_path / "train", policy)
    *_, last = train(learner, examples, replace(TRAIN, batch_size=8, epochs=3), stage)
    first, *_, final = rows(stage)
    # The advantages of a group sum to zero, so at ratio 1 the loss does too.
    assert first["loss"] == pytest.approx(0, abs=1e-5)
    assert first["clip_ratio/region_mean"] == 0
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert final["loss"] < -1e-3
    assert final["kl"] > 0
    samples = [e.samples[0] for e in examples]
    with torch.no_grad():
        before, after = (token_logps(load_causal_lm(p), samples) for p in (policy, last))
    gain = [part.sum().item() for part in (after - before).split([s.targets for s in samples])]
    assert sum(g * e.score for g, e in zip(gain, examples, strict=True)) > 0


def test_the_old_policy_is_the_one_that_began_the_stage_after_a_restart_too(
    trajectories, policy, tmp_path
):
    learner, examples, _ = examples_of(trajectories)
    config = replace(TRAIN, epochs=2, checkpoints=4)
    whole, halved = (Stage(policy, tmp_path / name) for name in ("whole", "halved"))
    train(learner, examples, config, whole)

    def stop(step, steps, metrics):
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(learner, examples, config, halved, on_step=stop)
    train(learner, examples, config, halved)
    assert rows(whole) == rows(halved)
    assert len({r["loss"] for r in rows(whole)}) == 4


def test_per_problem_does_not_cut_groups(trajectories):
    _, examples, _ = examples_of(trajectories, pairs=PairRules(per_problem=1))
    assert len(examples) == 8
