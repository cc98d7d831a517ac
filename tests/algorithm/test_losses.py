"""Sums and means over tokens, and the policy gradient loss, in plain loops. Token losses: test_token_losses."""

import math

import pytest
import torch

from recipe.amft.algorithm.losses import masked_sum, policy_gradient_loss, token_mean


def batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits (3, 4, 5), tokens (3, 4) and a mask (3, 4) with responses of length 4, 1 and 2."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(5, (3, 4), generator=generator)
    mask = (torch.arange(4) < torch.tensor([[4], [1], [2]])).double()
    return logits, tokens, mask


def token_logprobs(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def test_token_mean_equals_a_plain_loop() -> None:
    """The sum over the tokens whose mask is 1, divided by the number given."""
    logits, tokens, mask = batch()
    logprobs = token_logprobs(logits, tokens)
    total = sum(logprobs[row, column].item() for row in range(3) for column in range(4) if mask[row, column])
    assert token_mean(logprobs, mask, num_tokens=11).item() == pytest.approx(total / 11, rel=1e-14)


def test_padding_reaches_neither_loss_nor_gradient() -> None:
    """Whatever is under a zero of the mask, NaN and infinity included, changes nothing."""
    mask = torch.tensor([[1, 1, 0, 0]])
    values = torch.tensor([[1.0, 2.0, math.nan, math.inf]], dtype=torch.float64, requires_grad=True)
    loss = masked_sum(values, mask)
    loss.backward()
    assert loss.item() == 3.0
    assert values.grad is not None
    assert values.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    """With the global count as denominator the split into micro-batches is invisible."""
    logits, tokens, mask = batch()
    logprobs = token_logprobs(logits, tokens)
    advantages = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    whole = token_mean(logprobs, mask, 7), policy_gradient_loss(logprobs, advantages, mask, 3)
    parts = [slice(0, 1), slice(1, 3)]
    summed = (
        sum(token_mean(logprobs[part], mask[part], 7) for part in parts),
        sum(policy_gradient_loss(logprobs[part], advantages[part], mask[part], 3) for part in parts),
    )
    torch.testing.assert_close(summed, whole, rtol=1e-14, atol=0)


def test_policy_gradient_loss_equals_a_plain_loop() -> None:
    """-(1/N) sum_i A_i sum_t m_it log p_it, with N the given number of sequences; no gradient through A."""
    logits, tokens, mask = batch()
    logprobs = token_logprobs(logits, tokens)
    advantages = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64, requires_grad=True)
    total = 0.0
    for row in range(3):
        total += advantages[row].item() * sum(
            logprobs[row, column].item() for column in range(4) if mask[row, column] > 0
        )
    loss = policy_gradient_loss(logprobs, advantages, mask, num_sequences=6)
    assert loss.item() == pytest.approx(-total / 6, rel=1e-14)
    loss.backward()
    assert advantages.grad is None


def test_empty_batches_are_refused() -> None:
    """A count of zero raises instead of making NaN, and the message names the value."""
    empty = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="num_tokens=0 "):
        token_mean(empty, empty, 0)
    with pytest.raises(ValueError, match="num_sequences=0 "):
        policy_gradient_loss(empty, torch.zeros(1), empty, 0)
