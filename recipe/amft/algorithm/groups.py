"""Advantages of rollouts within the group of their prompt. Shapes: N rollouts, P prompts."""

from torch import Tensor

EPSILON = 1e-6  # verl's, beside the standard deviation


def group_mean(values: Tensor, groups: Tensor, num_groups: int) -> tuple[Tensor, Tensor]:
    """Mean of `values` (N,) over each group and the groups' sizes, (P,) each; a group without members has mean 0."""
    sums = values.new_zeros(num_groups).index_add_(0, groups, values)
    sizes = values.new_zeros(num_groups).index_add_(0, groups, values.new_ones(len(values)))
    return sums / sizes.clamp(min=1), sizes


def advantages_with_demonstration(
    rewards: Tensor, groups: Tensor, demonstration_rewards: Tensor, by_std: bool
) -> tuple[Tensor, Tensor]:
    """Advantages of rollouts (N,) and of one demonstration a group (P,), which counts as one more member of it.

    A = r - mean, divided by the group's standard deviation (unbiased, plus 1e-6) with `by_std`. LUFFY has no division,
    SRFT has it. A group without rollouts gives its demonstration advantage 0.
    """
    num_groups = len(demonstration_rewards)
    mean, sizes = group_mean(rewards, groups, num_groups)
    members = sizes + 1
    mean = (mean * sizes + demonstration_rewards) / members
    own, other = rewards - mean[groups], demonstration_rewards - mean
    if by_std:
        squares, _ = group_mean(own**2, groups, num_groups)
        std = ((squares * sizes + other**2) / (members - 1).clamp(min=1)).sqrt() + EPSILON
        own, other = own / std[groups], other / std
    return own, other


def centred(rewards: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """r - mean of the group, (N,): GRPO's advantage without the division by the standard deviation."""
    mean, _ = group_mean(rewards, groups, num_groups)
    return rewards - mean[groups]
