"""Losses as pure functions of summed log-probabilities. Natural logarithms throughout.

Shapes: every argument and result is `(n,)`, one value per pair or per sequence, so a
caller can average over any number of micro-batches exactly. A summed log-probability is
`sum_t log pi(token_t | before)` over the positions a learner's mask selects: action
tokens only for the multi-turn losses, which makes `sum_h log pi(a_h | s_h)` of them.
"""

from __future__ import annotations

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


def implicit_reward(logps: Tensor, ref_logps: Tensor, *, eta: float) -> Tensor:
    """Return `eta * log(pi / pi_ref)`: term (A) of equation 13."""
    return eta * (logps - ref_logps)
