"""TRL's own GRPOTrainer trained on our episodes: its mask, rewards and loss against ours."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("trl", reason="this is TRL's trainer: pip install trl==1.16.*")

from agents.models.hf import load_causal_lm, load_tokenizer
from agents.policy import load_policy
from agents.rendering import ChatRenderer
from benchmarks.adapters.trl_grpo import (
    TrainGRPO,
    episode_rollouts,
    final_answer,
    main,
    prompt_dataset,
    trl_columns,
)
from mathenv.env import shared_interpreter
from mathenv.errors import ConfigError, DataError, InfraError
from mathenv.interpreter import Limits
from mathenv.store import read_trajectories
from mathenv.types import Problem, SpanKind, StopReason


def distinct(micro):
    """The micro world asks some questions twice."""
    return list({p.question: p for p in micro.sets.prompts}.values())


def settings(micro, out, **changes):
    values = {
        "suite": "unused",
        "model": str(micro.start.policy),
        "out": out,
        "steps": 2,
        "prompts": 3,
        "generations": 4,
        "lr": 1e-3,
        "horizon": 3,
        "max_turn_tokens": 24,
        "max_tokens": 120,
    }
    return TrainGRPO(**{**values, **changes})


@dataclass
class Seen:
    """What the trainer computed losses of, and the episodes that were played."""

    batches: list
    losses: list
    episodes: list
    before: dict
    after: dict

    def rows(self):
        """Yield each trained row: its token ids, how many are prompt, TRL's mask, advantage."""
        for batch in self.batches:
            loss_mask = batch["completion_mask"] * batch["tool_mask"]
            for row, advantage in enumerate(batch["advantages"].tolist()):
                prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()
                kept = batch["completion_mask"][row].bool()
                ids = batch["completion_ids"][row][kept].tolist()
                yield (*prompt, *ids), len(prompt), loss_mask[row][kept].tolist(), advantage


@pytest.fixture(scope="module")
def seen(micro, tmp_path_factory):
    episodes = []
    out = tmp_path_factory.mktemp("grpo")
    trainer = settings(micro, out).trainer(distinct(micro), episodes.append)
    found = Seen([], [], episodes, weights(trainer.model), {})
    compute = trainer._compute_loss

    def record(model, inputs):
        loss = compute(model, inputs)
        found.batches.append({k: v.clone() for k, v in inputs.items() if torch.is_tensor(v)})
        found.losses.append(loss.item())
        return loss

    trainer._compute_loss = record
    trainer.train()
    found.after = weights(trainer.model)
    return found


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_episodes_have_several_turns_with_real_output(seen):
    assert len(seen.episodes) == 2 * 3 * 4
    assert len({t.key for t in seen.episodes}) == len(seen.episodes)
    shown = [turn for t in seen.episodes for turn in t.turns if turn.execution is not None]
    assert shown
    assert any(turn.observation.strip() for turn in shown)
    assert {0.0, 1.0} == {t.reward for t in seen.episodes}


def test_trls_mask_is_ours(seen):
    by_ids = {t.tokens.ids: t for t in seen.episodes}
    rows = list(seen.rows())
    assert Counter(ids for ids, *_ in rows) == Counter(t.tokens.ids for t in seen.episodes)
    hidden = 0
    for ids, start, mask, _ in rows:
        tokens = by_ids[ids].tokens
        assert start == tokens.prompt_length
        assert mask == [int(sampled) for sampled in tokens.action_mask[start:]]
        hidden += sum(s.end - s.start for s in tokens.spans if s.kind is SpanKind.OBSERVATION)
    assert hidden > 0


def test_advantages_come_from_our_grades(seen):
    groups = {}
    for t in seen.episodes:
        groups.setdefault((t.agent, t.problem.id), []).append(t)
    assert all(len(group) == 4 for group in groups.values())
    wanted = {}
    for group in groups.values():
        rewards = [t.reward for t in group]
        for t in group:
            advantage = (t.reward - fmean(rewards)) / (stdev(rewards) + 1e-4)
            wanted.setdefault(t.tokens.ids, []).append(round(advantage, 4))
    found = {}
    for ids, _, _, advantage in seen.rows():
        found.setdefault(ids, []).append(round(advantage, 4))
    assert {k: sorted(v) for k, v in found.items()} == {k: sorted(v) for k, v in wanted.items()}
    assert any(advantage for values in wanted.values() for advantage in values)


