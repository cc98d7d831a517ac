"""LUFFY: advantages over rollouts and demonstration together."""

import pytest
import torch
from simulation import (
    GROUP_SIZE,
    NUM_PROMPTS,
    World,
    composed,
    decided,
    decisions_of,
    groups_of,
    learned,
    losses_of,
    measured,
    method_of,
)

from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.methods import Sum


def test_luffys_seven_rollouts_and_one_demonstration() -> None:
    """A = r - mean over all eight; each half weighs by its learned tokens; a wrong demonstration is pushed down."""
    groups = groups_of([1.0] + [0.0] * 6, [1.0] * 7, demonstrations=[1.0, 0.0])
    choice, combination = decided(method_of("luffy"), groups, measured(100, 300))
    assert choice.advantages is not None
    assert choice.advantages.tolist() == [0.75] + [-0.25] * 6 + [0.125] * 7
    assert choice.demonstration_weights is not None
    assert choice.demonstration_weights.tolist() == [0.75, -0.875]
    assert list(choice.demonstrated) == [0, 1]
    assert choice.keep is None
    assert combination == Sum(sft=0.25, rl=0.75)
    assert choice.metrics["luffy/demonstration_reward"] == 0.5


def test_luffys_losses() -> None:
    """f(p) = p / (p + gamma) on demonstrations; on rollouts verl's clipped loss, or the public code's bare ratio."""
    shaped = LossSpec("shaped_probability", {"gamma": 0.3}, entropy_bonus=True)
    assert losses_of(method_of("luffy", gamma=0.3)) == (shaped, None)


def test_luffys_entropy_bonus_holds_with_and_without_the_clip() -> None:
    """Demonstrations have it too, as in the public code; verl's clipped loss has its own, the bare ratio takes it."""
    assert method_of("luffy", clip_on_policy=False).rollout_loss == LossSpec("importance_ratio", entropy_bonus=True)
    assert all(method_of("luffy", clip_on_policy=clip).demonstration_loss.entropy_bonus for clip in (True, False))
    assert composed("method=luffy").actor_rollout_ref.actor.entropy_coeff == 0.001


@pytest.mark.parametrize("clip", [True, False])
def test_luffy_without_its_demonstration_is_grpo(clip: bool) -> None:
    """demonstration_rows=0: all rollouts with weight 1, the advantages that verl's GRPO has without the standard
    deviation, and verl's clipped loss unless its clip key says otherwise; nothing is scored or learned beside them."""
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    luffy, grpo = method_of("luffy", demonstration_rows=0, clip_on_policy=clip), method_of("grpo")
    assert not luffy.scores_demonstrations
    world = World(lambda step: torch.rand(NUM_PROMPTS, GROUP_SIZE, generator=torch.Generator().manual_seed(step)))
    for step, (left, right) in enumerate(zip(decisions_of(luffy, world), decisions_of(grpo, world), strict=True)):
        assert left.plan == right.plan
        assert learned(left) == learned(right) | {"own_advantages": True}
        groups = world.groups(step, luffy)
        expected, _ = compute_grpo_outcome_advantage(
            groups.rewards.unsqueeze(-1),
            torch.ones(len(groups.rewards), 1),
            groups.prompts.numpy(),
            norm_adv_by_std_in_grpo=False,
        )
        assert left.choice.advantages is not None
        torch.testing.assert_close(left.choice.advantages, expected.squeeze(-1).double(), rtol=0, atol=1e-6)
    assert (luffy.rollout_loss == grpo.rollout_loss) == clip


def test_luffy_with_demonstrations_at_the_mean_is_grpo_without_the_standard_deviation() -> None:
    """A demonstration that is worth what the rollouts are on average leaves r - mean, and learns nothing itself."""
    groups = groups_of([1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 1.0, 0.0], demonstrations=[0.5, 0.25])
    choice, _ = decided(method_of("luffy"), groups)
    assert choice.advantages is not None
    assert choice.advantages.tolist() == [0.5, -0.5, -0.5, 0.5, -0.25, -0.25, 0.75, -0.25]
    assert choice.demonstration_weights is not None
    assert choice.demonstration_weights.tolist() == [0.0, 0.0]
