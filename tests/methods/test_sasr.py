"""SASR: imitation or reinforcement, by a coin whose chance follows the SFT gradient's norm."""

import math

import pytest
from simulation import measured, method_of

from recipe.amft.methods import Mix, StepPlan


def test_sasrs_probability() -> None:
    """The ratio of the SFT gradient's norm to that at the end of the warm-up, in [least, 1]."""
    method = method_of("sasr", least=0.1)
    state = method.after_warm_up(method.initial_state(), {"entropy": 1.0, "sft_norm": 4.0})
    assert method.probability(state) == 1.0
    for norm, expected in ((3.0, 0.75), (8.0, 1.0), (0.04, 0.1), (1.0, 0.25)):
        state = method.observe(state, 0, {"sft/norm": norm})
        assert method.probability(state) == expected
    assert method.observe(state, 1, {"rl/norm": 5.0}) == state, "a step without imitation measures nothing"


def test_sasr_without_a_warm_up_compares_with_its_first_step() -> None:
    """It imitates until it has measured a norm."""
    method = method_of("sasr")
    state = method.after_warm_up(method.initial_state(), {"entropy": 1.0})
    assert method.probability(state) == 1.0
    assert method.plan(0, state) == StepPlan(rollouts=False)
    state = method.observe(state, 0, {"sft/norm": 5.0})
    state = method.observe(state, 1, {"sft/norm": 1.0})
    assert method.probability(state) == pytest.approx(0.2)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_does_not_reach_sasrs_probability(bad: float) -> None:
    """Such a step is skipped; as the first norm it would fix the probability for the rest of the run."""
    method = method_of("sasr")
    state = method.observe(method.initial_state(), 0, {"sft/norm": bad})
    assert method.probability(state) == 1.0
    state = method.observe(method.observe(state, 1, {"sft/norm": 4.0}), 2, {"sft/norm": 2.0})
    assert method.probability(method.observe(state, 3, {"sft/norm": bad})) == 0.5
    warmed = method.after_warm_up(method.initial_state(), {"entropy": 1.0, "sft_norm": bad})
    assert method.probability(method.observe(warmed, 0, {"sft/norm": 2.0})) == 1.0


def test_sasrs_coin() -> None:
    """It depends on seed and step alone, is thrown with the probability said, and decides one phase or the other."""

    def share(seed: int, norm: float) -> tuple[float, list[bool]]:
        method = method_of("sasr", seed=seed)
        state = method.after_warm_up(method.initial_state(), {"entropy": 1.0, "sft_norm": 1.0})
        state = method.observe(state, 0, {"sft/norm": norm})
        plans = [method.plan(step, state) for step in range(2000)]
        assert all(plan.rollouts != plan.demonstrations for plan in plans)
        mixes = [method.combine(state, step, measured())[1] for step in range(50)]
        assert mixes == [Mix(float(plan.demonstrations)) for plan in plans[:50]]
        return sum(plan.demonstrations for plan in plans) / len(plans), [plan.demonstrations for plan in plans]

    imitates, coins = share(0, 0.3)
    assert imitates == pytest.approx(0.3, abs=0.04)  # four standard deviations
    assert share(0, 0.3)[1] == coins
    assert share(1, 0.3)[1] != coins
    assert share(0, 1.0)[0] == 1.0
