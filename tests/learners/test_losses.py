import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.losses import dpo, implicit_reward, nll

logp = st.floats(-300, 0)
eta = st.floats(0.01, 2)


def row(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def by_hand(w: float, r: float, ref_w: float, ref_r: float, eta: float, margin: float = 0) -> float:
    """Equation 14 for one pair with plain floats: log(1 + exp(-z))."""
    z = eta * ((w - ref_w) - (r - ref_r)) + margin
    return math.log1p(math.exp(-z)) if z > 0 else -z + math.log1p(math.exp(z))


@given(logp, logp, logp, logp, eta, st.floats(-3, 3))
def test_dpo_is_the_closed_form(w, r, ref_w, ref_r, eta, margin):
    found = dpo(row(w), row(r), row(ref_w), row(ref_r), eta=eta, margin=margin)
    assert found.item() == pytest.approx(by_hand(w, r, ref_w, ref_r, eta, margin), rel=1e-9)


def test_dpo_on_round_numbers():
    # Log-ratio margin 10, eta 0.1: -log sigmoid(1) = log(1 + 1/e).
    found = dpo(row(-20), row(-30), row(-25), row(-25), eta=0.1)
    assert found.item() == pytest.approx(math.log(1 + math.exp(-1)))


@given(logp, logp, eta)
def test_an_untrained_policy_has_loss_log_2(w, r, eta):
    assert dpo(row(w), row(r), row(w), row(r), eta=eta).item() == pytest.approx(math.log(2))


@given(logp, logp, logp, logp, eta)
def test_swapping_the_sides_negates_the_margin(w, r, ref_w, ref_r, eta):
    """-log s(z) and -log s(-z) differ by exactly z."""
    there = dpo(row(w), row(r), row(ref_w), row(ref_r), eta=eta)
    back = dpo(row(r), row(w), row(ref_r), row(ref_w), eta=eta)
    reward_w = implicit_reward(row(w), row(ref_w), eta=eta)
    reward_r = implicit_reward(row(r), row(ref_r), eta=eta)
    assert (back - there).item() == pytest.approx((reward_w - reward_r).item(), abs=1e-9)


@given(st.floats(-30, 0), st.floats(-30, 0), eta)
def test_the_gradient_is_eta_times_the_chance_of_being_wrong(w, r, eta):
    chosen, rejected = row(w).requires_grad_(), row(r).requires_grad_()
    dpo(chosen, rejected, row(-10), row(-10), eta=eta).sum().backward()
    wrong = 1 / (1 + math.exp(eta * (w - r)))
    assert chosen.grad.item() == pytest.approx(-eta * wrong, rel=1e-9)
    assert rejected.grad.item() == pytest.approx(eta * wrong, rel=1e-9)


def test_the_gradient_vanishes_at_a_large_margin_and_is_linear_at_a_negative_one():
    chosen = row(0, -2000).requires_grad_()
    loss = dpo(chosen, row(-2000, 0), row(0, 0), row(0, 0), eta=1.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0, 2000])
    assert chosen.grad.tolist() == pytest.approx([0, -1])


def test_the_margin_is_not_scaled_by_eta():
    zero = row(0)
    for eta in (0.1, 1.0):
        found = dpo(zero, zero, zero, zero, eta=eta, margin=row(2)).item()
        assert found == pytest.approx(math.log1p(math.exp(-2)))


def test_every_pair_has_a_loss_of_its_own():
    values = dpo(row(-1, -2), row(-3, -1), row(-2, -2), row(-2, -2), eta=0.5)
    alone = [dpo(row(a), row(b), row(-2), row(-2), eta=0.5).item() for a, b in ((-1, -3), (-2, -1))]
    assert values.tolist() == pytest.approx(alone)


def test_nll_is_the_negative_sum():
    assert nll(row(-3, -0.5)).tolist() == [3, 0.5]
