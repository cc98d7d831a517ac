"""What one process computes, two and four ranks compute too: sharded (FSDP2), replicated and both (HSDP).

verl's engine has no float64; `workers.py` opens it, so that agreement is shown to 1e-10 on verl's own engine and not
only suggested in float32. Losses are compared at float32, because verl sums them in that precision.
"""

from typing import Any

import pytest
import torch

MESHES = [(2, "fsdp"), (2, "replicated"), (4, "fsdp"), (4, "hsdp")]
TOLERANCE = {"fp32": 1e-5, "fp64": 1e-10}
LOSS = 1e-6  # relative, float32
SETTINGS = [("fp64", inner, horizon) for inner in ("sgd", "clipped", "adamw") for horizon in ("one", "window", "trace")]
SETTINGS += [("fp32", "sgd", "one"), ("fp32", "clipped", "window"), ("fp32", "adamw", "trace")]
on_every_mesh = pytest.mark.parametrize(
    ("world_size", "mesh"), MESHES, ids=["-".join(map(str, case)) for case in MESHES]
)
in_both_precisions = pytest.mark.parametrize("precision", ["fp32", "fp64"])


def both(ranks_of, world_size: int, mesh: str, precision: str) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """What the ranks and what one process computed."""
    return ranks_of(world_size)[0]["meshes"][mesh, precision], ranks_of(1)[0]["meshes"]["single", precision]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@on_every_mesh
@in_both_precisions
def test_both_gradients_have_the_norms_and_the_angle_of_one_process(ranks_of, world_size, mesh, precision):
    """Reducing over the shard group alone counts every element once: |g_SFT|, |g_RL| and their cosine."""
    actual, expected = both(ranks_of, world_size, mesh, precision)
    tolerance = TOLERANCE[precision]
    for step in range(3):
        for phase in ("sft", "rl"):
            assert actual[step][phase]["norm"] == pytest.approx(expected[step][phase]["norm"], rel=tolerance)
            assert actual[step][phase]["loss"] == pytest.approx(expected[step][phase]["loss"], rel=LOSS, abs=LOSS)
        assert abs(actual[step]["rl"]["cosine"] - expected[step]["rl"]["cosine"]) < tolerance


@on_every_mesh
@in_both_precisions
def test_the_mixed_gradient_and_its_clip_norm_are_those_of_one_process(ranks_of, world_size, mesh, precision):
    """The gathered (1 - mu) s_R g_R + mu s_S g_S agrees element by element, and so does the norm that clips it."""
    actual, expected = both(ranks_of, world_size, mesh, precision)
    for step in range(3):
        assert expected[step]["step"]["grad_norm"] > 0.5, "the clip must be active for this test to mean something"
        assert relative_error(actual[step]["mixed"], expected[step]["mixed"]) < TOLERANCE[precision]
        assert actual[step]["step"]["grad_norm"] == pytest.approx(
            expected[step]["step"]["grad_norm"], rel=TOLERANCE[precision]
        )
        assert float(actual[step]["mixed"].norm()) == pytest.approx(actual[step]["step"]["grad_norm"], rel=1e-6)


@on_every_mesh
@in_both_precisions
def test_the_updated_weights_are_those_of_one_process(ranks_of, world_size, mesh, precision):
    """Three optimiser steps leave the same weights."""
    actual, expected = both(ranks_of, world_size, mesh, precision)
    assert relative_error(actual[2]["weights"], expected[0]["weights"]) > 1e-3, "the steps must move the weights"
    for step in range(3):
        assert relative_error(actual[step]["weights"], expected[step]["weights"]) < TOLERANCE[precision]


