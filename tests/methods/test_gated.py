"""SuperRL, HPT and DyME: failed prompts are imitated, the others reinforced."""

import math
from collections.abc import Callable

import pytest
import torch
from simulation import (
    GROUP_SIZE,
    NUM_PROMPTS,
    World,
    assert_same_learning,
    decided,
    decisions_of,
    groups_of,
    learned,
    measured,
    method_of,
    mixed,
)

from recipe.amft.methods import Sum


def test_superrl_switches_prompt_by_prompt() -> None:
    """Two of four prompts have no reward: their demonstrations, the others' rollouts, each half weighs one half."""
    groups = groups_of([0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [1.0, 1.0])
    choice, combination = decided(method_of("superrl"), groups)
    assert choice.demonstrated == [0, 2]
    assert choice.keep is not None
    assert choice.keep.tolist() == [False, False, True, True, False, False, True, True]
    assert combination == Sum(sft=0.5, rl=0.5)
    assert choice.metrics["method/failed_prompts"] == 0.5


def test_superrls_uncertainty_weights_by_hand() -> None:
    """L = exp(-2 s1) L_RL + exp(-2 s2) L_SFT + s1 + s2 from s1 = 0, s2 = 1, one step of gradient descent with rate 0.1.

    s1 <- 0 - 0.1 (1 - 2 * 0.3) = -0.04 and s2 <- 1 - 0.1 (1 - 2 exp(-2) 1.5) = 0.9 + 0.3 exp(-2).
    """
    method = method_of("superrl", mode="log_sigma", learning_rate=0.1)
    choice, combination = decided(method, groups_of([0.0, 0.0], [1.0, 0.0]))
    assert choice.keep is None
    assert list(choice.demonstrated) == [0, 1]
    assert combination == Sum(sft=math.exp(-2), rl=1.0)
    state = method.observe(method.initial_state(), 0, {"rl/loss": 0.3, "sft/loss": 1.5})
    assert state.rl_log_sigma == pytest.approx(-0.04, rel=1e-14)
    assert state.sft_log_sigma == pytest.approx(0.9 + 0.3 * math.exp(-2), rel=1e-14)
    _, later, metrics = method.combine(state, 1, measured())
    assert later.rl == pytest.approx(math.exp(0.08), rel=1e-14)
    assert metrics == {"superrl/sft_weight": later.sft, "superrl/rl_weight": later.rl}


def test_superrls_uncertainties_settle_where_the_loss_is_least() -> None:
    """At constant losses s = log(2 L) / 2; without any loss s falls to `smallest` and stays there."""
    method = method_of("superrl", mode="log_sigma", learning_rate=0.05)
    state = method.initial_state()
    for step in range(2000):
        state = method.observe(state, step, {"rl/loss": 0.0, "sft/loss": 1.5})
    assert state.sft_log_sigma == pytest.approx(0.5 * math.log(3.0), rel=1e-9)
    assert state.rl_log_sigma == -2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_does_not_reach_superrls_uncertainties(bad: float) -> None:
    """The optimiser skips such a step; a weight that is not finite would skip all that follow."""
    method = method_of("superrl", mode="log_sigma")
    state = method.observe(method.initial_state(), 0, {"rl/loss": bad, "sft/loss": 1.5})
    assert state.rl_log_sigma == 0.0
    assert math.isfinite(state.sft_log_sigma)
    assert method.observe(method.initial_state(), 0, {"rl/loss": 0.3, "sft/loss": bad}).sft_log_sigma == 1.0


def test_superrl_with_rewards_everywhere_is_grpo() -> None:
    """c = 1 for every prompt."""
    assert_same_learning(method_of("superrl"), method_of("grpo"), World(mixed))


def test_dymes_weights() -> None:
    """One of four prompts has nothing above 0.5: its demonstration takes one slot of 4 * 4 sequences, weight 1/16."""
    groups = groups_of([0.0, 0.5, 0.0, 0.5], [1.0, 0.0, 0.0, 0.0], [1.0] * 4, [0.0, 1.0, 1.0, 0.0])
    choice, combination = decided(method_of("dyme"), groups)
    assert choice.demonstrated == [0]
    assert choice.demonstration_weights is None
    assert combination == Sum(sft=0.25 / 4, rl=1.0)


def test_dyme_on_mixed_groups_is_grpo() -> None:
    """No prompt fails: no demonstration, all rollouts kept, verl's advantages, weight 1."""
    assert_same_learning(method_of("dyme"), method_of("grpo"), World(mixed))


@pytest.mark.parametrize(
    ("gate", "kept", "demonstrated"),
    [(-1, [True, True, True], []), (0, [False, True, True], [0]), (2, [False, False, True], [0, 1])],
)
def test_hpts_gate(gate: int, kept: list[bool], demonstrated: list[int]) -> None:
    """Prompts with 0, 2 and 3 correct rollouts of 3 or more: imitation up to the gate, without their rollouts."""
    groups = groups_of([0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0])
    choice, combination = decided(method_of("hpt", gate=gate, sft_weight=0.3), groups)
    assert choice.keep is not None
    assert choice.keep.tolist() == [keep for keep in kept for _ in range(4)]
    assert choice.demonstrated == demonstrated
    assert combination == Sum(sft=0.3, rl=1.0, skip_above=80.0)


@pytest.mark.parametrize("rewards", [None, mixed], ids=["every kind", "mixed"])
def test_hpt_that_never_imitates_is_grpo(rewards: Callable | None) -> None:
    """gate -1: no prompt has fewer correct rollouts than none."""
    world = World(rewards or (lambda step: torch.tensor([[0.0], [0.1], [0.5], [1.0]]).repeat(1, GROUP_SIZE)))
    assert_same_learning(method_of("hpt", gate=-1), method_of("grpo"), world)


@pytest.mark.parametrize("name", ["superrl", "hpt"])
def test_a_switch_without_rewards_is_sft(name: str) -> None:
    """All rewards 0: no rollout is learned, every demonstration is, with weight 1, whatever the loss."""
    nothing = World(lambda step: torch.zeros(NUM_PROMPTS, GROUP_SIZE))
    method = method_of(name, {"demonstrations": {"loss": "dft"}})
    for decision in decisions_of(method, nothing):
        result = learned(decision)
        assert result["rollouts"] == []
        assert result["demonstrations"] == list(range(NUM_PROMPTS))
        assert result["sft_weight"] == 1.0
        assert result["demonstration_weights"] is None
    assert method.demonstration_loss == method_of("sft", {"demonstrations": {"loss": "dft"}}).demonstration_loss
