"""Log-probs of policies that are not trained: when they are computed, and that they are right."""

import os
import random
import shutil
import signal
import sqlite3
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agents.models.hf import load_causal_lm
from learners import make_learner
from learners.learner import LearnerConfig
from learners.numerics.logprobs import reference_logps
from learners.numerics.model_check import head_use
from learners.preferences import Example, PairRules
from learners.training import reference as cache
from learners.training.reference import LogProbCache, frozen_logps, weights_hash
from learners.training.train import Stage, TrainConfig, train
from mathenv.errors import DataError, TrainingError

BUDGET = 60


@pytest.fixture(scope="module")
def examples(make_trajectory):
    learner = make_learner("mkto")
    trajectories = [
        make_trajectory(f"p{p}", i < 2, sample=i, turns=2) for p in range(3) for i in range(4)
    ]
    found, _ = learner.examples(trajectories, seed=0)
    assert any(e.control for e in found)
    return found


@pytest.fixture
def file(tmp_path):
    return tmp_path / "reference.sqlite"


class Counted:
    """Loads a policy; counts how often, and its forward passes."""

    def __init__(self, path, dtype="float32"):
        self.path, self.dtype, self.loads, self.passes = path, dtype, 0, 0

    def __call__(self):
        self.loads += 1
        model = load_causal_lm(self.path, dtype=self.dtype)
        head_use(model)  # its passes are not counted
        model.base_model.register_forward_hook(self._count)
        return nullcontext(model)

    def _count(self, *_):
        self.passes += 1


def ask(path, examples, file, *, dtype="float32", **settings):
    """Return the log-probs and how many forward passes they took."""
    counted = Counted(path, dtype)
    settings = {"budget": BUDGET, **settings}
    found = frozen_logps(path, examples, file, dtype=dtype, load=counted, **settings)
    assert counted.loads == bool(counted.passes)
    return found, counted.passes


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[s], b[s]) for s in a)


# --- right, and once


@pytest.mark.parametrize("per_token", [False, True])
def test_they_are_those_of_the_loaded_model_to_the_last_bit(policy, examples, file, per_token):
    model = load_causal_lm(policy)
    expected = reference_logps(model, examples, budget=BUDGET, per_token=per_token)
    first, passes = ask(policy, examples, file, per_token=per_token)
    assert same(first, expected)
    assert passes > 1
    again, passes = ask(policy, examples, file, per_token=per_token)
    assert same(again, expected)
    assert passes == 0


def test_the_policy_is_read_from_its_folder_if_nothing_else_is_said(policy, examples, file):
    found = frozen_logps(policy, examples, file, budget=BUDGET)
    assert same(found, ask(policy, examples, file)[0])
    assert ask(policy, examples, file)[1] == 0


def test_a_copy_of_the_weights_is_known_by_its_content(policy, examples, file, tmp_path):
    first, _ = ask(policy, examples, file)
    copy = tmp_path / "copy"
    shutil.copytree(policy, copy)
    (copy / "trainer.pt").write_bytes(b"of the optimizer, and of no log-prob")
    assert weights_hash(copy) == weights_hash(policy)
    again, passes = ask(copy, examples, file)
    assert (same(first, again), passes) == (True, 0)


