"""Step-wise DPO on many samples of a problem. What it trains on is in `test_pairs`."""

import pytest

import learners.methods.stepdpo
from learners.methods.stepdpo import StepDPO, StepDPOConfig
from learners.preferences import PairRules, action_sample


@pytest.fixture
def samples(make_trajectory):
    return [make_trajectory("a", i % 2 == 0, sample=i, turns=1 + i % 3) for i in range(30)]


def test_the_tokens_of_a_sample_are_read_once_however_many_it_is_compared_with(
    samples, monkeypatch
):
    read = []

    def count(trajectory):
        read.append(trajectory.key)
        return action_sample(trajectory)

    monkeypatch.setattr(learners.methods.stepdpo, "action_sample", count)
    learner = StepDPO(StepDPOConfig(shared_turns=0, pairs=PairRules(per_problem=2)))
    examples, _ = learner.examples(samples, seed=0)
    assert len(examples) == 2
    # 225 comparisons; both sides of a pair are read again where they are made an example.
    assert len(read) <= len(samples) + 2 * 2 * len(examples)
