"""The relatives of M-DPO: which tokens they weigh how, and their losses by hand."""

import math
from dataclasses import replace

import pytest
import torch

from agents.models.hf import load_causal_lm
from learners import DMPOConfig, LearnerConfig, LogProbs, StepDPOConfig, make_learner
from learners.methods.dmpo import turn_weight
from learners.methods.simpo import SimPOConfig
from learners.methods.stepdpo import from_turn, shared_turns
from learners.numerics.logprobs import summed_logps
from learners.preferences import Example, PairRules, action_sample
from mathenv.errors import ConfigError, TrainingError
from mathenv.types import Span, SpanKind, TokenRecord

ETA = 0.3


def log_sigmoid(z):
    return -math.log1p(math.exp(-z))


@pytest.fixture(scope="module")
def pair(make_trajectory):
    return make_trajectory("a", True, turns=2), make_trajectory("a", False, sample=1, turns=3)


def losses(name, config, pair, policy, reference):
    learner = make_learner(name, config)
    examples, _ = learner.examples(pair, seed=0)
    output = learner.loss(LogProbs(torch.tensor(policy), torch.tensor(reference)), examples)
    return output.loss.item(), examples[0], output.metrics


def test_ipo_is_a_square_of_token_means(pair):
    found, example, metrics = losses(
        "ipo", LearnerConfig(eta=ETA), pair, [-9.0, -8.0], [-12.0, -7.0]
    )
    w, r = (s.targets for s in example.samples)
    assert w != r
    assert found == pytest.approx((3 / w + 1 / r - 1 / (2 * ETA)) ** 2, rel=1e-5)
    assert metrics["rewards/chosen"].item() == pytest.approx(ETA * 3, rel=1e-5)


def test_ipo_pulls_back_a_margin_that_is_too_large(pair):
    learner = make_learner("ipo", LearnerConfig(eta=ETA))
    examples, _ = learner.examples(pair, seed=0)
    policy = torch.tensor([0.0, -500.0], requires_grad=True)
    learner.loss(LogProbs(policy, torch.tensor([-50.0, -50.0])), examples).loss.backward()
    assert policy.grad[0] > 0 > policy.grad[1]


def test_simpo_compares_token_means_without_a_reference(pair):
    learner = make_learner("simpo", SimPOConfig(eta=2.5, gamma=0.7))
    assert not learner.uses_reference
    examples, _ = learner.examples(pair, seed=0)
    output = learner.loss(LogProbs(torch.tensor([-9.0, -8.0])), examples)
    w, r = (s.targets for s in examples[0].samples)
    z = 2.5 * (-9 / w + 8 / r) - 0.7
    assert output.loss.item() == pytest.approx(-log_sigmoid(z), rel=1e-5)
    assert output.metrics["rewards/chosen"].item() == pytest.approx(2.5 * -9 / w, rel=1e-5)


# --- DMPO


