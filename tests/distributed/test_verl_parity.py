"""At the ends of [0, 1] the mixed update is verl's own: its actor update at mu = 0, its SFT update at mu = 1."""

import pytest
import torch


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("num_mini_batches", [1, 2])
@pytest.mark.parametrize("phase", ["rl", "sft"])
def test_the_ends_of_the_mixture_are_verls_own_updates(ranks_of, world_size, num_mini_batches, phase):
    """Weights, both moments and the learning rate equal to the bit: `train_mini_batch` with `ppo_loss`, or `sft_loss`.

    With AdamW, an active clip and several micro-batches; two mini-batches are two consecutive optimiser steps.
    """
    results = ranks_of(world_size)[0]["verl_parity"]
    ours, verls = results[phase, num_mini_batches], results[f"verl_{phase}", num_mini_batches]
    for name in ("weights", "first_moments", "second_moments"):
        assert torch.equal(ours[name], verls[name]), f"{name}: {float((ours[name] - verls[name]).abs().max())}"
    assert ours["lr"] == verls["lr"]


def test_the_two_ends_and_the_numbers_of_mini_batches_differ(ranks_of):
    """The parity above compares four different updates, not one with itself."""
    results = ranks_of(1)[0]["verl_parity"]
    vectors = [results[phase, count]["weights"] for phase in ("rl", "sft") for count in (1, 2)]
    for index, vector in enumerate(vectors):
        assert all(float((vector - other).norm()) > 1e-3 for other in vectors[:index])
