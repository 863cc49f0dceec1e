import torch
from safetensors.torch import save_file

from learners.training.weights import same_weights


def folder(path, **tensors):
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return path


def test_same_weights_whatever_the_type_and_the_files(tmp_path):
    a, b, more = torch.arange(6.0).view(2, 3), torch.ones(4), torch.ones(2)
    first = folder(tmp_path / "first", a=a, b=b)
    assert same_weights(first, first)
    assert same_weights(first, folder(tmp_path / "half", a=a.bfloat16(), b=b))
    split = folder(tmp_path / "split", a=a)
    save_file({"b": b}, split / "model-2.safetensors")
    assert same_weights(first, split)
    assert same_weights(split, folder(tmp_path / "more", a=a, b=b, buffer=more))


def test_other_weights_and_what_cannot_be_compared(tmp_path):
    a = torch.arange(6.0).view(2, 3)
    first = folder(tmp_path / "first", a=a, b=a + 0)
    assert not same_weights(first, folder(tmp_path / "moved", a=a, b=a + 1e-6))
    assert not same_weights(first, folder(tmp_path / "shape", a=a, b=a.view(3, 2).clone()))
    assert not same_weights(first, folder(tmp_path / "other", c=a))
    assert not same_weights(first, tmp_path / "some-hub-id")
