"""UnicodeText as a Gymnasium space."""

import copy
import json
import pickle

import gymnasium
import numpy as np
import pytest
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate
from gymnasium.wrappers.utils import create_zero_array

from mathenv.errors import ConfigError
from mathenv.spaces import UnicodeText


@pytest.mark.parametrize("text", ["", "2+2", "\\boxed{½}\n", "日本\u2028", "😀" * 10, "\x00"])
def test_contains_any_text(text):
    assert text in UnicodeText(10)


@pytest.mark.parametrize("value", ["x" * 11, b"x", 3, None, ["x"]])
def test_refuses_long_text_and_other_types(value):
    assert value not in UnicodeText(10)


def test_samples_are_seeded_members_of_varying_length():
    first, second = UnicodeText(20, seed=3), UnicodeText(20, seed=3)
    samples = [first.sample() for _ in range(50)]
    assert samples == [second.sample() for _ in range(50)]
    assert all(sample in first and type(sample) is str for sample in samples)
    assert len({len(sample) for sample in samples}) > 5
    assert UnicodeText(0).sample() == ""


def test_sample_refuses_masks():
    with pytest.raises(ConfigError, match="mask"):
        UnicodeText().sample(mask=np.ones(3, dtype=np.int8))


def test_negative_length_is_refused():
    with pytest.raises(ConfigError, match="at least 0"):
        UnicodeText(-1)


def test_equality_repr_and_copies():
    space = UnicodeText(7)
    assert space == UnicodeText(7) != UnicodeText(8)
    assert space != gymnasium.spaces.Text(7)
    assert hash(space) == hash(UnicodeText(7))
    assert eval(repr(space)) == space
    assert copy.deepcopy(space) == space
    # Text over all of Unicode pickles to 46 MB; that is why this space exists.
    assert len(pickle.dumps(space)) < 1000
    assert pickle.loads(pickle.dumps(space)) == space


def test_a_pickle_keeps_the_generator():
    space = UnicodeText(20, seed=1)
    space.sample()
    twin = pickle.loads(pickle.dumps(space))
    assert [space.sample() for _ in range(3)] == [twin.sample() for _ in range(3)]


def test_jsonable_round_trip():
    space = UnicodeText(20, seed=0)
    samples = [space.sample() for _ in range(5)] + ["½"]
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(samples)))) == samples


def test_batches_as_a_tuple():
    batch = batch_space(UnicodeText(5), 2)
    assert ("a", "") in batch
    assert list(iterate(batch, ("a", ""))) == ["a", ""]


def test_is_not_flattenable():
    assert UnicodeText().is_np_flattenable is False


def test_what_wrappers_fill_up_with_is_empty_text():
    space = UnicodeText(5)
    assert create_zero_array(space) == ""
    batch = create_empty_array(space, n=3)
    assert batch == ("", "", "")
    assert batch in batch_space(space, 3)
    assert create_empty_array(space, n=None) in space
    assert concatenate(space, ["a", "b"], create_empty_array(space, n=2)) == ("a", "b")


def test_numpy_integers_are_integers():
    space = UnicodeText(np.int64(7), seed=np.uint8(3))
    assert space == UnicodeText(7)
    assert json.dumps(space.max_length) == "7"
    assert space.sample() == UnicodeText(7, seed=3).sample()
    for wrong in (True, 7.0, "7"):
        with pytest.raises(ConfigError, match="max_length must be an integer"):
            UnicodeText(wrong)
