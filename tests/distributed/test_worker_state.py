"""What the worker leaves alone: under validation, non-finite gradients, padding, unused parameters, and warm-up."""

import math
from typing import Any

import pytest
import torch

from recipe.amft.algorithm.meta_gradient import MetaConfig

on_sharded_and_hybrid_meshes = pytest.mark.parametrize("world_size", [2, 4], ids=["2-replicated", "4-hsdp"])


def safety(ranks_of, world_size: int, name: str) -> list[dict[Any, Any]]:
    """The scenario's results, rank by rank."""
    return [rank["safety"][name] for rank in ranks_of(world_size)]


@on_sharded_and_hybrid_meshes
def test_the_validation_worker_changes_nothing_but_its_own_window(ranks_of, world_size):
    """Weights, optimiser, schedule, the gradients set aside and (horizon=trace) the tangent stay equal to the bit."""
    for rank in safety(ranks_of, world_size, "meta_update_between"):
        assert rank["same"] == dict.fromkeys(("weights", "optimizer", "schedule", "tangent", "gradients"), True)
        assert rank["measured"]["dot"] != 0.0
        (with_step, with_weights), (without_step, without_weights) = rank["with_meta"], rank["without_meta"]
        assert with_step == without_step
        assert torch.equal(with_weights, without_weights)


@on_sharded_and_hybrid_meshes
def test_a_non_finite_gradient_takes_no_step(ranks_of, world_size):
    """One rank's infinite loss: all ranks skip, report it, keep weights, moments and tangent, and go on next step."""
    for rank in safety(ranks_of, world_size, "not_finite"):
        case = rank[0.3, "trace"]
        assert not math.isfinite(case["rl"]["norm"])
        assert case["step"]["skipped"] == 1.0
        assert not math.isfinite(case["step"]["grad_norm"])
        assert case["same"]["weights"]
        assert case["same"]["optimizer"]
        assert case["same"]["tangent"]
        assert float(case["tangent"].norm()) > 0
        assert case["next"]["step"]["skipped"] == 0.0
        assert bool(case["next"]["weights"].isfinite().all())
        assert not torch.equal(case["next"]["weights"], case["weights"])


@on_sharded_and_hybrid_meshes
@pytest.mark.parametrize("horizon", ["trace", "one"])
def test_at_mu_one_a_non_finite_rl_gradient_does_not_reach_weights_or_tangent(ranks_of, world_size, horizon):
    """Only d = g_SFT - g_RL is infinite then: the SFT step is taken and the step adds nothing to the tangent."""
    for rank in safety(ranks_of, world_size, "not_finite"):
        case = rank[1.0, horizon]
        assert not math.isfinite(case["rl"]["norm"])
        assert case["step"]["skipped"] == 0.0
        faded = case["tangent_before"] * (MetaConfig().trace_decay if horizon == "trace" else 0.0)
        torch.testing.assert_close(case["tangent"], faded, rtol=1e-12, atol=0.0)
        assert bool(case["next"]["tangent"].isfinite().all())
        assert float(case["next"]["tangent"].norm()) > 0


@on_sharded_and_hybrid_meshes
def test_the_tangent_survives_its_file(ranks_of, world_size):
    """save_state, reset, load_state: equal to the bit on every rank; a missing file says what to do."""
    for index, rank in enumerate(safety(ranks_of, world_size, "state_files")):
        name = f"state_world_size_{world_size}_rank_{index}.pt"
        assert rank["same"]["tangent"]
        assert not rank["same_when_emptied"]
        assert rank["files"] == [name]
        assert name in rank["message"]
        assert "Resume with the number of ranks that wrote it" in rank["message"]


@on_sharded_and_hybrid_meshes
def test_a_steps_own_rollouts_measure_the_utility(ranks_of, world_size):
    """-<g_RL, d theta / d mu> over all shards, only where it is asked for; the step is not changed by it."""
    for rank in safety(ranks_of, world_size, "rollout_utility"):
        gradient, tangent, meta = rank["gradient"], rank["tangent"], rank["meta"]
        assert rank["same"]
        assert not {"dot", "utility_norm", "tangent_norm"} & set(rank["rl"])
        assert meta["dot"] == pytest.approx(-float(gradient @ tangent), rel=1e-6)
        assert meta["utility_norm"] == pytest.approx(meta["norm"], rel=1e-12)
        assert meta["tangent_norm"] == pytest.approx(float(tangent.norm()), rel=1e-6)
        assert abs(meta["dot"]) > 1e-6 * meta["utility_norm"] * meta["tangent_norm"]
        assert rank["window"] == [pytest.approx(meta["dot"]), pytest.approx(meta["dot"]), 0.0], "until mu is decided"


@on_sharded_and_hybrid_meshes
def test_padding_rows_change_nothing(ranks_of, world_size):
    """No-op rows of the trainer (empty response mask) leave losses, norms, weights and the meta-gradient alone."""
    case = safety(ranks_of, world_size, "padding_rows")[0]
    plain, padded = case["plain"], case["padded"]
    for name in ("norm", "cosine", "actor/pg_loss"):
        assert padded["rl"][name] == pytest.approx(plain["rl"][name], rel=1e-10)
    assert padded["step"]["grad_norm"] == pytest.approx(plain["step"]["grad_norm"], rel=1e-10)
    torch.testing.assert_close(padded["weights"], plain["weights"], rtol=1e-10, atol=1e-12)
    assert padded["meta"]["dot"] == pytest.approx(plain["meta"]["dot"], rel=1e-9)
    assert padded["meta"]["utility_norm"] == pytest.approx(plain["meta"]["utility_norm"], rel=1e-10)


@on_sharded_and_hybrid_meshes
def test_a_gradient_in_one_phase_only_counts_as_zero_in_the_other(ranks_of, world_size):
    """None and a gradient of zeros give the same mixture, step, tangent and meta-gradient, to the bit."""
    for rank in safety(ranks_of, world_size, "missing_gradients"):
        zeros, none, full = rank["zeros"], rank["none"], rank["full"]
        for name in ("mixed", "tangent", "weights"):
            assert torch.equal(none[name], zeros[name]), name
            assert not torch.equal(none[name], full[name]), name
        assert none["step"] == zeros["step"]
        assert none["meta"] == zeros["meta"]


@on_sharded_and_hybrid_meshes
def test_a_parameter_without_any_gradient_is_left_alone(ranks_of, world_size):
    """No weight decay and no moments for a parameter that neither phase uses."""
    for rank in safety(ranks_of, world_size, "missing_gradients"):
        assert not rank["none"]["parameter_2_moved"]
    assert any(rank["full"]["parameter_2_moved"] for rank in safety(ranks_of, world_size, "missing_gradients"))


def test_warm_up_has_its_own_learning_rate_and_leaves_the_schedule_where_it_is(ranks_of):
    """An explicit rate is used and does not move the scheduler; scheduled steps then begin at its first rate.

    Linear warm-up over four steps of the schedule from 0 to 0.01, one step of the schedule per two mini-batches.
    """
    results = ranks_of(1)[0]["schedule"]
    assert results["before"] == [(0, 0.0), (0, 3e-3), (0, 3e-3)]
    rates = [step["lr"] for step in results["steps"]]
    assert rates == pytest.approx([3e-3, 3e-3, 0.0, 0.0, 2.5e-3, 2.5e-3, 5e-3, 5e-3])
    assert results["last_epoch"] == 3
    assert all(step["skipped"] == 0.0 for step in results["steps"])
