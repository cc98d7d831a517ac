"""Sums and means over tokens, and the policy gradient of the validation utility. Token losses: token_losses.py.

Shapes: B sequences, T response tokens. A mask is 1 on tokens that count and 0 elsewhere; what is under a 0 is ignored.
Denominators are arguments, counted over all micro-batches and ranks, so that partial losses simply add up.
"""

import torch
from torch import Tensor

from .checks import require_positive


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` where `mask`, of the same shape, is not 0; a scalar."""
    return torch.where(mask.bool(), values, torch.zeros_like(values)).sum()


def token_mean(values: Tensor, mask: Tensor, num_tokens: float) -> Tensor:
    """masked_sum / num_tokens, where `num_tokens` counts the tokens of the whole batch; ValueError unless > 0."""
    require_positive("num_tokens", num_tokens, "the batch holds no token to learn from: check its response masks")
    return masked_sum(values, mask) / num_tokens


def policy_gradient_loss(logprobs: Tensor, advantages: Tensor, mask: Tensor, num_sequences: float) -> Tensor:
    """REINFORCE: -(1/N) sum_i A_i sum_t m_it log p_it; its gradient estimates MINUS the gradient of U (Eq. 4, 21).

    logprobs, mask (B, T); advantages (B,); N = `num_sequences` of the whole batch; ValueError unless > 0.
    """
    require_positive("num_sequences", num_sequences, "the validation batch is empty: check the validation data")
    return -masked_sum(advantages.detach().unsqueeze(-1) * logprobs, mask) / num_sequences
