"""The actor worker on a vision-language model: what it computes is what transformers computes, on one rank or two."""

from pathlib import Path

import pytest
import torch
from rank_processes import run_script

pytestmark = pytest.mark.distributed

HERE = Path(__file__).parent
SECONDS = 600
FAMILIES = ("qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def computed(tmp_path_factory) -> dict[str, dict[int, list[dict]]]:
    """By family of models and world size, what each rank computed."""
    folder = tmp_path_factory.mktemp("ranks")
    run_script(HERE / "vision_ranks.py", str(folder), log=folder / "log.txt", seconds=SECONDS)

    def load(family, size):
        paths = [folder / f"{family}_world_{size}_rank_{rank}.pt" for rank in range(size)]
        return [torch.load(path, weights_only=False) for path in paths]

    return {family: {size: load(family, size) for size in (1, 2)} for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def results(request, computed) -> dict[int, list[dict]]:
    """By world size, what each rank computed with a model of one family."""
    return computed[request.param]


@pytest.mark.parametrize("size", [1, 2])
def test_loss_and_gradients_are_those_of_transformers(results, size):
    """Images, positions and tokens arrive in the forward pass as in transformers' own, through micro-batches and ranks;
    the gradient reaches every parameter of the vision tower."""
    known = results[size][0]["reference"]
    for rank in results[size]:
        measured = rank["demonstrations"]
        assert abs(measured["loss"] - float(known["loss"])) < 1e-5
        for name, gradient in measured["gradients"].items():
            torch.testing.assert_close(gradient, known[name], atol=2e-6, rtol=2e-3)
        towers = [name for name in measured["gradients"] if ".visual." in name]
        assert len(towers) == sum(".visual." in name for name in rank["names"]) > 10
        assert sum(bool(measured["gradients"][name].abs().max() > 0) for name in towers) > 0.8 * len(towers)


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_of_equal_lengths(results, size):
    """verl 0.9.1 cuts the position ids of such a batch along the wrong axis."""
    for rank in results[size]:
        assert abs(rank["equal_lengths"] - results[size][0]["equal_lengths_reference"]) < 1e-5


def test_the_pixels_matter(results):
    """The same tokens with another picture have another loss."""
    (rank,) = results[1]
    assert abs(rank["other_images"] - rank["demonstrations"]["loss"]) > 1e-6


@pytest.mark.parametrize("size", [1, 2])
def test_padding_adds_nothing(results, size):
    """Rows that fill up the ranks, with an image (ours) or without (verl's own): finite, and no part of the loss."""
    for rank in results[size]:
        assert abs(rank["padded"] - results[size][0]["padded_reference"]) < 1e-5
        assert rank["text_only"]["norm"] > 0


@pytest.mark.parametrize("size", [1, 2])
def test_a_frozen_vision_tower_stays_as_it_is(results, size):
    """It gets no gradient and no step takes a bit of it away, weight decay included; the language model moves."""
    for rank in results[size]:
        assert not any(".visual." in name for name in [*rank["frozen_gradients"], *rank["moved"]])
        assert len(rank["moved"]) == sum(".visual." not in name for name in rank["names"])
