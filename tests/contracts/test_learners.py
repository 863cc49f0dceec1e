"""What every registered learner must do, ours and third parties'."""

import random
from dataclasses import fields, replace

import pytest
import torch

from learners import LearnerConfig, LogProbs, learner_names, make_learner
from learners.preferences import PairRules
from mathenv.errors import TrainingError
from mathenv.types import (
    Grade,
    GradeStatus,
    Problem,
    Span,
    SpanKind,
    StopReason,
    TokenRecord,
    Trajectory,
    Turn,
)

pytestmark = pytest.mark.parametrize("name", learner_names())

CONFIG = LearnerConfig(eta=0.3, nll_coef=0.2, pairs=PairRules(per_problem=2))
SINGLE_TURN = {"dpo", "kto"}


def trajectory(problem, sample, correct):
    """Three turns; samples of a problem have the prompt in common, and each two the first turn."""
    turns = [(0, "sampled"), (0, "scaffold"), (0, "observation"), (0, "scaffold")]
    turns += [(1, kind) for _, kind in turns] + [(2, "sampled")]
    parts = [(f"{problem}", 0, "prompt")]
    parts += [(f"{problem}/{sample // 2 if turn == 0 else sample}", turn, k) for turn, k in turns]
    ids, spans = [], []
    for index, (name, turn, kind) in enumerate(parts):
        rng = random.Random(f"{name}/{index}")
        start = len(ids)
        ids += [rng.randrange(99) for _ in range(rng.randint(1, 5))]
        spans.append(Span(SpanKind(kind), turn, start, len(ids)))
    status = GradeStatus.CORRECT if correct else GradeStatus.INCORRECT
    return Trajectory(
        problem=Problem(problem, f"What is {problem}?", "4"),
        agent="current",
        sample=sample,
        seed=0,
        turns=(
            Turn(f"{sample}", "1", "1"),
            Turn("2", "2", "2"),
            Turn("\\boxed{4}" if correct else "\\boxed{5}"),
        ),
        stop_reason=StopReason.ANSWERED,
        grade=Grade(correct, status, "4"),
        tokens=TokenRecord(tuple(ids), tuple(spans)),
    )


@pytest.fixture
def trajectories():
    return [trajectory(problem, i, i < 3) for problem in "abc" for i in range(6)]


def build(name, trajectories):
    learner = make_learner(name, CONFIG)
    examples, selection = learner.examples(trajectories, seed=0)
    return learner, examples, selection


def evaluate(learner, examples):
    """The loss at made-up log-probs, one for each sample or each target."""
    count = sum(e.targets if learner.per_token else len(e.samples) for e in examples)
    policy = (-torch.linspace(1, 9, count)).requires_grad_()
    logps = LogProbs(
        policy,
        -torch.linspace(2, 8, count) if learner.uses_reference else None,
        -torch.linspace(1.1, 8.9, count) if learner.uses_start else None,
        torch.tensor(0.3) if learner.controls else None,
    )
    return logps, learner.loss(logps, examples)


def rows(learner, example):
    """How many log-probs an example takes."""
    return example.targets if learner.per_token else len(example.samples)


def cut(logps, part):
    """The log-probs of one example."""
    pieces = (None if x is None else x[part] for x in (logps.policy, logps.reference, logps.start))
    return LogProbs(*pieces, logps.baseline)


def test_it_says_what_it_is(name):
    learner = make_learner(name, CONFIG)
    assert learner.name == name
    assert isinstance(learner.uses_reference, bool)
    assert isinstance(learner.from_demonstrations, bool)
    assert isinstance(learner.per_token, bool)
    assert isinstance(learner.uses_start, bool)
    assert learner.controls >= 0
    for field in fields(CONFIG):
        assert getattr(learner.config, field.name) == getattr(CONFIG, field.name)


def test_examples_are_made_and_accounted_for(name, trajectories):
    _, examples, selection = build(name, trajectories)
    assert examples
    assert selection.examples == len(examples) == len(selection.provenance)
    assert selection.trajectories == len(trajectories)
    assert selection.problems == 3
    known = {t.key for t in trajectories}
    for example, origin in zip(examples, selection.provenance, strict=True):
        assert {s.key for s in example.samples} == set(origin.values()) <= known


def test_examples_do_not_depend_on_order_and_do_on_nothing_else(name, trajectories):
    _, examples, selection = build(name, trajectories)
    assert build(name, trajectories)[1] == examples
    random.Random(1).shuffle(trajectories)
    _, again, counted = build(name, trajectories)
    assert again == examples
    assert counted == selection


