"""Every token loss on real ranks: as the loss of demonstrations and of rollouts, and with padding rows."""

import pytest
import torch

from recipe.amft.algorithm.token_losses import NEEDS_REFERENCE, TOKEN_LOSSES

LOSS = 1e-6  # relative: verl sums losses in float32
VARIANTS = [
    *("sft per sequence", "srft_demonstration over the batch", "srft_rollout over the batch"),
    *("srft_demonstration of iw_sft", "shaped_probability with entropy"),
]
NAMES = [*TOKEN_LOSSES, *VARIANTS]
FIRST = ("contiguous", 2)
SAME_GRADIENT = [{"sft", "policy_gradient"}, {"dft", "probability"}]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def phases_of(name: str) -> list[str]:
    """Rollouts have no reference log-probabilities, and demonstrations no old ones."""
    needs_reference = name in (*NEEDS_REFERENCE, "srft_demonstration of iw_sft")
    return ["sft"] * (name != "importance_ratio") + ["rl"] * (not needs_reference)


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_and_ranks_change_nothing(ranks_of, world_size, name):
    """Gradients, entropy and updated weights agree to 1e-10 in float64 with those of one process in order.

    Rows differ in length, weight and number of learned tokens; micro-batches hold 2, 8 or (dynamic) several rows.
    """
    expected = ranks_of(1)[0]["token_losses"][name, *FIRST]
    results = ranks_of(world_size)[0]["token_losses"]
    cases = {key[1:]: result for key, result in results.items() if key[0] == name}
    assert cases
    for case, actual in cases.items():
        for phase in phases_of(name):
            gradient = f"{phase}_gradient"
            assert float(expected[gradient].norm()) > 1e-6
            assert relative_error(actual[gradient], expected[gradient]) < 1e-10, (case, phase)
            assert actual[phase]["norm"] == pytest.approx(float(expected[gradient].norm()), rel=1e-10), case
            assert actual[phase]["entropy"] == pytest.approx(expected[phase]["entropy"], rel=1e-10), case
            assert actual[phase]["loss"] == pytest.approx(expected[phase]["loss"], rel=LOSS, abs=LOSS), case
        assert actual["step"]["grad_norm"] == pytest.approx(expected["step"]["grad_norm"], rel=1e-10), case
        assert actual["step"]["skipped"] == 0.0
        assert relative_error(actual["weights"], expected["weights"]) < 1e-10, case


def test_the_step_follows_the_sum_of_the_two_gradients(ranks_of):
    """Its norm is that of s_R g_R + s_S g_S; one phase alone is that phase, scaled."""
    for name in NAMES:
        case = ranks_of(1)[0]["token_losses"][name, *FIRST]
        parts = [factor * case[f"{phase}_gradient"] for phase, factor in (("sft", 0.8), ("rl", 1.3)) if phase in case]
        assert case["step"]["grad_norm"] == pytest.approx(float(sum(parts).norm()), rel=1e-6), name


@pytest.mark.parametrize("world_size", [1, 2])
def test_the_entropy_bonus_is_verls(ranks_of, world_size):
    """The coefficient adds the same gradient as in verl's policy loss; a loss without the bonus does not move."""
    bonus = ranks_of(world_size)[0]["token_losses"]["entropy bonus"]
    assert float(bonus["verl"].norm()) > 1e-4
    assert relative_error(bonus["own"], bonus["verl"]) < 1e-9
    assert bonus["without"].count_nonzero() == 0


@pytest.mark.parametrize("phase", ["sft", "rl"])
def test_the_losses_are_different_losses(ranks_of, phase):
    """No two have one gradient, but for the pairs that must: -A log p by two names, and -sg(p) log p beside -p."""
    results = ranks_of(1)[0]["token_losses"]
    found = {name: results[name, *FIRST][f"{phase}_gradient"] for name in NAMES if phase in phases_of(name)}
    names = list(found)
    for index, one in enumerate(names):
        for other in names[:index]:
            error = relative_error(found[one], found[other])
            assert error < 1e-12 if {one, other} in SAME_GRADIENT else error > 1e-4, (one, other, error)


@pytest.mark.parametrize("name", ["sft", "per sequence", "iw_sft", "srft_demonstration"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_padding_rows_of_demonstrations_change_nothing(ranks_of, world_size, name):
    """13 demonstrations with weights on 1 or 2 ranks: three no-op rows, in any order, leave all numbers as without."""
    plain = ranks_of(1)[0]["token_losses"]["padding"][name, "plain"]
    padded = ranks_of(world_size)[0]["token_losses"]["padding"][name, "padded"]
    for metric in ("norm", "entropy"):
        assert padded["sft"][metric] == pytest.approx(plain["sft"][metric], rel=1e-10)
    assert padded["sft"]["loss"] == pytest.approx(plain["sft"]["loss"], rel=LOSS)
    assert relative_error(padded["gradient"], plain["gradient"]) < 1e-10
    assert relative_error(padded["weights"], plain["weights"]) < 1e-10
    assert padded["step"]["skipped"] == 0.0