def test_a_hub_id_is_its_downloaded_files(policy, examples, file, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--some--policy" / "snapshots" / "abc"
    shutil.copytree(policy, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    first = frozen_logps(Path("some/policy"), examples, file, budget=BUDGET)
    again, passes = ask(policy, examples, file)
    assert (same(first, again), passes) == (True, 0)


def test_what_a_trajectory_is_called_does_not_matter(policy, examples, file):
    ask(policy, examples, file)
    renamed = [
        replace(e, samples=tuple(replace(s, key=f"{s.key}!") for s in e.samples)) for e in examples
    ]
    assert ask(policy, renamed, file)[1] == 0


def test_new_examples_are_computed_and_the_old_ones_found(policy, examples, file):
    """Batches of one: with more in a batch, a new example changes those it is batched with."""
    pairs = [Example(e.samples) for e in examples]
    ask(policy, pairs[:4], file, budget=1)
    found, passes = ask(policy, pairs, file, budget=1)
    assert passes == len(pairs) - 4
    model = load_causal_lm(policy)
    assert same(found, reference_logps(model, pairs, budget=1))


# --- whatever changes a log-prob leads to another value


def one_weight(path, examples, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(path, changed)
    tensors = load_file(changed / "model.safetensors")
    name = next(name for name in tensors if "q_proj" in name)
    tensors[name][0, 0] += 1.0
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    return changed, examples, {}


def configuration(path, examples, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(path, changed)
    file = changed / "config.json"
    text = file.read_text()
    assert '"rms_norm_eps": 1e-06' in text
    file.write_text(text.replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-03'))
    return changed, examples, {}


def of_first_sample(change):
    def changed(path, examples, tmp_path):
        first = examples[0]
        sample = change(first.samples[0])
        return path, [replace(first, samples=(sample,)), *examples[1:]], {}

    return changed


def one_token(sample):
    assert sample.ids[-1] != 7
    return replace(sample, ids=(*sample.ids[:-1], 7))


def one_mask_bit(sample):
    at = max(t for t, on in enumerate(sample.mask) if on)
    return replace(sample, mask=tuple(on and t != at for t, on in enumerate(sample.mask)))


def weights_of_targets(sample):
    return replace(sample, weights=tuple(0.5 for _ in range(sample.targets)))


def settings(**changes):
    return lambda path, examples, tmp_path: (path, examples, changes)


@pytest.mark.parametrize(
    "change",
    [
        one_weight,
        configuration,
        of_first_sample(one_token),
        of_first_sample(one_mask_bit),
        of_first_sample(weights_of_targets),
        settings(dtype="bfloat16"),
        settings(per_token=True),
        settings(budget=2 * BUDGET),
    ],
    ids=[
        "one weight",
        "configuration",
        "one token",
        "one mask bit",
        "weights of targets",
        "dtype",
        "per token",
        "other batches",
    ],
)
def test_a_change_is_computed_again(policy, examples, file, tmp_path, change):
    before, _ = ask(policy, examples, file)
    path, changed, other = change(policy, examples, tmp_path)
    found, passes = ask(path, changed, file, **other)
    assert passes > 0
    dtype = other.pop("dtype", "float32")
    fresh = reference_logps(
        load_causal_lm(path, dtype=dtype), changed, **{"budget": BUDGET, **other}
    )
    assert same(found, fresh)
    if "budget" not in other:  # other batches give other roundings at most
        assert not same(found, before)
    again, passes = ask(policy, examples, file)
    assert (same(again, before), passes) == (True, 0)


def test_precision_threads_and_code_are_part_of_the_key(policy, examples, file, monkeypatch):
    full, passes = ask(policy, examples, file)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = ask(policy, examples, file)
    assert not same(full, half)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    assert ask(policy, examples, file)[1] == passes
    monkeypatch.undo()
    edited = file.with_name("edited.py")
    edited.write_text("# another way to compute log-probs\n")
    monkeypatch.setattr(cache, "_CODE", (*cache._CODE[:-1], str(edited)))
    assert ask(policy, examples, file)[1] == passes


def test_log_probs_that_are_not_finite_are_refused_each_time(policy, examples, file, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(policy, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"not finite to p\d"):
            frozen_logps(broken, examples, file, budget=BUDGET)


# --- the file


def test_killed_while_writing_it_holds_nothing_wrong(file):
    """A child writes value after value and is killed, eight times."""
    rng, last = random.Random(0), 0
    for _ in range(8):
        child = os.fork()
        if child == 0:
            try:
                with LogProbCache(file) as kept:
                    for number in range(10**9):
                        kept.put(str(number).encode(), torch.full((3000,), float(number)))
            finally:
                os._exit(1)
        try:
            before = last
            while last == before:  # at least one value more
                with LogProbCache(file) as kept:
                    last += kept.get(str(last).encode()) is not None
            time.sleep(rng.uniform(0, 0.02))
        finally:  # or it would fill the disk
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        with LogProbCache(file) as kept:
            for number in range(10**9):
                value = kept.get(str(number).encode())
                if value is None:
                    break
                assert torch.equal(value, torch.full((3000,), float(number)))
    assert last == 8


def test_a_part_that_was_there_before_a_kill_is_not_computed_again(policy, examples, file):
    class Killed(BaseException):
        pass

    class Dying(Counted):
        def _count(self, *_):
            super()._count()
            if self.passes == 3:
                raise Killed

    with pytest.raises(Killed):
        frozen_logps(policy, examples, file, budget=1, load=Dying(policy))
    expected = reference_logps(load_causal_lm(policy), examples, budget=1)
    whole = len(expected)
    found, passes = ask(policy, examples, file, budget=1)
    assert same(found, expected)
    assert passes == whole - 2


def test_two_open_caches_see_what_the_other_keeps(file):
    with LogProbCache(file) as one, LogProbCache(file) as two:
        one.put(b"a", torch.tensor([1.5, -2.0]))
        assert torch.equal(two.get(b"a"), torch.tensor([1.5, -2.0]))
        two.put(b"a", torch.tensor([1.5, -2.0]))
        two.put(b"b", torch.tensor([3.0], dtype=torch.float64))
        assert one.get(b"b").dtype == torch.float64
        assert one.get(b"c") is None


def test_another_file_is_refused_by_name(file, policy, examples):
    file.write_text("no database, but a text that is longer than its header would be" * 20)
    with pytest.raises(DataError, match=r"reference\.sqlite.*delete it"):
        frozen_logps(policy, examples, file, budget=BUDGET)
    file.unlink()
    LogProbCache(file).close()
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE logps")
        database.execute("CREATE TABLE logps (other TEXT)")
    with pytest.raises(DataError, match=r"reference\.sqlite.*no such column"):
        frozen_logps(policy, examples, file, budget=BUDGET)


def test_a_folder_without_weights_is_refused(policy, examples, file, tmp_path):
    empty = tmp_path / "empty"
    shutil.copytree(policy, empty, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(DataError, match="holds no weights"):
        frozen_logps(empty, examples, file, budget=BUDGET)


# --- in training


@pytest.fixture
def passes(monkeypatch):
    """Count the batches that are evaluated for frozen policies."""
    counts = []
    for name in ("summed_logps", "token_logps"):
        real = getattr(cache, name)

        def counted(*args, real=real):
            counts.append(len(args[1]))
            return real(*args)

        monkeypatch.setattr(cache, name, counted)
    return counts


@pytest.mark.parametrize(("name", "frozen"), [("mdpo", 1), ("grpo", 1), ("mkto", 1), ("simpo", 0)])
def test_a_run_that_finds_them_ends_with_the_same_weights(
    name, frozen, make_trajectory, policy, reference, tmp_path, passes
):
    learner = make_learner(name, LearnerConfig(pairs=PairRules(per_problem=2)))
    trajectories = [
        make_trajectory(f"p{p}", i < 2, sample=i, turns=2) for p in range(4) for i in range(4)
    ]
    examples, _ = learner.examples(trajectories, seed=0)
    config = TrainConfig(lr=1e-3, batch_size=4, checkpoints=1)
    first = Stage(policy, tmp_path / "first", reference, cache=tmp_path / "shared.sqlite")
    (computed,) = train(learner, examples, config, first)
    assert bool(passes) == bool(frozen)
    passes.clear()
    (found,) = train(learner, examples, config, replace(first, out=tmp_path / "second"))
    assert passes == []
    (alone,) = train(learner, examples, config, Stage(policy, tmp_path / "third", reference))
    weights = [(path / "model.safetensors").read_bytes() for path in (computed, found, alone)]
    assert weights[0] == weights[1] == weights[2]


def test_a_resumed_run_does_not_evaluate_the_reference_again(
    make_trajectory, policy, reference, tmp_path, passes
):
    learner = make_learner("mdpo")
    trajectories = [
        make_trajectory(f"p{p}", i < 1, sample=i, turns=2) for p in range(8) for i in range(2)
    ]
    examples, _ = learner.examples(trajectories, seed=0)
    config = TrainConfig(lr=1e-3, batch_size=2, checkpoints=4)
    stage = Stage(policy, tmp_path / "train", reference)

    def stop(step, *_):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(learner, examples, config, stage, on_step=stop)
    assert passes
    passes.clear()
    train(learner, examples, config, stage)
    assert passes == []
