"""Advantages within the group of a prompt: plain loops, and properties for any rewards and any groups."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recipe.amft.algorithm.groups import EPSILON, advantages_with_demonstration, centred, group_mean

NUM_GROUPS = 4
rewards_of_rollouts = st.lists(
    st.tuples(st.integers(0, NUM_GROUPS - 1), st.floats(-5, 5, allow_subnormal=False)), max_size=16
)
rewards_of_demonstrations = st.lists(st.floats(-5, 5, allow_subnormal=False), min_size=NUM_GROUPS, max_size=NUM_GROUPS)
repeatable = settings(max_examples=60, derandomize=True, deadline=None, database=None)
either = pytest.mark.parametrize("by_std", [False, True])


def tensors(rollouts: list[tuple[int, float]], demonstrations: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """(rewards (N,), groups (N,), demonstration rewards (P,))."""
    groups = torch.tensor([group for group, _ in rollouts], dtype=torch.int64)
    rewards = torch.tensor([reward for _, reward in rollouts], dtype=torch.float64)
    return rewards, groups, torch.tensor(demonstrations, dtype=torch.float64)


def plain_advantages(
    rollouts: list[tuple[int, float]], demonstrations: list[float], by_std: bool
) -> tuple[list[float], list[float]]:
    """The definition, group by group, with Python's own mean and standard deviation."""
    own, others = [0.0] * len(rollouts), []
    for group, demonstration in enumerate(demonstrations):
        members = [*(reward for name, reward in rollouts if name == group), demonstration]
        mean = math.fsum(members) / len(members)
        scale = (statistics.stdev(members) if len(members) > 1 else 0.0) + EPSILON if by_std else 1.0
        others.append((demonstration - mean) / scale)
        for index, (name, reward) in enumerate(rollouts):
            if name == group:
                own[index] = (reward - mean) / scale
    return own, others


def test_luffys_group_of_seven_and_one() -> None:
    """One of seven rollouts correct, the demonstration correct: mean 2/8, so 3/4 for both and -1/4 for the others."""
    own, demonstration = advantages_with_demonstration(*tensors([(0, 1.0)] + [(0, 0.0)] * 6, [1.0]), by_std=False)
    assert own.tolist() == [0.75] + [-0.25] * 6
    assert demonstration.tolist() == [0.75]


def test_the_standard_deviation_is_that_of_verl() -> None:
    """Rewards 1, 0, 0 and 1 for the demonstration: mean 1/2, unbiased deviation sqrt(1/3), plus 1e-6."""
    own, demonstration = advantages_with_demonstration(*tensors([(0, 1.0), (0, 0.0), (0, 0.0)], [1.0]), by_std=True)
    unit = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert own.tolist() == pytest.approx([unit, -unit, -unit], rel=1e-14)
    assert demonstration.tolist() == pytest.approx([unit], rel=1e-14)


