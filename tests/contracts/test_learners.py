"""What every registered learner must do, ours and third parties'."""

import random
from dataclasses import replace

import pytest
import torch

from learners import LearnerConfig, learner_names, make_learner
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


def trajectory(problem, sample, correct):
    rng = random.Random(f"{problem}/{sample}")
    kinds = ("prompt", "sampled", "scaffold", "observation", "scaffold", "sampled")
    spans, start = [], 0
    for index, kind in enumerate(kinds):
        end = start + rng.randint(1, 5)
        spans.append(Span(SpanKind(kind), int(index > 4), start, end))
        start = end
    status = GradeStatus.CORRECT if correct else GradeStatus.INCORRECT
    return Trajectory(
        problem=Problem(problem, f"What is {problem}?", "4"),
        agent="current",
        sample=sample,
        seed=0,
        turns=(Turn(f"{sample}", "1", "1"), Turn("\\boxed{4}" if correct else "\\boxed{5}")),
        stop_reason=StopReason.ANSWERED,
        grade=Grade(correct, status, "4"),
        tokens=TokenRecord(tuple(rng.randrange(99) for _ in range(start)), tuple(spans)),
    )


@pytest.fixture
def trajectories():
    return [trajectory(problem, i, i < 3) for problem in "abc" for i in range(6)]


def build(name, trajectories):
    learner = make_learner(name, CONFIG)
    examples, selection = learner.examples(trajectories, seed=0)
    return learner, examples, selection


def evaluate(learner, examples, logps=None):
    count = sum(len(e.samples) for e in examples)
    if logps is None:
        logps = -torch.linspace(1, 9, count)
    logps = logps.clone().requires_grad_()
    ref = -torch.linspace(2, 8, count) if learner.uses_reference else None
    return logps, learner.loss(logps, ref, examples)


def test_it_says_what_it_is(name):
    learner = make_learner(name, CONFIG)
    assert learner.name == name
    assert isinstance(learner.uses_reference, bool)
    assert isinstance(learner.from_demonstrations, bool)
    assert learner.config == CONFIG


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


def test_every_sampled_token_of_an_example_is_a_target_and_the_prompt_never(name, trajectories):
    by_key = {t.key: t for t in trajectories}
    _, examples, _ = build(name, trajectories)
    for sample in (s for e in examples for s in e.samples):
        tokens = by_key[sample.key].tokens
        assert sample.ids == tokens.ids
        assert not any(sample.mask[: tokens.prompt_length])
        pairs = zip(sample.mask, tokens.action_mask, strict=True)
        assert all(on for on, sampled in pairs if sampled)


def test_observations_are_targets_of_the_single_turn_baseline_alone(name, trajectories):
    by_key = {t.key: t for t in trajectories}
    _, examples, _ = build(name, trajectories)
    extra = sum(
        on and not sampled
        for e in examples
        for s in e.samples
        for on, sampled in zip(s.mask, by_key[s.key].tokens.action_mask, strict=True)
    )
    assert (extra > 0) == (name == "dpo")


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
    for sample, gradient in zip(samples, logps.grad.tolist(), strict=True):
        assert gradient < 0 if sample.key in right else gradient > 0


def test_the_loss_is_finite_and_a_sum_over_examples(name, trajectories):
    learner, examples, _ = build(name, trajectories)
    logps, output = evaluate(learner, examples)
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    total, row = 0.0, 0
    ref = -torch.linspace(2, 8, len(logps)) if learner.uses_reference else None
    for example in examples:
        part = slice(row, row + len(example.samples))
        own_ref = None if ref is None else ref[part]
        total += learner.loss(logps[part], own_ref, [example]).loss.item()
        row = part.stop
    assert total == pytest.approx(output.loss.item(), rel=1e-5)
    whole = learner.denominator(examples)
    assert whole == pytest.approx(sum(learner.denominator([e]) for e in examples))
    assert whole > 0


def test_metrics_are_detached_and_one_value_per_example(name, trajectories):
    learner, examples, _ = build(name, trajectories)
    _, output = evaluate(learner, examples)
    assert {"logps/chosen", "nll_loss"} <= set(output.metrics)
    for value in output.metrics.values():
        assert value.shape == (len(examples),)
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
