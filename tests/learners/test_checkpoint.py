import json

import pytest
import torch

from agents.models.hf import load_causal_lm, load_tokenizer
from learners.training import checkpoint
from learners.training.checkpoint import (
    drop_state,
    load_state,
    read_manifest,
    save_checkpoint,
    step_folders,
)
from mathenv.errors import DataError


@pytest.fixture(scope="module")
def parts(policy):
    return load_causal_lm(policy), load_tokenizer(policy)


def test_what_is_saved_is_what_is_loaded(parts, tmp_path):
    path = tmp_path / "step-1"
    save_checkpoint(path, *parts, {"step": 1}, {"moments": torch.ones(2)})
    assert read_manifest(path) == {"step": 1}
    assert load_state(path)["moments"].tolist() == [1, 1]
    again = load_causal_lm(path).state_dict()
    assert all(torch.equal(again[k], v) for k, v in parts[0].state_dict().items())
    assert load_tokenizer(path).get_vocab() == parts[1].get_vocab()
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]


def test_without_state_it_is_a_policy_and_no_resume_point(parts, tmp_path):
    path = tmp_path / "step-1"
    save_checkpoint(path, *parts, {})
    with pytest.raises(DataError, match=r"trainer\.pt"):
        load_state(path)
    drop_state(path)  # nothing to drop is no error
    assert (path / "model.safetensors").exists()


@pytest.mark.parametrize("where", ["weights", "tokenizer", "state"])
def test_a_crash_while_saving_leaves_no_checkpoint_and_the_next_save_mends(
    parts, tmp_path, monkeypatch, where
):
    model, tokenizer = parts
    owner, name = {
        "weights": (type(model), "save_pretrained"),
        "tokenizer": (type(tokenizer), "save_pretrained"),
        "state": (checkpoint.torch, "save"),
    }[where]
    real = getattr(owner, name)

    def crash(*args, **kwargs):
        real(*args, **kwargs)  # everything of this part is on disk, and then ...
        raise KeyboardInterrupt

    path = tmp_path / "step-5"
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, crash)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, model, tokenizer, {"step": 5}, {"a": 1})
    assert not path.exists()
    assert step_folders(tmp_path) == []
    save_checkpoint(path, model, tokenizer, {"step": 5}, {"a": 1})
    assert step_folders(tmp_path) == [(5, path)]
    assert [p.name for p in tmp_path.iterdir()] == ["step-5"]


def test_a_crash_while_replacing_leaves_a_whole_one_or_none(parts, tmp_path, monkeypatch):
    """Removing the old folder file by file must not leave half of it under its name."""
    path = tmp_path / "step-5"
    save_checkpoint(path, *parts, {"step": 5}, {"a": 1})
    real = checkpoint.shutil.rmtree

    def crash(folder, **kwargs):
        if not folder.exists() or folder.name.endswith(".partial"):
            return real(folder, **kwargs)
        next(f for f in folder.iterdir() if f.is_file()).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.shutil, "rmtree", crash)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, *parts, {"step": 6}, {"a": 2})
    assert read_manifest(path) == {"step": 6}
    assert load_state(path) == {"a": 2}
    save_checkpoint(path, *parts, {"step": 7}, {"a": 3})
    assert [p.name for p in tmp_path.iterdir()] == ["step-5"]


def test_steps_are_sorted_as_numbers_and_other_names_are_ignored(tmp_path):
    for name in ("step-10", "step-9", "step-100", ".step-11.partial", "step-old", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-3").write_text("a file")
    assert [step for step, _ in step_folders(tmp_path)] == [9, 10, 100]
    assert step_folders(tmp_path / "missing") == []


def test_a_folder_of_another_tool_has_an_empty_manifest(policy):
    assert read_manifest(policy) == {}


def test_the_manifest_is_plain_json(parts, tmp_path):
    save_checkpoint(tmp_path / "step-1", *parts, {"b": [1], "a": None})
    text = (tmp_path / "step-1" / "manifest.json").read_text()
    assert json.loads(text) == {"a": None, "b": [1]}


def test_a_full_disk_names_the_checkpoint_and_keeps_the_earlier_ones(tmp_path, monkeypatch):
    from agents.models.hf import load_causal_lm, load_tokenizer
    from agents.tiny import TinyConfig, make_tiny
    from mathenv.errors import StorageError

    folder = make_tiny(tmp_path / "tiny", config=TinyConfig(32, 1, 1, 64))
    model, tokenizer = load_causal_lm(folder), load_tokenizer(folder)
    save_checkpoint(tmp_path / "step-1", model, tokenizer, {}, {"step": 1})

    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(StorageError, match="step-2: No space left on device: make room"):
        save_checkpoint(tmp_path / "step-2", model, tokenizer, {}, {"step": 2})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1", "tiny"]
