"""What `mathenv export` writes, trained on by TRL's own trainers, on the tiny model."""

import math

import pytest
import torch

from agents.base import SamplingParams, WeightedAgent
from agents.models.hf import load_causal_lm, load_tokenizer
from agents.policy import load_policy
from agents.rollout import CollectConfig, collect
from agents.tiny import END
from benchmarks import cli
from mathenv.store import TrajectoryStore, read_trajectories

trl = pytest.importorskip("trl", reason="these are TRL's trainers: pip install trl==1.16.*")


@pytest.fixture(scope="module")
def rollouts(micro, tmp_path_factory):
    """Episodes that the fine-tuned micro model played: right and wrong ones, with code."""
    folder = tmp_path_factory.mktemp("rollouts")
    sampling = SamplingParams(max_turn_tokens=24, max_tokens=120)
    config = CollectConfig(horizon=3, seed=1)
    with load_policy(micro.start.policy, sampling, name="policy") as agent:
        with TrajectoryStore(folder) as store:
            collect([WeightedAgent(agent, 4)], micro.sets.prompts, store, config)
    return folder


@pytest.fixture
def load(rollouts, tmp_path):
    """Export in a format by the command and load the file with the real `datasets`."""
    datasets = pytest.importorskip("datasets")

    def export(form, *flags):
        file = tmp_path / f"{form}.jsonl"
        words = ["export", str(rollouts), "--format", form, "--out", str(file), *flags]
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0
        return datasets.load_dataset(
            "json", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache")
        )

    return export


@pytest.fixture
def trained(micro, tmp_path):
    """Train one of TRL's trainers for a step; return it and whether the weights moved."""

    def train(trainer_type, config_type, rows, **settings):
        args = config_type(
            output_dir=str(tmp_path / "trl"),
            max_steps=1,
            learning_rate=1e-2,
            per_device_train_batch_size=4,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            **settings,
        )
        trainer = trainer_type(
            model=load_causal_lm(micro.start.policy),
            args=args,
            train_dataset=rows,
            processing_class=load_tokenizer(micro.start.policy),
        )
        before = [p.detach().clone() for p in trainer.model.parameters()]
        trainer.train()
        after = trainer.model.parameters()
        assert any(not torch.equal(b, a) for b, a in zip(before, after, strict=True))
        assert math.isfinite(trainer.state.log_history[-1]["train_loss"])
        return trainer

    return train


@pytest.fixture
def said(rollouts, micro):
    """Decode rows that TRL tokenised; and the stored trajectories by what their model saw.

    A last turn that was cut by length has no end: the template writes it, and a newline.
    """
    tokenizer = load_tokenizer(micro.start.policy)
    known = {}
    for t in read_trajectories(rollouts):
        if t.counts:
            known[tokenizer.decode(t.tokens.ids).removesuffix(END) + END] = t

    def decode(rows, *columns):
        ids = [[token for column in columns for token in row[column]] for row in rows]
        return [known[tokenizer.decode(row).removesuffix("\n")] for row in ids]

    return decode


def test_dpo_trains_on_exported_pairs(load, trained, said):
    rows = load("trl", "--pairs", "2")
    assert len(rows) >= 4
    prepared = trained(trl.DPOTrainer, trl.DPOConfig, rows).train_dataset
    winners = said(prepared, "prompt_ids", "chosen_ids")
    losers = said(prepared, "prompt_ids", "rejected_ids")
    assert len(winners) == len(losers) == len(rows)
    assert all(t.grade.correct for t in winners)
    assert not any(t.grade.correct for t in losers)
    asked = [[t.problem.question for t in side] for side in (winners, losers)]
    assert asked[0] == asked[1]
    assert any(len(t.turns) > 1 for t in winners), "no pair has an interpreter's output"


def test_kto_trains_on_exported_trajectories(load, trained, said):
    rows = load("kto")
    prepared = trained(trl.KTOTrainer, trl.KTOConfig, rows).train_dataset
    found = said(prepared, "prompt_ids", "completion_ids")
    assert len(found) == len(rows)
    assert [t.grade.correct for t in found] == list(prepared["label"])
    assert set(prepared["label"]) == {True, False}


def test_sft_trains_on_exactly_our_mask(load, trained, rollouts):
    """Token ids with a mask per token go through as they are: nothing is tokenised again."""
    rows = load("openai")
    trainer = trained(trl.SFTTrainer, trl.SFTConfig, rows)
    stored = [t.tokens for t in read_trajectories(rollouts) if t.counts and t.turns]
    prepared = trainer.train_dataset
    assert len(prepared) == len(stored)
    for row, tokens in zip(prepared, stored, strict=True):
        assert row["input_ids"] == list(tokens.ids)
        wanted = [
            i if mine else -100 for i, mine in zip(tokens.ids, tokens.action_mask, strict=True)
        ]
        assert row["labels"] == wanted