@either
@repeatable
@given(rollouts=rewards_of_rollouts, demonstrations=rewards_of_demonstrations)
def test_advantages_equal_plain_loops(by_std: bool, rollouts: list, demonstrations: list) -> None:
    """For any rewards, groups of any size and order, and groups without rollouts."""
    own, others = advantages_with_demonstration(*tensors(rollouts, demonstrations), by_std=by_std)
    expected = plain_advantages(rollouts, demonstrations, by_std)
    # Equal rewards leave a rounding error of 1e-15 in the numerator, which is divided by as little as 1e-6.
    torch.testing.assert_close(own.tolist(), expected[0], rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(others.tolist(), expected[1], rtol=1e-7, atol=1e-8)


@either
@repeatable
@given(rollouts=rewards_of_rollouts, demonstrations=rewards_of_demonstrations)
def test_a_group_with_its_demonstration_sums_to_zero(by_std: bool, rollouts: list, demonstrations: list) -> None:
    """The demonstration is one more member: what it gains, the rollouts lose; the standard deviation only scales."""
    rewards, groups, of_demonstrations = tensors(rollouts, demonstrations)
    own, others = advantages_with_demonstration(rewards, groups, of_demonstrations, by_std=by_std)
    sums = others.index_add(0, groups, own)
    assert sums.abs().max() < (1e-8 if by_std else 1e-13)


@either
@repeatable
@given(demonstrations=rewards_of_demonstrations)
def test_a_group_without_rollouts_gives_its_demonstration_nothing(by_std: bool, demonstrations: list) -> None:
    """All rollouts of a prompt failed: there is nothing to compare with, and no division by zero."""
    own, others = advantages_with_demonstration(*tensors([(0, 1.0)], demonstrations), by_std=by_std)
    assert others[1:].tolist() == [0.0] * (NUM_GROUPS - 1)
    assert own.isfinite().all()


@either
def test_equal_rewards_give_exactly_nothing(by_std: bool) -> None:
    """A prompt whose rollouts are as good as its demonstration says nothing, to the bit."""
    own, others = advantages_with_demonstration(*tensors([(0, 1.0)] * 7 + [(1, 0.0)] * 3, [1.0, 0.0]), by_std=by_std)
    assert own.count_nonzero() == others.count_nonzero() == 0


@either
@repeatable
@given(rollouts=rewards_of_rollouts, demonstrations=rewards_of_demonstrations, seed=st.integers(0, 99))
def test_the_order_of_rollouts_does_not_matter(by_std: bool, rollouts: list, demonstrations: list, seed: int) -> None:
    """Permuted rollouts have permuted advantages, and the demonstrations keep theirs."""
    rewards, groups, of_demonstrations = tensors(rollouts, demonstrations)
    order = torch.randperm(len(rewards), generator=torch.Generator().manual_seed(seed))
    own, others = advantages_with_demonstration(rewards, groups, of_demonstrations, by_std)
    permuted = advantages_with_demonstration(rewards[order], groups[order], of_demonstrations, by_std)
    torch.testing.assert_close(permuted, (own[order], others), rtol=1e-7, atol=1e-8)


@either
@repeatable
@given(rollouts=rewards_of_rollouts, demonstrations=rewards_of_demonstrations, names=st.permutations(range(NUM_GROUPS)))
def test_the_order_of_prompts_does_not_matter(by_std: bool, rollouts: list, demonstrations: list, names: list) -> None:
    """Renumbered prompts: rollouts keep their advantages and the demonstrations' move along."""
    rewards, groups, of_demonstrations = tensors(rollouts, demonstrations)
    new = torch.tensor(names)
    moved = torch.empty_like(of_demonstrations)
    moved[new] = of_demonstrations
    own, others = advantages_with_demonstration(rewards, groups, of_demonstrations, by_std)
    renamed_own, renamed_others = advantages_with_demonstration(rewards, new[groups], moved, by_std)
    torch.testing.assert_close((renamed_own, renamed_others[new]), (own, others), rtol=1e-7, atol=1e-8)


@repeatable
@given(rollouts=rewards_of_rollouts, demonstrations=rewards_of_demonstrations, shift=st.floats(-3, 3))
def test_a_constant_added_to_all_rewards_changes_nothing(rollouts: list, demonstrations: list, shift: float) -> None:
    """Only differences within the group count."""
    rewards, groups, of_demonstrations = tensors(rollouts, demonstrations)
    own, others = advantages_with_demonstration(rewards, groups, of_demonstrations, by_std=False)
    shifted = advantages_with_demonstration(rewards + shift, groups, of_demonstrations + shift, by_std=False)
    torch.testing.assert_close(shifted, (own, others), rtol=0, atol=1e-13)


@repeatable
@given(rollouts=rewards_of_rollouts)
def test_centred_is_the_reward_minus_the_mean_of_the_group(rollouts: list) -> None:
    """GRPO without the division, the rollout itself in the mean; every group sums to zero."""
    rewards, groups, _ = tensors(rollouts, [])
    values = centred(rewards, groups, NUM_GROUPS)
    for index, (group, reward) in enumerate(rollouts):
        members = [other for name, other in rollouts if name == group]
        assert values[index].item() == pytest.approx(reward - math.fsum(members) / len(members), abs=1e-14)
    assert torch.zeros(NUM_GROUPS, dtype=torch.float64).index_add(0, groups, values).abs().max() < 1e-13


@repeatable
@given(rollouts=rewards_of_rollouts)
def test_a_demonstration_at_the_mean_leaves_the_rollouts_centred(rollouts: list) -> None:
    """LUFFY's advantages are GRPO's (no std) where the demonstration's reward is the rollouts' mean."""
    rewards, groups, _ = tensors(rollouts, [])
    mean, _ = group_mean(rewards, groups, NUM_GROUPS)
    own, others = advantages_with_demonstration(rewards, groups, mean, by_std=False)
    torch.testing.assert_close(own, centred(rewards, groups, NUM_GROUPS), rtol=0, atol=1e-14)
    assert others.abs().max() < 1e-14


def test_group_means_and_sizes() -> None:
    """A group without members has mean 0 and size 0."""
    rewards, groups, _ = tensors([(2, 1.0), (0, 4.0), (2, 2.0)], [])
    mean, sizes = group_mean(rewards, groups, NUM_GROUPS)
    assert mean.tolist() == [4.0, 0.0, 1.5, 0.0]
    assert sizes.tolist() == [1.0, 0.0, 2.0, 0.0]