def test_from_the_first_target_on_every_sampled_token_is_one_and_the_prompt_never(
    name, trajectories
):
    by_key = {t.key: t for t in trajectories}
    _, examples, _ = build(name, trajectories)
    for sample in (s for e in examples for s in e.samples):
        tokens = by_key[sample.key].tokens
        assert sample.ids == tokens.ids
        first = sample.mask.index(True)
        assert first in {s.start for s in tokens.spans if s.kind is SpanKind.SAMPLED}
        assert (first > tokens.prompt_length) == (name == "stepdpo")
        pairs = zip(sample.mask[first:], tokens.action_mask[first:], strict=True)
        assert all(on for on, sampled in pairs if sampled)
        assert sample.fingerprint == tokens.fingerprint
        assert len(sample.weights) in (0, sample.targets)


def test_examples_have_a_control_where_the_learner_has_a_baseline(name, trajectories):
    learner, examples, _ = build(name, trajectories)
    assert {bool(e.control) for e in examples} == {learner.controls > 0}


def test_observations_are_targets_of_the_single_turn_baselines_alone(name, trajectories):
    by_key = {t.key: t for t in trajectories}
    _, examples, _ = build(name, trajectories)
    extra = sum(
        on and not sampled
        for e in examples
        for s in e.samples
        for on, sampled in zip(s.mask, by_key[s.key].tokens.action_mask, strict=True)
    )
    assert (extra > 0) == (name in SINGLE_TURN)


def test_broken_machinery_and_long_trajectories_enter_nothing(name, trajectories):
    _, examples, _ = build(name, trajectories)
    broken = replace(
        trajectory("a", 97, False),
        stop_reason=StopReason.INFRA,
        grade=Grade(False, GradeStatus.INFRA),
    )
    ungraded = replace(trajectory("b", 98, False), grade=Grade(False, GradeStatus.GOLD_ERROR))
    record = TokenRecord((1,) * 3000, (Span(SpanKind.SAMPLED, 0, 1, 3000),))
    long = replace(trajectory("c", 99, False), tokens=record)
    _, again, selection = build(name, [*trajectories, broken, ungraded, long])
    assert again == examples
    assert (selection.excluded_infra, selection.excluded_long) == (2, 1)


def test_wrong_answers_are_never_made_likelier(name, trajectories):
    """The gradient pushes right answers up and wrong ones down. Demonstrations are right."""
    learner, examples, _ = build(name, trajectories)
    right = {t.key for t in trajectories if t.grade.correct or learner.from_demonstrations}
    logps, output = evaluate(learner, examples)
    output.loss.backward()
    samples = [s for e in examples for s in e.samples]
    counts = [s.targets if learner.per_token else 1 for s in samples]
    for sample, gradient in zip(samples, logps.policy.grad.split(counts), strict=True):
        assert (gradient < 0 if sample.key in right else gradient > 0).all()


def test_the_loss_is_finite_and_a_sum_over_examples(name, trajectories):
    learner, examples, _ = build(name, trajectories)
    logps, output = evaluate(learner, examples)
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    total, row = 0.0, 0
    for example in examples:
        part = slice(row, row + rows(learner, example))
        total += learner.loss(cut(logps, part), [example]).loss.item()
        row = part.stop
    assert total == pytest.approx(output.loss.item(), rel=1e-5)
    whole = learner.denominator(examples)
    assert whole == pytest.approx(sum(learner.denominator([e]) for e in examples))
    assert whole > 0


def test_metrics_are_detached_and_at_most_one_value_per_example(name, trajectories):
    learner, examples, _ = build(name, trajectories)
    _, output = evaluate(learner, examples)
    assert "logps/chosen" in output.metrics
    for value in output.metrics.values():
        assert value.dim() == 1
        assert 0 < len(value) <= len(examples)
        assert not value.requires_grad
        assert value.isfinite().all()


def test_nothing_usable_gives_no_examples_and_no_error(name, trajectories):
    broken = [replace(t, stop_reason=StopReason.INFRA) for t in trajectories]
    _, examples, selection = build(name, broken)
    assert examples == []
    assert selection.excluded_infra == len(broken)
    assert build(name, [])[1] == []


def test_trajectories_without_tokens_are_an_error_that_names_one(name, trajectories):
    with pytest.raises(TrainingError, match=r"[abc]#current#\d"):
        build(name, [replace(t, tokens=None) for t in trajectories])
