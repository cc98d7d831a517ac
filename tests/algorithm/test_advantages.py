"""The leave-one-out baseline, and the unbiasedness of the REINFORCE estimate that it makes."""

import itertools

import pytest
import torch

from recipe.amft.algorithm.advantages import leave_one_out
from recipe.amft.algorithm.losses import policy_gradient_loss

# A policy with responses of different length: token 1 is "stop" or "go"; after "go" comes token 2, "x" or "y".
RESPONSES = [(0, None), (1, 0), (1, 1)]
MASKS = torch.tensor([[1, 0], [1, 1], [1, 1]])


def response_logprobs(theta: torch.Tensor) -> torch.Tensor:
    """Token logprobs (3 responses, 2 tokens) of the policy with logits theta (2 tokens, 2 choices)."""
    table = theta.log_softmax(-1)
    return torch.stack(
        [torch.stack([table[0, first], table[1, second or 0] * (second is not None)]) for first, second in RESPONSES]
    )


def test_advantage_is_reward_minus_mean_of_the_others() -> None:
    """Closed form on two interleaved groups of different size whose identifiers are arbitrary."""
    rewards = torch.tensor([1.0, 5.0, 2.0, 6.0, 0.0], dtype=torch.float64)
    groups = torch.tensor([70, -3, 70, -3, 70])
    expected = torch.tensor([1 - 2 / 2, 5 - 6, 2 - 1 / 2, 6 - 5, 0 - 3 / 2], dtype=torch.float64)
    torch.testing.assert_close(leave_one_out(rewards, groups), expected, rtol=0, atol=1e-15)


def test_advantages_of_a_group_sum_to_zero_and_equal_rewards_give_zero() -> None:
    """A prompt that is always or never solved says nothing; no group moves the mean log-probability."""
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    advantages = leave_one_out(rewards, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert advantages[:3].tolist() == [0.0, 0.0, 0.0]
    assert advantages[3:].sum().item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize("group_size", [2, 3])
def test_reinforce_with_leave_one_out_is_unbiased(group_size: int) -> None:
    """Over all outcomes of two prompts' groups, the loss's expected gradient is minus the exact gradient of U (Eq. 4).

    A baseline that includes the sample itself fails the same check: it shrinks the gradient by (n - 1) / n.
    """
    theta = torch.tensor([[0.3, -0.8], [1.1, 0.2]], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([[1.0, 0.0, 3.0], [0.5, 2.0, -1.0]], dtype=torch.float64)  # (2 prompts, 3 responses)
    logprobs = response_logprobs(theta)
    probabilities = logprobs.sum(-1).exp()
    (exact,) = torch.autograd.grad((rewards @ probabilities).mean(), theta, retain_graph=True)

    groups = torch.arange(2).repeat_interleave(group_size)
    expected = {"leave_one_out": torch.zeros(()), "group_mean": torch.zeros(())}
    for outcome in itertools.product(range(3), repeat=2 * group_size):
        chosen = torch.tensor(outcome)
        probability = probabilities[chosen].prod().detach()
        sampled = rewards[groups, chosen]
        means = sampled.view(2, group_size).mean(1)[groups]
        for name, advantages in (("leave_one_out", leave_one_out(sampled, groups)), ("group_mean", sampled - means)):
            loss = policy_gradient_loss(logprobs[chosen], advantages, MASKS[chosen], num_sequences=2 * group_size)
            expected[name] = expected[name] + probability * loss
    (unbiased,) = torch.autograd.grad(expected["leave_one_out"], theta, retain_graph=True)
    (shrunk,) = torch.autograd.grad(expected["group_mean"], theta)
    torch.testing.assert_close(unbiased, -exact, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(shrunk, -exact * (group_size - 1) / group_size, rtol=1e-10, atol=1e-13)


def test_a_group_of_one_is_refused() -> None:
    """There is no other sample to compare with: ValueError names the group."""
    with pytest.raises(ValueError, match=r"groups \[4\] hold 1 sample"):
        leave_one_out(torch.zeros(3), torch.tensor([2, 4, 2]))


def test_rewards_and_groups_of_different_shape_are_refused() -> None:
    """Broadcasting would compare samples of different prompts: ValueError names both shapes."""
    with pytest.raises(ValueError, match=r"\(4,\).*\(2,\)"):
        leave_one_out(torch.zeros(4), torch.tensor([0, 0]))
