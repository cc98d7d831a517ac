"""Eq. 3 on gradients: exact endpoints, storage, missing gradients, scales and inner products."""

import math

import pytest
import torch
from torch import Tensor

from recipe.amft.algorithm.mixture import (
    MixtureConfig,
    MixtureState,
    add_,
    local_inner_products,
    mix_,
    update_scales,
)


def gradients(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in ((3, 4), (5,))]


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def assert_same_bits(left: Tensor, right: Tensor) -> None:
    integer = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16}[left.dtype]
    assert torch.equal(left.view(integer), right.view(integer))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_zero_and_one_are_exact_to_the_bit(dtype: torch.dtype) -> None:
    """Weight 0 is pure RL and weight 1 pure SFT, even for numbers of such unequal size that r + (s - r) rounds."""
    sft, rl = gradients(1, dtype), gradients(2, dtype)
    sft[0][0, :2] = torch.tensor([1e-9, -0.0])
    rl[0][0, :2] = torch.tensor([1e3, -0.0])
    for weight, expected in ((0.0, rl), (1.0, sft)):
        mixed, disagreement = mix_(copies(sft), copies(rl), 1.0, 1.0, weight)
        for index in range(2):
            assert_same_bits(mixed[index], expected[index])
            assert_same_bits(disagreement[index], sft[index] - rl[index])


def test_an_infinite_sft_gradient_does_not_reach_pure_rl() -> None:
    """At weight 0 the SFT gradient is not multiplied by 0 (which would make NaN) but left out."""
    mixed, _ = mix_([torch.tensor([math.inf, 1.0])], [torch.tensor([2.0, 3.0])], 1.0, 1.0, 0.0)
    assert mixed[0].tolist() == [2.0, 3.0]


