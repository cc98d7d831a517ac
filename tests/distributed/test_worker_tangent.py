"""The tangent that the worker carries, and the meta-gradient made of it, against finite differences of real steps."""

import pytest
import torch

CASES = [
    ("adamw", 0.5, "clip active"),
    ("adamw", 1e6, "clip inactive"),
    ("clipped", 0.5, "clip active"),
    ("clipped", 1e6, "clip inactive"),
    ("sgd", 1e6, "clip inactive"),
]
every_inner_update = pytest.mark.parametrize(
    ("inner", "max_norm"), [case[:2] for case in CASES], ids=[f"{inner}-{clip}" for inner, _, clip in CASES]
)


@pytest.mark.parametrize("world_size", [1, 2])
@every_inner_update
@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_the_tangent_is_the_derivative_of_the_weights_with_respect_to_mu(
    ranks_of, world_size, inner, max_norm, precision
):
    """Horizon one: d theta / d mu is the central difference of the weights that verl's engine really writes.

    The gradients are those at theta_t and do not move with mu, so one step has no Hessian term: in float64 agreement is
    limited by the width of the difference only.
    """
    case = ranks_of(world_size)[0]["finite_differences"][inner, max_norm, precision]
    tangent, difference = case["tangent"], case["difference"]
    assert (case["grad_norm"] > max_norm) == (max_norm < 1), "the clip must be active where the case says so"
    cosine, norm_error, error = (0.999, 1e-2, 5e-2) if precision == "fp32" else (1 - 1e-9, 1e-5, 1e-4)
    assert float(tangent @ difference / (tangent.norm() * difference.norm())) > cosine
    assert float(tangent.norm()) == pytest.approx(float(difference.norm()), rel=norm_error)
    assert float((tangent - difference).norm() / difference.norm()) < error


@pytest.mark.parametrize("world_size", [1, 2])
@every_inner_update
def test_the_meta_gradient_is_the_derivative_of_the_utility_with_respect_to_mu(ranks_of, world_size, inner, max_norm):
    """<grad U, d theta / d mu> has the sign and the size of the change of U when mu changes and the step is redone."""
    case = ranks_of(world_size)[0]["finite_differences"][inner, max_norm, "fp64"]
    assert case["dot"] == pytest.approx(case["utility_difference"], rel=1e-4)


def test_the_inner_updates_have_different_derivatives(ranks_of):
    """The cases above are not one case: clipping and AdamW change d theta / d mu."""
    results = ranks_of(1)[0]["finite_differences"]
    dots = [results[inner, max_norm, "fp64"]["dot"] for inner, max_norm in [("adamw", 0.5), ("adamw", 1e6)]]
    dots += [results["clipped", 0.5, "fp64"]["dot"], results["sgd", 1e6, "fp64"]["dot"]]
    assert len({round(dot, 9) for dot in dots}) == 4
    unclipped = results["clipped", 1e6, "fp64"]["tangent"]
    assert torch.equal(unclipped, results["sgd", 1e6, "fp64"]["tangent"])