@pytest.mark.parametrize("discount", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("turns", [1, 2, 5])
def test_a_turns_weight_is_its_share_of_the_discounted_occupancy(discount, turns):
    """Turn t's log-ratio enters the ratio of occupancies of every turn from t on."""
    total = sum(discount**k for k in range(turns))
    for t in range(turns):
        expected = sum(discount**k for k in range(t, turns)) / total
        assert turn_weight(t, turns, discount) == pytest.approx(expected)
    assert turn_weight(0, turns, discount) == pytest.approx(1)


def test_dmpo_is_the_weighted_sum_of_the_turns(pair, policy, reference):
    learner = make_learner("dmpo", DMPOConfig(eta=ETA, discount=0.6))
    examples, _ = learner.examples(pair, seed=0)
    models = [load_causal_lm(p) for p in (policy, reference)]
    with torch.no_grad():
        found = learner.loss(
            LogProbs(*(summed_logps(m, examples[0].samples) for m in models)), examples
        ).loss.item()
        sides = []
        for trajectory in pair:
            turns = len(trajectory.turns)
            sample = action_sample(trajectory)
            spans = [s for s in trajectory.tokens.spans if s.kind is SpanKind.SAMPLED]
            assert len(spans) == turns
            side = 0.0
            for t, span in enumerate(spans):
                mask = tuple(span.start <= i < span.end for i in range(len(sample.ids)))
                one = [summed_logps(m, [replace(sample, mask=mask)]).item() for m in models]
                side += turn_weight(t, turns, 0.6) * (one[0] - one[1])
            sides.append(side)
    assert found == pytest.approx(-log_sigmoid(ETA * (sides[0] - sides[1])), rel=1e-4)


def test_dmpo_of_single_turns_is_dpo(make_trajectory):
    single = [make_trajectory("a", i < 1, sample=i, turns=1) for i in range(2)]
    for name in ("dmpo", "dpo"):
        _, example, _ = losses(name, None, single, [-9.0, -8.0], [-12.0, -7.0])
        assert all(set(s.weights) <= {1.0} for s in example.samples)
    a, b = (losses(n, None, single, [-9.0, -8.0], [-12.0, -7.0])[0] for n in ("dmpo", "dpo"))
    assert a == b


@pytest.mark.parametrize("discount", [0.0, 1.1, -0.5])
def test_a_discount_outside_its_range_is_refused(discount):
    with pytest.raises(ConfigError, match="discount"):
        DMPOConfig(discount=discount)


# --- step-wise DPO


def continued(trajectory, other, turns):
    """The trajectory with the other's prompt and first turns, tokens between turns included."""
    mine, theirs = (
        next(s.start for s in t.tokens.spans if s.turn == turns and s.kind is SpanKind.SAMPLED)
        for t in (trajectory, other)
    )
    shift = theirs - mine
    spans = [s for s in other.tokens.spans if s.end <= theirs]
    spans += [
        Span(s.kind, s.turn, s.start + shift, s.end + shift)
        for s in trajectory.tokens.spans
        if s.start >= mine
    ]
    ids = (*other.tokens.ids[:theirs], *trajectory.tokens.ids[mine:])
    return replace(trajectory, tokens=TokenRecord(ids, tuple(spans)))


@pytest.fixture(scope="module")
def family(make_trajectory):
    """A right answer, and wrong ones that leave it after no, one and two turns."""
    winner = make_trajectory("a", True, turns=3)
    wrong = [make_trajectory("a", False, sample=i, turns=3) for i in (1, 2, 3)]
    return winner, wrong[0], continued(wrong[1], winner, 1), continued(wrong[2], winner, 2)


def test_shared_turns_are_read_from_the_tokens(family):
    winner, *others = family
    assert [shared_turns(winner, t) for t in others] == [0, 1, 2]
    assert [shared_turns(t, winner) for t in others] == [0, 1, 2]
    assert shared_turns(winner, winner) == 2  # one turn is left to train on


def test_a_history_that_differs_in_an_observation_is_another_history(family):
    winner, _, _, deep = family
    span = next(s for s in winner.tokens.spans if s.kind is SpanKind.OBSERVATION and s.turn == 1)
    ids = list(deep.tokens.ids)
    ids[span.start] = 299 - ids[span.start]
    assert shared_turns(winner, replace(deep, tokens=replace(deep.tokens, ids=tuple(ids)))) == 1


def test_a_trajectory_that_ends_where_the_other_goes_on_shares_what_leaves_it_a_turn(family):
    winner, *_ = family
    spans = tuple(s for s in winner.tokens.spans if s.turn == 0 and s.kind is not SpanKind.SCAFFOLD)
    spans = spans[:2]  # prompt and first turn
    short = replace(winner, sample=9, tokens=TokenRecord(winner.tokens.ids[: spans[-1].end], spans))
    assert shared_turns(winner, short) == 0


def test_the_deepest_branch_is_paired_and_trained_from_there_on(family):
    learner = make_learner("stepdpo", StepDPOConfig(pairs=PairRules(per_problem=3)))
    examples, report = learner.examples(family, seed=0)
    assert [[s.key for s in e.samples] for e in examples] == [["a#current#0", "a#current#3"]]
    for sample, trajectory in zip(examples[0].samples, (family[0], family[3]), strict=True):
        start = [s.start for s in trajectory.tokens.spans if s.kind is SpanKind.SAMPLED][2]
        on = [t for t, value in enumerate(sample.mask) if value]
        assert on == [t for t, v in enumerate(trajectory.tokens.action_mask) if v and t >= start]
    assert (report.problems_used, report.examples) == (1, 1)


def test_pairs_without_a_common_turn_are_left_out_unless_allowed(family):
    two = family[:2]
    examples, report = make_learner("stepdpo").examples(two, seed=0)
    assert examples == []
    assert (report.problems, report.problems_used, report.unusable) == (1, 0, 1)
    examples, _ = make_learner("stepdpo", StepDPOConfig(shared_turns=0)).examples(two, seed=0)
    assert [s.mask for s in examples[0].samples] == [t.tokens.action_mask for t in two]


def test_the_common_turns_cancel(family, policy, reference):
    """So the loss from the branch on is M-DPO's on the whole trajectories."""
    models = [load_causal_lm(p).double() for p in (policy, reference)]
    pair = (family[0], family[3])
    values = []
    for name in ("mdpo", "stepdpo"):
        learner = make_learner(name, LearnerConfig(eta=ETA))
        (example,), _ = learner.examples(pair, seed=0)
        with torch.no_grad():
            given = LogProbs(*(summed_logps(m, example.samples) for m in models))
        values.append((learner.loss(given, [example]).loss.item(), example))
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-9)
    assert values[0][1].targets > values[1][1].targets
    assert values[0][0] != pytest.approx(math.log(2), abs=1e-6)


def test_a_branch_whose_tokens_are_not_its_parents_is_an_error(family):
    winner, unrelated, _, deep = family
    ok = replace(deep, parent=winner.key, branch_turn=2)
    assert shared_turns(winner, ok) == 2
    wrong = replace(unrelated, parent=winner.key, branch_turn=2)
    with pytest.raises(TrainingError, match=r"a#current#0 and a#current#1.*after 2.*0 turns"):
        shared_turns(winner, wrong)
    siblings = [replace(t, parent="a#current#77", branch_turn=1) for t in (unrelated, deep)]
    with pytest.raises(TrainingError, match="branch after 1"):
        shared_turns(*siblings)


def test_from_turn_0_is_the_action_mask(family):
    assert from_turn(family[0], 0) == action_sample(family[0])
    assert Example((from_turn(family[0], 2),)).targets < action_sample(family[0]).targets
