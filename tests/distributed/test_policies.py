"""What a worker holds beside its policy: a reference policy and further optimisers; and steps that are not taken."""

import math

import pytest
import torch

PARTS = ("weights", "optimizer", "schedule", "tangent", "gradients")
ranks_one_and_two = pytest.mark.parametrize("world_size", [1, 2])


# --- The reference policy ---------------------------------------------------------------------------------------------


@ranks_one_and_two
def test_the_reference_is_the_policy_of_the_moment_it_was_kept(ranks_of, world_size):
    """At once its log-probabilities are the policy's, after steps they are still the first ones, to the bit."""
    for rank in ranks_of(world_size):
        case = rank["reference_policy"]["kept"]
        assert torch.equal(case["at_once"], case["first"])
        assert torch.equal(case["later"], case["first"])
        assert float((case["policy"] - case["first"]).abs().max()) > 1e-3, "the steps must move the policy"


@ranks_one_and_two
def test_the_policy_comes_back_unchanged(ranks_of, world_size):
    """Weights, moments, schedule, tangent and the gradients set aside: equal to the bit, also after an error inside."""
    for rank in ranks_of(world_size):
        case = rank["reference_policy"]["kept"]
        assert case["same"] == case["same_after_error"] == dict.fromkeys(PARTS, True)
        assert torch.equal(case["policy_again"], case["policy"])


def test_a_reference_that_was_never_kept_is_said(ranks_of):
    """A method that forgot to declare its need hears of it in words."""
    for rank in ranks_of(1):
        assert "no reference policy was kept" in rank["reference_policy"]["kept"]["message"]


@ranks_one_and_two
def test_sequence_log_probs_are_sums_over_learned_tokens(ranks_of, world_size):
    """Row by row, in the order of the rows, for any micro-batches: dynamic ones reorder rows inside."""
    for rank in ranks_of(world_size):
        case = rank["reference_policy"]["sums"]
        assert not torch.equal(case["by_hand"]["policy"], case["by_hand"]["reference"])
        for size, sums in case["found"].items():
            for name, values in sums.items():
                torch.testing.assert_close(values, case["by_hand"][name], rtol=1e-10, atol=0, msg=f"{size} {name}")


@ranks_one_and_two
def test_at_the_reference_iw_sft_and_sft_kl_are_sft(ranks_of, world_size):
    """Every importance weight is 1 and the k3 term has no gradient where policy and reference agree."""
    for rank in ranks_of(world_size):
        case = rank["reference_policy"]["iw_sft at the reference"]
        assert float(case["sft"].norm()) > 0
        for name in ("iw_sft", "sft_kl"):
            torch.testing.assert_close(case[name], case["sft"], rtol=1e-12, atol=1e-14)


# --- Weights alone ----------------------------------------------------------------------------------------------------


def test_weights_alone_come_back(ranks_of):
    """Those of the step they were written at, to the bit; moments, schedule, tangent and random state stay as they are.

    The file holds no moments and is not part of verl's rotation of checkpoints, which would delete it.
    """
    for rank in ranks_of(2):
        case = rank["weights_alone"]
        assert case["moved"]
        assert case["taken_back"]
        assert case["left"] == dict.fromkeys(PARTS, True) | {"weights": False}
        assert case["same_generator"]
        assert case["rotation"] == []
        assert set(case["contents"]) == {"model", "optimizer", "extra"}
        assert case["files"] == [f"model_world_size_2_rank_{index}.pt" for index in range(2)]


def test_missing_weights_are_said(ranks_of):
    """The file's name and what to do."""
    for index, rank in enumerate(ranks_of(2)):
        assert f"model_world_size_2_rank_{index}.pt is missing" in rank["weights_alone"]["message"]
        assert "Resume with the number of ranks that wrote it" in rank["weights_alone"]["message"]


# --- Further optimisers -----------------------------------------------------------------------------------------------


def test_a_further_optimizer_leaves_the_moments_of_the_main_one(ranks_of):
    """They are equal to the bit afterwards, the schedule has not moved, and the main optimiser is in use again."""
    for rank in ranks_of(2):
        case = rank["optimizers"]["first"]
        assert case["same_moments"]
        assert case["same"]["schedule"]
        assert not case["same"]["weights"]
        assert case["in_use"] == "main"
        assert case["step"]["lr"] == 3e-3


def test_a_further_optimizer_starts_with_no_moments(ranks_of):
    """Its first update is AdamW's first: w (1 - lr wd) - lr g / (|g| + eps) of the clipped gradient, by hand.

    The parameter without a gradient is left alone.
    """
    case = ranks_of(2)[0]["optimizers"]["first"]
    gradient, before, learned = case["gradient"], case["before"], case["learned"]
    clipped = gradient * min(1.0, 0.5 / (float(gradient.norm()) + 1e-6))
    stepped = before * (1 - 3e-3 * 0.1) - 3e-3 * clipped / (clipped.abs() + 1e-8)
    assert 0 < int(learned.sum()) < len(learned)
    torch.testing.assert_close(case["weights"], torch.where(learned, stepped, before), rtol=1e-10, atol=1e-12)


def test_a_further_optimizer_survives_its_file(ranks_of):
    """save_state, a new worker with the checkpoint's weights, load_state: its state and its next update to the bit.

    The main optimiser's next step is the same too; without the file the update is another one.
    """
    for rank in ranks_of(2):
        case = rank["optimizers"]
        assert case["same_state"]
        assert case["steps"] == [1]
        assert case["num_empty"] == 1
        assert torch.equal(case["resumed"]["extra"], case["expected"]["extra"])
        assert torch.equal(case["resumed"]["main"], case["expected"]["main"])
        assert not torch.equal(case["forgotten"], case["expected"]["extra"])


# --- Steps that are not taken -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["below", "infinite"])
def test_no_step_is_taken_above_the_limit(ranks_of, name):
    """Weights, moments and tangent stay to the bit, the norm is reported, nothing is left over for the next step."""
    for rank in ranks_of(2):
        case = rank["skipped_steps"][name]
        assert case["step"]["skipped"] == 1.0
        if name == "below":
            assert case["step"]["grad_norm"] == pytest.approx(rank["skipped_steps"]["norm"], rel=1e-10)
        else:
            assert not math.isfinite(case["step"]["grad_norm"])
        for part in ("weights", "optimizer", "tangent"):
            assert case["same"][part], part
        assert case["pending"] == [None, None]
        assert case["left"]
        assert case["next"]["skipped"] == 0.0
        assert math.isfinite(case["next"]["grad_norm"])


def test_a_limit_that_is_not_reached_changes_nothing(ranks_of):
    """The step is the one without a limit, to the bit."""
    for rank in ranks_of(2):
        with_limit, without = rank["skipped_steps"]["above"], rank["skipped_steps"]["none"]
        assert with_limit["step"] == without["step"]
        assert with_limit["step"]["skipped"] == 0.0
        assert torch.equal(with_limit["weights"], without["weights"])
        assert not with_limit["same"]["weights"]
