"""Losses as pure functions of log-probabilities. Natural logarithms throughout.

Shapes: every tensor argument and result is `(n,)`, one value per pair, per sequence or (for
the clipped policy gradient) per token, so a caller can average over any number of
micro-batches exactly. A summed log-probability is `sum_t log pi(token_t | before)` over the
positions a learner's mask selects: action tokens only for the multi-turn losses, which
makes `sum_h log pi(a_h | s_h)` of them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nll(logps: Tensor) -> Tensor:
    """Negative log-likelihood, summed over tokens (divide by the token count for a mean)."""
    return -logps


def dpo(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    *,
    eta: float,
    margin: Tensor | float = 0.0,
) -> Tensor:
    """DPO loss; with action-only log-probs it is M-DPO (arXiv 2409.02392, equation 14).

    `-log sigmoid(eta * (r_w - r_l) + margin)` with `r = log pi - log pi_ref`. `margin` is
    term (C) of equation 13, winner minus loser: zero for a deterministic tool.
    """
    log_ratio = (chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps)
    return -F.logsigmoid(eta * log_ratio + margin)


def kto(
    logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    *,
    eta: float,
    z0: Tensor | float = 0.0,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO loss; with action-only log-probs it is M-KTO (arXiv 2409.02392, equation 15).

    `lambda_y - v = lambda_y * (1 - sigmoid(+-eta * (r - z0)))` with `r = log pi - log pi_ref`,
    plus where `desirable` (bool). As printed, the equation multiplies r by eta twice and z0
    once; the authors' code, TRL and KTO itself (arXiv 2402.01306, equation 7) have one eta
    in front of the difference, and so has this.
    """
    gain = eta * (logps - ref_logps - z0)
    good = desirable_weight * torch.sigmoid(-gain)
    bad = undesirable_weight * torch.sigmoid(gain)
    return torch.where(desirable, good, bad)


def ipo(chosen_ratios: Tensor, rejected_ratios: Tensor, *, eta: float) -> Tensor:
    """IPO loss (arXiv 2310.12036, equation 17): `(r_w - r_l - 1 / (2 eta))^2`.

    The ratios are token means of `log pi - log pi_ref`, without which the square would grow
    with the length. TRL normalises in the same way and reports that the authors did.
    """
    return (chosen_ratios - rejected_ratios - 1 / (2 * eta)).square()


def simpo(chosen_means: Tensor, rejected_means: Tensor, *, eta: float, gamma: float) -> Tensor:
    """SimPO loss (arXiv 2405.14734, equation 6): `-log sigmoid(eta * (m_w - m_l) - gamma)`.

    `m` is the token mean of `log pi`; there is no reference model.
    """
    return -F.logsigmoid(eta * (chosen_means - rejected_means) - gamma)


def clipped_policy_gradient(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """PPO's clipped surrogate per token, negated (GRPO: arXiv 2402.03300, equation 3).

    `-min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A)` with `rho = pi / pi_old`.
    """
    ratio = (logps - old_logps).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def k3(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Estimate KL(pi, pi_ref) per token, unbiased and never negative (2402.03300, equation 4)."""
    difference = ref_logps - logps
    return difference.exp() - difference - 1


def off_policy_k3(logps: Tensor, ref_logps: Tensor, start_logps: Tensor) -> Tensor:
    """Estimate KL(pi, pi_ref) per token from tokens that another policy sampled.

    `rho * k3 = rho * log(pi / pi_ref) - rho + pi_ref / pi_start` with `rho = pi / pi_start`:
    unbiased over tokens of `pi_start`, and never negative.
    """
    rho = (logps - start_logps).exp()
    # Not as that product: where pi is nearly 0, k3 overflows while rho is 0.
    return rho * (logps - ref_logps - 1) + (ref_logps - start_logps).exp()


def preferred(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return 1 where the chosen side has the higher reward, 1/2 where both are equal, else 0.

    Before the first step the policy is the reference and all rewards are 0: no side is preferred,
    and the accuracy is that of a coin. TRL counts `chosen > rejected` alone, so its accuracy starts
    at 0 there.
    """
    return ((chosen > rejected).float() + (chosen >= rejected).float()) / 2


def implicit_reward(logps: Tensor, ref_logps: Tensor, *, eta: float) -> Tensor:
    """Return `eta * log(pi / pi_ref)`: term (A) of equation 13."""
    return eta * (logps - ref_logps)
