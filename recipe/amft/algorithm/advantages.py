"""Advantages of the validation policy gradient. Shapes: B sequences; a group holds the samples of one prompt."""

import torch
from torch import Tensor


def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """Reward minus the mean reward of the OTHER samples of its group: A_i = R_i - (sum_j R_j - R_i) / (n - 1).

    The baseline is independent of sample i, hence the policy gradient stays unbiased (a group mean that includes R_i
    would shrink it by (n - 1) / n). rewards (B,); groups (B,) int64, equal for the samples of one prompt -> (B,).
    Every group must be whole in one call. ValueError for a group of one sample.
    """
    if rewards.ndim != 1 or rewards.shape != groups.shape:
        raise ValueError(
            f"rewards have shape {tuple(rewards.shape)} and groups {tuple(groups.shape)}; both must be (B,)."
        )
    names, members, sizes = torch.unique(groups, return_inverse=True, return_counts=True)
    if bool((sizes == 1).any()):
        raise ValueError(
            f"groups {names[sizes == 1].tolist()} hold 1 sample; leave-one-out needs at least 2: sample every "
            "validation prompt at least twice."
        )
    totals = rewards.new_zeros(len(names)).index_add_(0, members, rewards)
    mean_of_others: Tensor = (totals[members] - rewards) / (sizes[members] - 1)
    return rewards - mean_of_others