def test_interior_weight_is_equation_3_of_the_scaled_gradients() -> None:
    """mixed = (1 - mu) s_R g_R + mu s_S g_S and d = s_S g_S - s_R g_R."""
    sft, rl = gradients(1), gradients(2)
    mixed, disagreement = mix_(copies(sft), copies(rl), 0.5, 3.0, 0.3)
    for s, r, g, d in zip(sft, rl, mixed, disagreement, strict=True):
        torch.testing.assert_close(g, 0.7 * 3.0 * r + 0.3 * 0.5 * s, rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(d, 0.5 * s - 3.0 * r, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_no_storage_is_added(weight: float) -> None:
    """The two results lie in the storages of the two inputs: d in that of g_S, which trade places at weight 1."""
    sft, rl = gradients(1), gradients(2)
    pointers = [[tensor.data_ptr() for tensor in tensors] for tensors in (sft, rl)]
    mixed, disagreement = mix_(sft, rl, 2.0, 1.0, weight)
    found = [[tensor.data_ptr() for tensor in tensors] for tensors in (disagreement, mixed)]
    assert found == (pointers if weight < 1 else pointers[::-1])


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_gradient_that_is_missing_in_one_phase_counts_as_zero(weight: float) -> None:
    """None in one phase gives what zeros would give; None in both stays None."""
    tensor = torch.tensor([1.0, -2.0], dtype=torch.float64)
    zeros = torch.zeros_like(tensor)
    mixed, disagreement = mix_([None, tensor.clone(), None], [tensor.clone(), None, None], 2.0, 3.0, weight)
    assert mixed[2] is None
    assert disagreement[2] is None
    expected = mix_([zeros.clone(), tensor.clone()], [tensor.clone(), zeros.clone()], 2.0, 3.0, weight)
    torch.testing.assert_close((mixed[:2], disagreement[:2]), expected, rtol=0, atol=0)
    torch.testing.assert_close(disagreement[0], -3.0 * tensor, rtol=0, atol=0)
    torch.testing.assert_close(mixed[1], weight * 2.0 * tensor, rtol=0, atol=0)


def test_lists_of_different_length_are_refused() -> None:
    """A lost gradient must not shift the others onto the wrong parameters."""
    with pytest.raises(ValueError):
        mix_(gradients(1), gradients(2)[:1], 1.0, 1.0, 0.5)


def test_a_sum_is_the_weighted_sum() -> None:
    """s_R g_R + s_S g_S, tensor by tensor, in the storage of g_R."""
    sft, rl = gradients(1), gradients(2)
    inputs = copies(sft), copies(rl)
    pointers = [tensor.data_ptr() for tensor in inputs[1]]
    total = add_(*inputs, 0.5, 3.0)
    for s, r, g in zip(sft, rl, total, strict=True):
        torch.testing.assert_close(g, 3.0 * r + 0.5 * s, rtol=1e-14, atol=1e-15)
    assert [tensor.data_ptr() for tensor in total] == pointers


@pytest.mark.parametrize("mu", [0.0, 0.05, 0.3, 0.5, 0.95, 1.0])
def test_a_sum_with_complementary_scales_is_the_mixture(mu: float) -> None:
    """Scales mu and 1 - mu make Eq. 3, whichever of the two ways computes it."""
    sft, rl = gradients(1), gradients(2)
    total = add_(copies(sft), copies(rl), mu, 1 - mu)
    mixed, _ = mix_(copies(sft), copies(rl), 1.0, 1.0, mu)
    torch.testing.assert_close(total, mixed, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_single_phase_with_scale_one_is_left_to_the_bit(dtype: torch.dtype) -> None:
    """A step without rollouts (or without demonstrations) is that phase's own step; the absent scale is not read."""
    only = gradients(1, dtype)
    only[0][0, :2] = torch.tensor([1e-9, -0.0])
    for total in (add_(copies(only), None, 1.0, math.nan), add_(None, copies(only), math.nan, 1.0)):
        for index in range(2):
            assert_same_bits(total[index], only[index])


def test_a_single_phase_is_scaled() -> None:
    """SuperRL's weight of a phase holds when the other phase is absent; a parameter without a gradient has none."""
    tensor = torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert add_([tensor.clone(), None], None, 0.25, 1.0)[0].tolist() == [0.25, -0.5]
    assert add_(None, [tensor.clone(), None], 1.0, 0.25)[0].tolist() == [0.25, -0.5]
    assert add_(None, [tensor.clone(), None], 1.0, 0.25)[1] is None


def test_a_gradient_that_is_missing_in_one_phase_of_a_sum_counts_as_zero() -> None:
    """None beside a gradient gives what zeros would give; None in both stays None."""
    tensor = torch.tensor([1.0, -2.0], dtype=torch.float64)
    total = add_([None, tensor.clone(), None], [tensor.clone(), None, None], 2.0, 3.0)
    torch.testing.assert_close(total[0], 3.0 * tensor, rtol=0, atol=0)
    torch.testing.assert_close(total[1], 2.0 * tensor, rtol=0, atol=0)
    assert total[2] is None


def test_a_sum_of_lists_of_different_length_is_refused() -> None:
    """As in the mixture, no gradient may move onto another parameter."""
    with pytest.raises(ValueError):
        add_(gradients(1), gradients(2)[:1], 1.0, 1.0)


def test_equal_norm_scales_by_hand() -> None:
    """Running means with decay 0.5: after norms (8, 2) and then (4, 6) they are (16/3, 14/3), and both meet at 5."""
    config = MixtureConfig(scale="equal_norm", decay=0.5)
    state, sft_scale, rl_scale = update_scales(MixtureState(), 8.0, 2.0, config)
    assert (sft_scale, rl_scale) == (5 / 8, 5 / 2)
    state, sft_scale, rl_scale = update_scales(state, 4.0, 6.0, config)
    assert state == MixtureState(sft_norm=4.0, rl_norm=3.5, num_updates=2)  # before the division by 1 - 0.5**2
    assert sft_scale == pytest.approx(5 / (16 / 3), rel=1e-15)
    assert rl_scale == pytest.approx(5 / (14 / 3), rel=1e-15)


def test_capped_shortens_imitation_and_never_stretches_it() -> None:
    """As equal_norm while the SFT gradient is the longer one in the mean; Eq. 3 as printed once it is the shorter."""
    config = MixtureConfig(scale="capped", decay=0.5)
    state, *scales = update_scales(MixtureState(), 8.0, 2.0, config)
    assert scales == [5 / 8, 5 / 2]
    state, *scales = update_scales(state, 1.0, 8.0, config)  # running means 10/3 and 18/3
    assert scales == [1.0, 1.0]
    assert state == MixtureState(sft_norm=2.5, rl_norm=4.5, num_updates=2)


def test_capped_leaves_imitation_alone_while_there_is_no_reward() -> None:
    """A vanishing RL gradient must not switch imitation off."""
    _, sft_scale, rl_scale = update_scales(MixtureState(), 8.0, 0.0, MixtureConfig(scale="capped"))
    assert (sft_scale, rl_scale) == (0.5, 1.0)


def test_scale_none_leaves_gradients_alone() -> None:
    """Eq. 3 as printed: both scales are 1 whatever the norms."""
    assert update_scales(MixtureState(), 8.0, 2.0, MixtureConfig(scale="none")) == (MixtureState(), 1.0, 1.0)


def test_a_gradient_of_norm_zero_has_scale_one() -> None:
    """Groups of equal rewards give no RL gradient: there is nothing to scale and nothing to divide by."""
    _, sft_scale, rl_scale = update_scales(MixtureState(), 8.0, 0.0, MixtureConfig(scale="equal_norm"))
    assert (sft_scale, rl_scale) == (0.5, 1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norms_that_are_not_finite_do_not_enter_the_running_means(bad: float) -> None:
    """The step will be skipped by the optimiser; state and scales stay those of the step before."""
    config = MixtureConfig(scale="equal_norm")
    state, *scales = update_scales(MixtureState(), 8.0, 2.0, config)
    assert update_scales(state, bad, 2.0, config) == (state, *scales)
    assert update_scales(state, 8.0, bad, config) == (state, *scales)


def test_inner_products_are_accumulated_in_float64() -> None:
    """Chunked products of float32 lists equal the float64 dot of the whole, where float32 would cancel to 0."""
    left, right = gradients(1, torch.float32), gradients(2, torch.float32)
    cancelling = [torch.tensor([1e8, 1.0, -1e8])], [torch.tensor([1.0, 1.0, 1.0])]
    products = local_inner_products([(left, right), (left, left), cancelling], chunk_size=5)
    assert products.dtype == torch.float64
    assert products.shape == (3,)
    expected = [
        sum((x.double() * y.double()).sum() for x, y in zip(a, b, strict=True))
        for a, b in ((left, right), (left, left))
    ]
    torch.testing.assert_close(products[:2], torch.stack(expected), rtol=1e-14, atol=0)
    assert products[2].item() == 1.0


def test_inner_products_of_missing_and_empty_tensors_are_zero() -> None:
    """None is zero, a rank may hold an empty shard, and a list without any gradient has the product 0."""
    tensor = torch.tensor([2.0])
    products = local_inner_products(
        [([tensor, None], [tensor, tensor]), ([None], [tensor]), ([torch.zeros(0)], [torch.zeros(0)])]
    )
    assert products.tolist() == [4.0, 0.0, 0.0]


def test_configuration_errors_name_value_and_choices() -> None:
    """A wrong key says what was received and what is allowed."""
    with pytest.raises(ValueError, match=r"mixture\.scale='equal'.*none, equal_norm, capped"):
        MixtureConfig(scale="equal")
    with pytest.raises(ValueError, match=r"mixture\.decay=1\.0 .*\[0\.0, 1\.0\)"):
        MixtureConfig(decay=1.0)
