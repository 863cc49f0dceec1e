"""TRL as an oracle: losses and gradients on the same token ids."""

import copy

import pytest
import torch

from agents.models.hf import load_causal_lm, load_tokenizer
from learners import KTOConfig, LearnerConfig, LogProbs, make_learner
from learners.numerics.logprobs import reference_logps, summed_logps
from learners.preferences import PairRules

trl = pytest.importorskip("trl", reason="the oracle is an extra: pip install trl==1.16.*")

ETA = 0.3
RULES = PairRules(per_problem=2)
TEXT = {
    "dpo": {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]},
    "kto": {"prompt": ["a"], "completion": ["b"], "label": [True]},
}


def loaded(folder):
    """The untrained model with larger weights, so that log-probs differ between tokens."""
    model = load_causal_lm(folder)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 5
    return model


@pytest.fixture(scope="module")
def models(policy, reference):
    return loaded(reference), loaded(policy)  # this way round z0 is positive


@pytest.fixture(scope="module")
def trainer(models, policy, tmp_path_factory):
    """Make one of TRL's trainers around copies of both models. It never trains."""
    from datasets import Dataset

    def make(kind, **settings):
        config, cls = {
            "dpo": (trl.DPOConfig, trl.DPOTrainer),
            "kto": (trl.KTOConfig, trl.KTOTrainer),
        }[kind]
        policy_copy, reference_copy = copy.deepcopy(models)
        args = config(
            output_dir=str(tmp_path_factory.mktemp(kind)),
            beta=ETA,
            per_device_train_batch_size=2,
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
            **settings,
        )
        data = {k: v * 4 for k, v in TEXT[kind].items()}
        made = cls(
            model=policy_copy,
            ref_model=reference_copy,
            args=args,
            train_dataset=Dataset.from_dict(data),
            processing_class=load_tokenizer(policy),
        )
        made.model.eval()
        return made

    return make


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def theirs(trainer, inputs):
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), gradients(trainer.model)


def ours(models, learner, examples):
    model, reference = models
    model.zero_grad(set_to_none=True)
    samples = [s for e in examples for s in e.samples]
    ref = reference_logps(reference, examples, budget=4096)
    controls = [e.control for e in examples if e.control]
    baseline = None
    if learner.controls:
        with torch.no_grad():
            ratios = summed_logps(model, controls) - torch.cat([ref[c] for c in controls])
        baseline = ratios.mean()
    logps = LogProbs(
        summed_logps(model, samples), torch.cat([ref[s] for s in samples]), None, baseline
    )
    loss = learner.loss(logps, examples).loss / learner.denominator(examples)
    loss.backward()
    return loss.item(), gradients(model), baseline


def assert_equal(mine, other):
    assert mine[0] == pytest.approx(other[0], abs=1e-5)
    assert mine[1].keys() == other[1].keys()
    assert max(g.abs().max() for g in mine[1].values()) > 1e-2
    for name, gradient in mine[1].items():
        assert torch.allclose(gradient, other[1][name], rtol=1e-5, atol=1e-5), name


def split(sample):
    """Prompt ids, and what follows."""
    cut = sample.mask.index(True)
    return list(sample.ids[:cut]), list(sample.ids[cut:])


@pytest.fixture(scope="module")
def trajectories(make_trajectory):
    def make(turns):
        every = [(problem, i) for problem in "abc" for i in range(4)]
        return [make_trajectory(p, i < 2, sample=i, turns=turns) for p, i in every]

    return make


def preference_batch(examples):
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    rows = []
    for example in examples:
        (prompt, chosen), (_, rejected) = map(split, example.samples)
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    return DataCollatorForPreference(pad_token_id=0)(rows)


@pytest.mark.parametrize(
    ("name", "loss_type"), [("dpo", "sigmoid"), ("mdpo", "sigmoid"), ("ipo", "ipo")]
)
def test_single_turn_pairs_have_trls_loss_and_gradient(
    models, trainer, trajectories, name, loss_type
):
    learner = make_learner(name, LearnerConfig(eta=ETA, pairs=RULES))
    examples, _ = learner.examples(trajectories(1), seed=0)
    assert len(examples) == 6
    mine = ours(models, learner, examples)
    # Of several losses TRL takes a list.
    other = theirs(trainer("dpo", loss_type=[loss_type]), preference_batch(examples))
    assert_equal(mine, other)


def test_multi_turn_pairs_have_trls_loss_and_gradient_once_it_has_our_masks(
    models, trainer, trajectories
):
    learner = make_learner("mdpo", LearnerConfig(eta=ETA, pairs=RULES))
    examples, _ = learner.examples(trajectories(3), seed=0)
    batch = preference_batch(examples)
    unmasked = theirs(trainer("dpo"), batch)
    sides = [s for side in (0, 1) for s in (e.samples[side] for e in examples)]
    for row, sample in enumerate(sides):
        batch["completion_mask"][row, : len(sample.mask)] = torch.tensor(sample.mask)
    mine = ours(models, learner, examples)
    assert_equal(mine, theirs(trainer("dpo"), batch))
    assert mine[0] != pytest.approx(unmasked[0], abs=1e-3)
    # What TRL does with it alone is the single-turn baseline.
    single = make_learner("dpo", LearnerConfig(eta=ETA, pairs=RULES))
    assert_equal(ours(models, single, single.examples(trajectories(3), seed=0)[0]), unmasked)


def unpaired_batch(examples):
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    rows = []
    for example in examples:
        prompt, completion = split(example.samples[0])
        row = {"prompt_ids": prompt, "completion_ids": completion, "label": example.score > 0}
        if example.control:
            begin, row["KL_completion_ids"] = split(example.control)
            assert begin == prompt
        rows.append(row)
    return DataCollatorForUnpairedPreference(pad_token_id=0)(rows)


@pytest.mark.parametrize(
    ("kl", "loss_type", "weights"),
    [
        ("mismatched", "kto", (1.0, 1.0)),
        ("mismatched", "kto", (1.3, 0.7)),
        ("none", "apo_zero_unpaired", (1.0, 1.0)),
    ],
)
@pytest.mark.parametrize("name", ["kto", "mkto"])
def test_single_turn_kto_has_trls_loss_and_gradient(
    models, trainer, trajectories, name, kl, loss_type, weights
):
    good, bad = weights
    config = KTOConfig(eta=ETA, pairs=RULES, kl=kl, desirable_weight=good, undesirable_weight=bad)
    learner = make_learner(name, config)
    examples, _ = learner.examples(trajectories(1), seed=0)
    assert len(examples) == 12
    *mine, baseline = ours(models, learner, examples)
    other = theirs(
        trainer("kto", loss_type=loss_type, desirable_weight=good, undesirable_weight=bad),
        unpaired_batch(examples),
    )
    assert_equal(mine, other)
    assert baseline is None or baseline > 0.1


def test_a_negative_kl_is_clamped_as_trl_clamps_it(models, trainer, trajectories):
    learner = make_learner("kto", KTOConfig(eta=ETA, pairs=RULES))
    examples, _ = learner.examples(trajectories(1), seed=0)
    *mine, baseline = ours(models[::-1], learner, examples)
    assert baseline < -0.1
    made = trainer("kto")
    made.model.load_state_dict(models[1].state_dict())
    made.ref_model.load_state_dict(models[0].state_dict())
    assert_equal(mine, theirs(made, unpaired_batch(examples)))
