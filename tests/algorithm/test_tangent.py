"""The tangent as state: horizons, resets, checkpoints, and what it does with missing or degenerate tensors."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recipe.amft.algorithm.meta_gradient import MetaConfig, Tangent, advance_tangent_
from recipe.amft.algorithm.mixture import Gradients, mix_

EPS = 1e-8


def advance_(
    tangent: Tangent, disagreement: Gradients, mixed: Gradients, moments: Any, config: MetaConfig, **overrides: Any
) -> None:
    """advance_tangent_ with lr 0.1 and the clip inactive, unless overridden."""
    settings: dict[str, Any] = {"norm": 1.0, "dot_mixed_disagreement": 0.0, "max_norm": None, "step": 1, "lr": 0.1}
    settings |= {"betas": (0.9, 0.99), "eps": EPS, "weight_decay": 0.0, **overrides}
    advance_tangent_(tangent, disagreement, mixed, moments, config=config, **settings)


def take_step_(
    tangent: Tangent, step: int, config: MetaConfig, starts_training_step: bool = True, **overrides: Any
) -> list[Tensor]:
    """Advance the tangent through one step with random gradients; returns their disagreement d."""
    generator = torch.Generator().manual_seed(step)
    sft, rl = ([torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((3, 2), (4,))] for _ in "SR")
    difference = [s - r for s, r in zip(sft, rl, strict=True)]
    moments = [(torch.ones_like(d), torch.ones_like(d)) for d in difference]
    mixed, disagreement = mix_(sft, rl, 1.0, 1.0, 0.5)
    if starts_training_step:
        tangent.start_step(config)
    advance_(tangent, disagreement, mixed, moments, config, step=step, **overrides)
    return difference


@pytest.mark.parametrize(
    ("horizon", "weights"),
    [("one", (0.0, 0.0, 1.0)), ("window", (1.0, 1.0, 1.0)), ("trace", (0.25, 0.5, 1.0))],
)
def test_horizons_weigh_past_steps(horizon: str, weights: tuple[float, ...]) -> None:
    """For SGD the tangent is -lr sum_k w_k d_k: only the last step, all alike, or a geometric decay (here 0.5)."""
    config = MetaConfig(inner="sgd", horizon=horizon, trace_decay=0.5)
    tangent = Tangent()
    steps = [take_step_(tangent, step, config) for step in (1, 2, 3)]
    expected = [-0.1 * sum(w * d[index] for w, d in zip(weights, steps, strict=True)) for index in range(2)]
    torch.testing.assert_close(tangent.parameters, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("horizon", "expected_zero"), [("one", True), ("window", True), ("trace", False)])
def test_a_meta_update_ends_the_window_and_not_the_trace(horizon: str, expected_zero: bool) -> None:
    """After a meta-update a window starts from nothing, moments included; a trace is never reset."""
    config = MetaConfig(inner="adamw", horizon=horizon)
    tangent = Tangent()
    assert tangent.is_zero
    take_step_(tangent, 1, config)
    assert not tangent.is_zero
    tangent.finish_meta_update(config)
    assert tangent.is_zero is expected_zero
    assert (tangent.first_moments == []) is expected_zero


def test_trace_fades_the_moments_too() -> None:
    """All three parts of the tangent decay together: a decay halves each of them."""
    config = MetaConfig(inner="adamw", horizon="trace", trace_decay=0.5)
    tangent = Tangent()
    take_step_(tangent, 1, config)
    parts = (tangent.parameters, tangent.first_moments, tangent.second_moments)
    before = [[None if t is None else t.clone() for t in part] for part in parts]
    tangent.start_step(config)
    for part, old in zip(parts, before, strict=True):
        torch.testing.assert_close([2 * t for t in part if t is not None], old, rtol=1e-15, atol=0)
        assert all(t is not None and t.abs().max() > 0 for t in part)


def test_optimiser_steps_of_one_training_step_add_up() -> None:
    """With horizon=one and two mini-batches per training step the disagreement is the sum over both."""
    config = MetaConfig(inner="sgd", horizon="one")
    tangent = Tangent()
    take_step_(tangent, 1, config)
    first = take_step_(tangent, 2, config)
    second = take_step_(tangent, 3, config, starts_training_step=False)
    expected = [-0.1 * (a + b) for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(tangent.parameters, expected, rtol=1e-13, atol=1e-14)


def test_a_saved_tangent_continues_like_the_original(tmp_path: Path) -> None:
    """A checkpoint in the middle of a window changes nothing: all three parts survive torch.save."""
    config = MetaConfig(inner="adamw", horizon="window")
    original, restored = Tangent(), Tangent()
    take_step_(original, 1, config)
    path = tmp_path / "tangent.pt"
    torch.save(original.state_dict(), path)
    restored.load_state_dict(torch.load(path, weights_only=True))
    for tangent in (original, restored):
        take_step_(tangent, 2, config)
    torch.testing.assert_close(vars(restored), vars(original), rtol=0, atol=0)


def test_adamw_elements_that_never_had_a_gradient_stay_finite() -> None:
    """Where v = 0 the square root has no derivative: an unused element gets 0, a first gradient of 0 -lr dm' / eps."""
    difference = torch.tensor([0.0, 1e-3], dtype=torch.float64)
    zeros = torch.zeros_like(difference)
    tangent = Tangent()
    advance_(tangent, [difference], [zeros], [(zeros, zeros)], MetaConfig(inner="adamw"), norm=0.0, max_norm=1.0)
    expected = torch.tensor([0.0, -0.1 * 1e-3 / EPS], dtype=torch.float64)
    torch.testing.assert_close(tangent.parameters[0], expected, rtol=1e-12, atol=0)


def test_parameters_without_gradient_are_skipped_and_disagreement_is_released() -> None:
    """None stays aligned with its parameter in every list, and the consumed list keeps no memory alive."""
    tensor = torch.ones(2, dtype=torch.float64)
    disagreement: Gradients = [None, tensor.clone(), None]
    tangent = Tangent()
    advance_(tangent, disagreement, [None, tensor, None], None, MetaConfig(inner="sgd"))
    assert disagreement == [None, None, None]
    first, second, third = tangent.parameters
    assert first is None
    assert third is None
    torch.testing.assert_close(second, -0.1 * tensor)


def test_misuse_is_refused_by_name() -> None:
    """A skipped step, missing moments and a threshold of 0 raise instead of giving a wrong tangent."""
    config, ones = MetaConfig(inner="adamw"), torch.ones(2)
    for overrides, message in (
        ({"norm": math.nan}, "norm=nan"),
        ({"max_norm": 0.0}, r"max_norm=0\.0 "),
        ({}, r"Parameter 0 .*inner=clipped"),
    ):
        with pytest.raises(ValueError, match=message):
            advance_(Tangent(), [ones.clone()], [ones], None, config, **overrides)


def test_configuration_errors_name_value_and_choices() -> None:
    """A wrong key says what was received and what is allowed."""
    with pytest.raises(ValueError, match=r"controller\.meta\.inner='adam'.*sgd, clipped, adamw"):
        MetaConfig(inner="adam")
    with pytest.raises(ValueError, match=r"controller\.meta\.horizon='K'.*one, window, trace"):
        MetaConfig(horizon="K")
    with pytest.raises(ValueError, match=r"controller\.meta\.scale='raw'.*literal, no_lr, cosine, rms"):
        MetaConfig(scale="raw")
    with pytest.raises(ValueError, match=r"controller\.meta\.trace_decay=1\.0 .*\[0\.0, 1\.0\)"):
        MetaConfig(trace_decay=1.0)
