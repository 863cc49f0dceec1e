"""What would train on the wrong thing is an error that names the trajectory."""

import math
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import learners.training.parallel
from agents.dialects import find_dialect
from agents.models.hf import load_causal_lm, load_tokenizer
from agents.rendering import ChatRenderer
from learners import make_learner
from learners.numerics.logprobs import not_finite, reference_logps, summed_logps, token_logps
from learners.preferences import Example, action_sample
from learners.training.checkpoint import save_checkpoint, step_folders
from learners.training.train import Stage, TrainConfig, train
from mathenv.errors import ConfigError, DataError, TrainingError

CONFIG = TrainConfig(lr=1e-3, checkpoints=1)


@pytest.fixture
def trajectories(make_trajectory):
    return [make_trajectory(p, i < 1, sample=i) for p in "ab" for i in range(2)]


@pytest.fixture
def stage(policy, reference, tmp_path):
    return Stage(policy, tmp_path / "train", reference)


def run(trajectories, stage, name="mdpo"):
    learner = make_learner(name)
    examples, _ = learner.examples(trajectories, seed=0)
    return train(learner, examples, CONFIG, stage)


def with_tokens(trajectory, **changes):
    return replace(trajectory, tokens=replace(trajectory.tokens, **changes))


# --- tokens of another tokenizer


def test_tokens_of_another_tokenizer_or_template_are_refused(trajectories, stage, policy):
    own = ChatRenderer(load_tokenizer(policy)).fingerprint
    known = [with_tokens(t, fingerprint=own) for t in trajectories]
    assert run(known, stage)
    renderer = ChatRenderer(load_tokenizer(policy), dialect=find_dialect("gemma2"))
    assert renderer.fingerprint != own
    spoken = [with_tokens(t, fingerprint=renderer.fingerprint) for t in trajectories]
    assert run(spoken, replace(stage, out=stage.out / "dialect"))
    foreign = [*known[:-1], with_tokens(known[-1], fingerprint="0123456789abcdef")]
    with pytest.raises(TrainingError, match="b#current#1 was sampled with another tokenizer"):
        run(foreign, replace(stage, out=stage.out / "again"))


def test_ids_beyond_the_vocabulary_are_refused(trajectories, stage):
    ids = trajectories[3].tokens.ids
    beyond = with_tokens(trajectories[3], ids=(*ids[:-1], 5000))
    with pytest.raises(TrainingError, match=r"b#current#1 holds token 5000.*knows \d+"):
        run([*trajectories[:3], beyond], stage)


# --- log-probabilities that are not finite


def ruled_out(model, token):
    """Make the model give a token probability 0, as a grammar or a ban would."""
    model.get_output_embeddings().register_forward_hook(
        lambda module, given, logits: logits.index_fill(-1, torch.tensor([token]), -math.inf)
    )
    return model


@pytest.mark.parametrize("per_token", [False, True])
def test_a_reference_that_rules_out_a_sampled_token_is_named(trajectories, reference, per_token):
    """Else the loss of a pair whose chosen side has reference probability 0 is 0."""
    samples = [action_sample(t) for t in trajectories]
    last = samples[2].ids[max(t for t, on in enumerate(samples[2].mask) if on)]
    hit = {s.key for s in samples if last in [i for i, on in zip(s.ids, s.mask, strict=True) if on]}
    model = ruled_out(load_causal_lm(reference), last)
    with pytest.raises(TrainingError, match="not finite") as caught:
        reference_logps(model, [Example((s,)) for s in samples], budget=99, per_token=per_token)
    assert "b#current#0" in hit
    assert {s.key for s in samples if s.key in str(caught.value)} == hit
    values = (token_logps if per_token else summed_logps)(model, samples)
    assert set(not_finite(values, samples)) == hit


def broken(folder, out):
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("name", ["mdpo", "mkto", "ipo"])
def test_a_reference_with_broken_weights_is_an_error_before_the_first_step(
    trajectories, stage, tmp_path, name
):
    stage = replace(stage, reference=broken(stage.reference, tmp_path / "broken"))
    with pytest.raises(TrainingError, match=r"not finite to .*#current#\d.*weights are broken"):
        run(trajectories, stage, name)
    assert step_folders(stage.out) == []


def test_a_policy_that_rules_out_a_token_is_an_error_though_the_loss_is_finite(
    trajectories, stage, monkeypatch
):
    """-log sigmoid(+inf) is 0: without the check such a pair would count as learned."""

    def rule_out(model, samples):
        logps = summed_logps(model, samples)
        if not torch.is_grad_enabled():
            return logps
        rejected = torch.tensor([s.key == "b#current#1" for s in samples])
        return logps.masked_fill(rejected, -math.inf)

    monkeypatch.setattr(learners.training.parallel, "summed_logps", rule_out)
    with pytest.raises(TrainingError, match=r"step 1: .*not finite of b#current#1\. Lower"):
        run(trajectories, stage)
    assert step_folders(stage.out) == []


# --- checkpoints that are not whole


@pytest.mark.parametrize("part", ["policy", "reference"])
def test_an_unfinished_checkpoint_is_refused(trajectories, stage, tmp_path, part):
    (whole,) = run(trajectories, stage)
    left = whole.with_name(".step-9.partial")
    shutil.copytree(whole, left)
    again = replace(stage, out=tmp_path / "again")
    with pytest.raises(DataError, match=r"step-9\.partial is an unfinished.*step-1"):
        run(trajectories, replace(again, **{part: left}))


def test_weights_that_were_cut_off_or_are_missing_are_an_error(trajectories, stage, tmp_path):
    cut = tmp_path / "cut"
    shutil.copytree(stage.policy, cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"cannot load .* from .*cut"):
            run(trajectories, replace(stage, policy=cut))
        weights.unlink(missing_ok=True)


class Killed(BaseException):
    """Stands for the process ending."""


@pytest.mark.parametrize("at", ["tokenizer", "weights"])
def test_what_is_left_of_a_killed_save_does_not_load(policy, tmp_path, at, monkeypatch):
    model, tokenizer = load_causal_lm(policy), load_tokenizer(policy)

    def die(*args, **kwargs):
        raise Killed

    if at == "tokenizer":
        monkeypatch.setattr(tokenizer, "save_pretrained", die)
    else:
        monkeypatch.setattr("transformers.modeling_utils.safe_save_file", die)
    path = tmp_path / "step-1"
    with pytest.raises(Killed):
        save_checkpoint(path, model, tokenizer, {}, {})
    assert not path.exists()
    with pytest.raises(ConfigError):
        load_causal_lm(tmp_path / ".step-1.partial")
    monkeypatch.undo()
    save_checkpoint(path, model, tokenizer, {}, {})
    assert load_causal_lm(path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
