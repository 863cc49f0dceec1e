"""Learning rates of every step, against transformers' own schedules and closed forms."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from learners.training.schedule import TrainConfig, learning_rate

PEERS = {
    "linear": get_linear_schedule_with_warmup,
    "cosine": get_cosine_schedule_with_warmup,
}


def rates(steps, **settings):
    config = TrainConfig(lr=1.0, **settings)
    return [learning_rate(config, step, steps) for step in range(1, steps + 1)]


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_no_step_is_without_a_rate(schedule, steps, warmup):
    """Of two steps the second learns too: at rate 0 half of the examples would be for nothing."""
    found = rates(steps, schedule=schedule, warmup=warmup)
    assert all(0 < rate <= 1 for rate in found)
    assert max(found) == 1.0
    if schedule != "constant":
        assert sum(found) == pytest.approx((steps + 1) / 2)


@pytest.mark.parametrize("steps", [2, 10, 37])
@pytest.mark.parametrize("schedule", PEERS)
def test_decay_is_that_of_transformers(schedule, steps):
    warm = max(1, round(0.3 * steps))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    # Its warm-up begins at 0, one step before ours.
    peer = PEERS[schedule](optimizer, warm - 1, steps)
    expected = []
    for _ in range(steps):
        expected.append(peer.get_last_lr()[0])
        optimizer.step()
        peer.step()
    assert rates(steps, schedule=schedule, warmup=0.3)[warm - 1 :] == pytest.approx(
        expected[warm - 1 :]
    )


def test_a_run_of_two_steps():
    assert rates(2, schedule="linear", warmup=0.0) == [1.0, 0.5]
    assert rates(2, schedule="cosine", warmup=0.0) == pytest.approx([1.0, 0.5])
    assert rates(4, schedule="linear", warmup=0.5) == pytest.approx([1 / 2, 1.0, 2 / 3, 1 / 3])