def test_the_loss_is_over_sampled_tokens_alone(seen):
    """On-policy the ratio is 1: what remains of the loss are advantages and token counts."""
    for first in range(0, len(seen.batches), 3):  # three micro-batches make one step
        batches = seen.batches[first : first + 3]
        part = Seen(batches, [], [], {}, {})
        weighed = [(advantage, sum(mask)) for _, _, mask, advantage in part.rows()]
        sampled = sum(count for _, count in weighed)
        expected = -sum(advantage * count for advantage, count in weighed) / sampled
        assert sum(seen.losses[first : first + 3]) == pytest.approx(expected, abs=1e-5)


def test_the_weights_moved_towards_what_was_right(seen, micro):
    assert any(not torch.equal(seen.before[name], seen.after[name]) for name in seen.before)
    model = load_causal_lm(micro.start.policy)
    first = [row for row in Seen(seen.batches[:3], [], [], {}, {}).rows() if row[3]]
    assert first

    def objective(state):
        model.load_state_dict(state, strict=False)
        return sum(
            advantage * logp(model, ids)[torch.tensor([0] * (start - 1) + mask).bool()].sum()
            for ids, start, mask, advantage in first
        ).item()

    def logp(model, ids):
        row = torch.tensor([ids])
        with torch.no_grad():
            logps = model(row).logits[0, :-1].log_softmax(-1)
        return logps.gather(-1, row[0, 1:, None])[:, 0]

    assert objective(seen.after) > objective(seen.before)


def test_recorded_logprobs_are_the_models(seen, micro):
    """The sampler's numbers that go to TRL, against a forward pass of the first weights."""
    renderer = ChatRenderer(load_tokenizer(micro.start.policy))
    first = [t for t in seen.episodes if t.agent == "step-0.0"]
    columns = trl_columns(first, renderer)
    model = load_causal_lm(micro.start.policy)
    for t, mask, logprobs in zip(first, columns["env_mask"], columns["logprobs"], strict=True):
        row = torch.tensor([t.tokens.ids])
        with torch.no_grad():
            logps = model(row).logits[0, :-1].log_softmax(-1)
        logps = logps.gather(-1, row[0, 1:, None])[t.tokens.prompt_length - 1 :, 0].tolist()
        assert [p is not None for p in logprobs] == [bool(m) for m in mask]
        mine = [p for p in logprobs if p is not None]
        assert mine == pytest.approx([p for p, m in zip(logps, mask, strict=True) if m], abs=1e-4)
    tempered = trl_columns(first, renderer, at_temperature_1=False)["logprobs"]
    assert {p for row in tempered for p in row} == {None}


def test_episodes_that_do_not_count_are_left_out(make_trajectory, micro):
    renderer = ChatRenderer(load_tokenizer(micro.start.policy))
    good = make_trajectory("a", True)
    silent = replace(
        make_trajectory("a", False, sample=1),
        turns=(),
        stop_reason=StopReason.TOKEN_LIMIT,
        tokens=None,
    )
    columns = trl_columns(
        [good, make_trajectory("a", True, sample=2, infra=True), silent], renderer
    )
    assert columns["env_reward"] == [1.0, None, 0.0]
    assert final_answer(prompts=[], completions=[], **columns) == [1.0, None, 0.0]
    assert columns["env_mask"][1:] == [[0], [0]]
    assert columns["completion_ids"][1:] == [[renderer.end_id]] * 2
    assert columns["prompt_ids"][2] == renderer.prompt_ids(silent.problem.question)


