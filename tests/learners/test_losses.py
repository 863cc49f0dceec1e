import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learners.losses import clipped_policy_gradient, dpo, implicit_reward, ipo, k3, kto, nll, simpo

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


# --- KTO


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


@given(st.floats(-60, 0), st.floats(-60, 0), st.floats(0, 20), eta, st.booleans())
def test_kto_is_the_closed_form_with_one_eta(logp, ref, z0, eta, good):
    """lambda - v of equation 15, eta in front of the difference and nowhere else."""
    found = kto(
        row(logp),
        row(ref),
        torch.tensor([good]),
        eta=eta,
        z0=z0,
        desirable_weight=1.3,
        undesirable_weight=0.6,
    )
    if good:
        expected = 1.3 - 1.3 * sigmoid(eta * ((logp - ref) - z0))
    else:
        expected = 0.6 - 0.6 * sigmoid(eta * (z0 - (logp - ref)))
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_kto_on_round_numbers_is_not_what_the_paper_prints():
    """r = 10, z0 = 4, eta = 0.1: one eta gives sigmoid(0.6), the printed two sigmoid(-0.3)."""
    found = kto(row(-20), row(-30), torch.tensor([True]), eta=0.1, z0=4.0)
    assert found.item() == pytest.approx(1 - sigmoid(0.6))
    assert found.item() != pytest.approx(1 - sigmoid(0.1 * (0.1 * 10 - 4)), abs=1e-2)


def test_kto_pushes_either_way_hardest_at_the_baseline():
    logps = row(-300, -10, 300).requires_grad_()
    for good, sign in ((True, -1), (False, 1)):
        (gradient,) = torch.autograd.grad(
            kto(logps, row(-10, -10, -10), torch.tensor([good] * 3), eta=0.4).sum(), logps
        )
        assert gradient.tolist() == pytest.approx([0, sign * 0.4 / 4, 0], abs=1e-12)


# --- the relatives


@given(st.floats(-3, 3), st.floats(-3, 3), eta)
def test_ipo_is_the_closed_form(w, r, eta):
    found = ipo(row(w), row(r), eta=eta).item()
    assert found == pytest.approx((w - r - 1 / (2 * eta)) ** 2, rel=1e-9, abs=1e-12)


@given(st.floats(-5, 0), st.floats(-5, 0), st.floats(0.1, 10), st.floats(0, 3))
def test_simpo_is_the_closed_form(w, r, eta, gamma):
    found = simpo(row(w), row(r), eta=eta, gamma=gamma).item()
    assert found == pytest.approx(-math.log(sigmoid(eta * (w - r) - gamma)), rel=1e-9, abs=1e-12)


@given(st.floats(-3, 0), st.floats(-3, 0), st.floats(-2, 2))
def test_the_clipped_surrogate_is_the_closed_form(logp, old, advantage):
    found = clipped_policy_gradient(
        row(logp), row(old), row(advantage), clip_low=0.1, clip_high=0.3
    )
    ratio = math.exp(logp - old)
    expected = -min(ratio * advantage, min(max(ratio, 0.9), 1.3) * advantage)
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_k3_is_never_negative_and_its_mean_is_the_kl():
    generator = torch.Generator().manual_seed(0)
    policy, ref = torch.randn(2, 6, dtype=torch.float64, generator=generator).log_softmax(-1)
    values = k3(policy, ref)
    assert (values > 0).all()
    mean = (policy.exp() * values).sum().item()
    assert mean == pytest.approx((policy.exp() * (policy - ref)).sum().item())
    assert k3(policy, policy).tolist() == [0] * 6
