"""The scheduled weights that AMFT is compared with."""

import math

import pytest

from recipe.amft.algorithm.schedules import ScheduleConfig, linear, scheduled_mu


def test_chord_schedule_in_closed_form() -> None:
    """0 -> 0.9 linearly over 10 steps, then half a cosine to 0.05 over 200, then constant."""
    config = ScheduleConfig(num_warmup_steps=10)
    assert scheduled_mu(0, config) == 0.0
    assert scheduled_mu(5, config) == pytest.approx(0.45)
    assert scheduled_mu(10, config) == pytest.approx(0.9)
    assert scheduled_mu(60, config) == pytest.approx(0.05 + 0.85 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert scheduled_mu(110, config) == pytest.approx((0.9 + 0.05) / 2)
    assert scheduled_mu(210, config) == scheduled_mu(10_000, config) == 0.05


def test_linear_schedule_hits_both_ends_exactly() -> None:
    """Half-way is the mean of the ends; outside the interval the ends hold to the bit."""
    assert linear(-5, 0.9, 0.05, 200) == linear(0, 0.9, 0.05, 200) == 0.9
    assert linear(100, 0.9, 0.05, 200) == pytest.approx(0.475)
    assert linear(200, 0.9, 0.05, 200) == linear(201, 0.9, 0.05, 200) == 0.05
    assert scheduled_mu(100, ScheduleConfig(shape="linear")) == pytest.approx(0.475)


def test_configuration_errors_name_the_value() -> None:
    """A wrong key says what was received and what is allowed."""
    with pytest.raises(ValueError, match=r"schedule\.shape='step'.*cosine, linear"):
        ScheduleConfig(shape="step")
    with pytest.raises(ValueError, match=r"schedule\.peak=1\.5 .*\[0\.0, 1\.0\]"):
        ScheduleConfig(peak=1.5)
    with pytest.raises(ValueError, match=r"schedule\.num_decay_steps=0 .*\[1, inf\)"):
        ScheduleConfig(num_decay_steps=0)