def test_wrong_use_says_what_to_do(micro, tmp_path):
    one, other = Problem("a", "1 + 1?", "2"), Problem("b", "1 + 1?", "3")
    renderer = ChatRenderer(load_tokenizer(micro.start.policy))
    with pytest.raises(DataError, match="a and b ask the same question"):
        episode_rollouts([one, other], renderer)
    rollouts = episode_rollouts([one], renderer, max_turn_tokens=4, max_tokens=60)
    trainer = settings(micro, tmp_path).trainer([one])
    with pytest.raises(DataError, match="'2 \\+ 2\\?' is no problem's question"):
        rollouts([[{"role": "user", "content": "2 + 2?"}]], trainer)
    trainer.top_k = 5
    with pytest.raises(ConfigError, match="sets top_k"):
        rollouts(prompt_dataset([one])["prompt"], trainer)


class Failing:
    """The real sandbox, which breaks down for a share of the sessions."""

    def __init__(self, fails):
        self.fails, self.real = fails, shared_interpreter("local", Limits())
        self.limits, self.description = self.real.limits, self.real.description

    def session(self, *, seed=0):
        if self.fails(seed):
            raise InfraError("the sandbox went away")
        return self.real.session(seed=seed)

    def close(self):
        pass


def test_trl_leaves_out_episodes_in_which_the_sandbox_failed(micro, tmp_path):
    counted = []
    config = settings(micro, tmp_path, steps=1, prompts=2, generations=6)
    config = replace(config, interpreter=Failing(lambda seed: seed % 2 == 0))
    trainer = config.trainer(distinct(micro)[:2], counted.append)
    batches = []
    compute = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: batches.append(inputs) or compute(model, inputs)
    trainer.train()
    rows = list(Seen(batches, [], [], {}, {}).rows())
    assert len(rows) == 12
    trained = Counter(ids for ids, _, mask, _ in rows if any(mask))
    assert 0 < len(counted) < 12
    assert trained == Counter(t.tokens.ids for t in counted)
    assert {advantage for _, _, mask, advantage in rows if not any(mask)} == {0.0}
    rewards = list(trainer._logs["rewards"]["final_answer"])
    assert sum(reward == reward for reward in rewards) == len(counted)  # None became NaN
    assert sum(reward == 1 for reward in rewards) == sum(t.grade.correct for t in counted)


def test_a_sandbox_that_fails_everywhere_stops_the_training(micro, tmp_path):
    problems = distinct(micro)[:1]
    config = replace(settings(micro, tmp_path), interpreter=Failing(lambda seed: True))
    with pytest.raises(InfraError, match=r"all 12 episodes failed .*the sandbox went away"):
        config.trainer(problems * 3).train()


def test_the_command_trains_and_continues(micro, tmp_path, capsys):
    rows = [{"question": p.question, "answer": p.answer} for p in distinct(micro)[:6]]
    file, out = tmp_path / "train.jsonl", tmp_path / "out"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [str(file), "--model", str(micro.start.policy), "--out", str(out)]
    words += ["--steps", "2", "--save-steps", "1", "--prompts", "1", "--generations", "2"]
    words += ["--max-turn-tokens", "24", "--max-tokens", "120", "--lr", "1e-3"]
    main(words)
    stored = list(read_trajectories(out / "rollouts-0"))
    assert len(stored) == 4
    begun = load_file(micro.start.policy / "model.safetensors")
    trained = load_file(out / "checkpoint-2" / "model.safetensors")
    assert any(not torch.equal(begun[name], trained[name]) for name in trained)
    with load_policy(out / "checkpoint-2") as agent:
        assert agent.renderer.fingerprint == ChatRenderer(load_tokenizer(words[2])).fingerprint
    main(words)  # finished: nothing is played or trained again
    assert list(read_trajectories(out / "rollouts-0")) == stored
    shutil.rmtree(out / "checkpoint-2")  # as if it had been killed in the second step
    main(words)
    assert list(read_trajectories(out / "rollouts-0")) == stored
    again = load_file(out / "checkpoint-2" / "model.safetensors")
    assert all(torch.equal(trained[name], again[name]) for name in trained)
    with pytest.raises(SystemExit) as stop:
        main([*words, "--seed", "1"])
    assert stop.value.code == 2
    assert "seed was 0, now 1" in capsys.readouterr().err
