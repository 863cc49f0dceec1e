"""A step in memory is the step that `train` takes, for every learner, and an engine sees it."""

from dataclasses import replace

import pytest
import torch

from agents.base import SamplingParams
from agents.llm import LLMAgent
from agents.models.hf import TransformersModel, load_causal_lm, load_tokenizer
from agents.rendering import ChatRenderer
from agents.rollout import CollectConfig, play
from learners import GRPOConfig, LearnerConfig, StepDPOConfig, learner_names, make_learner
from learners.trainer import Trainer
from learners.training.train import Stage, TrainConfig, train
from mathenv.errors import ConfigError, TrainingError
from mathenv.types import Grade, GradeStatus, Problem, StopReason, Turn

EVERY = 10**6  # more examples than there are: one step takes them all


@pytest.fixture
def trajectories(make_trajectory):
    return [make_trajectory(p, n < 2, sample=n) for p in "abc" for n in range(4)]


@pytest.mark.parametrize("name", learner_names())
def test_a_step_is_the_step_of_train(name, policy, reference, trajectories, tmp_path):
    own = {"stepdpo": StepDPOConfig(shared_turns=0)}  # these trajectories have no turn in common
    learner = make_learner(name, own.get(name, LearnerConfig(nll_coef=0.1)))
    trainer = Trainer(
        load_causal_lm(policy),
        load_tokenizer(policy),
        learner,
        reference=load_causal_lm(reference),
        lr=1e-3,
    )
    metrics = trainer.step(trajectories)
    examples, _ = learner.examples(trajectories, seed=1)
    config = TrainConfig(
        lr=1e-3, schedule="constant", warmup=0, batch_size=EVERY, checkpoints=1, epochs=1
    )
    logged = []
    [folder] = train(
        learner,
        examples,
        config,
        Stage(policy, tmp_path, reference),
        on_step=lambda step, steps, row: logged.append(row),
    )
    assert metrics["examples"] == len(examples)
    assert metrics["loss"] == pytest.approx(logged[0]["loss"], rel=1e-6, abs=1e-7)
    begun = load_causal_lm(policy).state_dict()
    trained = load_causal_lm(folder).state_dict()
    mine = trainer.model.state_dict()
    assert any(not torch.equal(trained[k], begun[k]) for k in begun)
    for key, value in trained.items():
        torch.testing.assert_close(mine[key], value, rtol=0, atol=2e-6)


def test_the_reference_is_the_start_until_it_is_moved(policy, trajectories):
    trainer = Trainer(load_causal_lm(policy), load_tokenizer(policy), "mdpo", lr=1e-3)
    first = trainer.step(trajectories)
    second = trainer.step(trajectories)
    trainer.move_reference()
    third = trainer.step(trajectories)
    assert first["rewards/margins"] == third["rewards/margins"] == 0
    assert second["rewards/margins"] > 0
    assert trainer.steps == 3


def test_an_engine_of_the_same_model_samples_what_was_learned(policy, tmp_path):
    problems = [Problem("p", "What is 6 times 7?", "42")]
    model, tokenizer = load_causal_lm(policy), load_tokenizer(policy)
    engine = TransformersModel(model, tokenizer, name="current")
    agent = LLMAgent(engine, ChatRenderer(tokenizer), SamplingParams(0.0, 1.0, 12, 200))
    before = play(agent, problems)
    renderer = ChatRenderer(tokenizer)
    shown = [t for t in before if t.tokens]
    target = Trainer(model, tokenizer, "sft", lr=3e-3)
    right = [correct(t, renderer) for t in shown]
    for _ in range(60):
        target.step(right)
    [after] = play(agent, problems, config=CollectConfig(seed=1))
    assert before[0].reward == 0
    assert after.turns[0].action == r"\boxed{42}"
    assert after.reward == 1
    engine.close()
    saved = target.save(tmp_path / "checkpoint")
    again = load_causal_lm(saved).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


def correct(trajectory, renderer):
    turns = (Turn(r"\boxed{42}"),)
    return replace(
        trajectory,
        turns=turns,
        stop_reason=StopReason.ANSWERED,
        grade=Grade(True, GradeStatus.CORRECT, "42"),
        tokens=renderer.record_turns(trajectory.problem.question, turns),
    )


def test_nothing_to_train_on_is_an_error_that_counts(policy, make_trajectory):
    trainer = Trainer(load_causal_lm(policy), load_tokenizer(policy), "mdpo")
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(TrainingError, match=r"nothing to train on in 2 trajectories.*all_right 1"):
        trainer.step([make_trajectory("a", True, sample=n) for n in range(2)])
    assert trainer.steps == 0
    assert all(torch.equal(value, before[k]) for k, value in trainer.model.state_dict().items())
    with pytest.raises(ConfigError, match="no learner is called"):
        Trainer(trainer.model, None, "mdpi")


def test_grpo_in_memory_trains_on_the_agent_it_is_told(policy, make_trajectory):
    mine = [make_trajectory("a", n < 2, sample=n, agent="me") for n in range(4)]
    learner = make_learner("grpo", GRPOConfig(agent="me"))
    trainer = Trainer(load_causal_lm(policy), load_tokenizer(policy), learner, lr=1e-3)
    assert trainer.step(mine)["examples"] == 4
