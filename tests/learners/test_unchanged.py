"""A policy that did not change is no new checkpoint; ties; what preflight judges."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from safetensors.torch import save_file

from learners.iterate import IterateConfig, Method
from learners.losses import preferred
from learners.planning import preflight
from learners.recipe import load_recipe
from learners.reporter import Reporter
from learners.training.lora import LoRA
from learners.training.schedule import TrainConfig

loop = import_module("learners.iterate")  # `learners.iterate` may be the function


def folder(path, value):
    path.mkdir(parents=True)
    save_file({"w": torch.full((3,), value)}, path / "model.safetensors")
    return path


@pytest.mark.parametrize(
    ("values", "played"),
    [
        ((0.0, 0.0), ["before"]),
        ((1.0, 1.0), ["before", "step-1"]),
        ((0.0, 2.0), ["before", "step-2"]),
        ((1.0, 2.0), ["before", "step-1", "step-2"]),
    ],
)
def test_only_weights_that_are_new_are_validated(tmp_path, monkeypatch, values, played):
    start = folder(tmp_path / "start", 0.0)
    steps = [folder(tmp_path / f"step-{i}", v) for i, v in enumerate(values, start=1)]
    monkeypatch.setattr(loop, "evaluate", lambda *_: [])
    monkeypatch.setattr(loop, "mean_reward", lambda _: 0.5)
    monkeypatch.setattr(loop, "diagnose", lambda *_, **__: [])
    place = loop._Place("iteration-1", tmp_path / "iteration-1", Reporter())
    policies = loop.Policies(start, start, start)
    result = loop._choose(policies, steps, (), IterateConfig(), 1, place)
    assert list(result.scores) == played
    assert result.policy == start  # a tie keeps what is there


def test_a_tie_is_half_a_preference():
    chosen, rejected = torch.tensor([1.0, 0.0, -1.0]), torch.zeros(3)
    assert preferred(chosen, rejected).tolist() == [1.0, 0.5, 0.0]


def test_preflight_judges_the_learners_that_will_run(monkeypatch):
    monkeypatch.setattr("learners.training.lora.find_spec", lambda name: None)
    recipe = load_recipe("tiny")
    adapted = Method(train=TrainConfig(lora=LoRA(rank=4)))
    recipe = replace(recipe, methods={**recipe.methods, "raft": adapted})
    assert preflight._missing_peft(recipe) == []  # the recipe's own learner, M-DPO
    assert preflight._missing_peft(recipe, ("mdpo", "raft"))
    assert preflight._missing_memory(recipe, 0.0, ("sft",))