@on_every_mesh
@pytest.mark.parametrize(("precision", "inner", "horizon"), SETTINGS, ids=["-".join(case) for case in SETTINGS])
@pytest.mark.parametrize("last_step", [0, 2], ids=["after one step", "after three steps"])
def test_the_validation_worker_measures_what_one_process_measures(
    ranks_of, world_size, mesh, precision, inner, horizon, last_step
):
    """<grad U, d theta / d mu> and both norms agree, for every inner update and horizon.

    The inner product is compared at the scale of its two vectors, for it may be a small difference of large terms. In
    float32 AdamW divides by roots of small numbers, which amplifies the rounding of a gradient.
    """
    actual, expected = (
        results["meta"][inner, horizon, last_step] for results in both(ranks_of, world_size, mesh, precision)
    )
    tolerance = 1e-4 if (precision, inner) == ("fp32", "adamw") else TOLERANCE[precision]
    scale = expected["utility_norm"] * expected["tangent_norm"]
    assert scale > 0
    assert actual["utility_norm"] == pytest.approx(expected["utility_norm"], rel=max(tolerance, TOLERANCE[precision]))
    assert actual["tangent_norm"] == pytest.approx(expected["tangent_norm"], rel=tolerance)
    assert abs(actual["dot"] - expected["dot"]) < tolerance * scale
    assert relative_error(actual["tangent"], expected["tangent"]) < tolerance


@on_every_mesh
def test_horizons_differ_in_what_they_carry(ranks_of, world_size, mesh):
    """After one step all horizons agree; after three they differ, and only horizon=trace survives a meta-update."""
    results = ranks_of(world_size)[0]["meshes"][mesh, "fp64"]["meta"]
    for inner in ("sgd", "clipped", "adamw"):
        one, window, trace = (results[inner, horizon, 0]["dot"] for horizon in ("one", "window", "trace"))
        assert one == window == trace
        later = {horizon: results[inner, horizon, 2] for horizon in ("one", "window", "trace")}
        assert len({round(update["dot"], 12) for update in later.values()}) == 3
        assert float(later["one"]["left"].norm()) == float(later["window"]["left"].norm()) == 0.0
        assert torch.equal(later["trace"]["left"], later["trace"]["tangent"])


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_rank_reports_the_same_numbers(ranks_of, world_size):
    """The driver keeps one rank's metrics, so all ranks must hold the global ones."""
    ranks = ranks_of(world_size)
    for mesh in [name for count, name in MESHES if count == world_size]:
        for precision in ("fp32", "fp64"):
            first, *others = (rank["meshes"][mesh, precision] for rank in ranks)
            for other in others:
                assert other["entropy"] == first["entropy"]
                for step in range(3):
                    assert [other[step][part] for part in ("sft", "rl", "step")] == [
                        first[step][part] for part in ("sft", "rl", "step")
                    ]
                for setting, update in other["meta"].items():
                    names = ("dot", "utility_norm", "tangent_norm", "loss")
                    assert [update[name] for name in names] == [first["meta"][setting][name] for name in names]


@on_every_mesh
def test_entropy_needs_no_backward_pass(ranks_of, world_size, mesh):
    """H* by forward passes is the entropy that the backward pass reports, and does not depend on ranks."""
    actual, expected = both(ranks_of, world_size, mesh, "fp64")
    assert actual["entropy"]["entropy"] == pytest.approx(expected["entropy"]["entropy"], rel=1e-10)
    assert actual["entropy"]["entropy"] == pytest.approx(actual[0]["sft"]["entropy"], rel=1e-10)
    assert actual["entropy"]["loss"] == pytest.approx(actual[0]["sft"]["loss"], rel=LOSS)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_micro_batches_and_the_distribution_of_rows_change_nothing(ranks_of, world_size):
    """Micro-batches of 1, 2, 4, 8 (3, which divides nothing; dynamic ones) and any row order give one result."""
    expected = ranks_of(1)[0]["partitions"]["contiguous", 1]
    for case, actual in ranks_of(world_size)[0]["partitions"].items():
        for phase in ("sft", "rl"):
            assert actual[phase]["norm"] == pytest.approx(expected[phase]["norm"], rel=1e-10), case
            assert actual[phase]["loss"] == pytest.approx(expected[phase]["loss"], rel=LOSS, abs=LOSS), case
        assert actual["sft"]["entropy"] == pytest.approx(expected["sft"]["entropy"], rel=1e-10), case
        for vector in ("mixed", "weights", "tangent"):
            assert relative_error(actual[vector], expected[vector]) < 1e-10, (case, vector)
        scale = expected["meta"]["utility_norm"] * expected["meta"]["tangent_norm"]
        assert abs(actual["meta"]["dot"] - expected["meta"]["dot"]) < 1e-10 * scale, case
