"""The supervised family and mu that nothing is learned about: fixed, or on a schedule."""

import pytest
from simulation import NUM_STEPS, decisions_of, losses_of, measured, method_of, settings_of

from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.config import from_mapping
from recipe.amft.methods import Mix, StepPlan, make_method


@pytest.mark.parametrize("name", ["sft", "dft", "dft_sentence", "dft_geometric", "iw_sft", "sft_kl"])
def test_the_sft_family_differs_in_its_loss_alone(name: str) -> None:
    """One method, no rollouts, mu = 1."""
    method = make_method(settings_of(f"method={name}"))
    assert losses_of(method)[0].name == name
    assert {(decision.plan, decision.combination) for decision in decisions_of(method)} == {
        (StepPlan(rollouts=False), Mix(1.0))
    }


@pytest.mark.parametrize(("weight", "end"), [(0.0, "grpo"), (1.0, "sft")])
def test_the_ends_of_fixed_mu_are_grpo_and_sft(weight: float, end: str) -> None:
    """Eq. 3 at mu 0 and 1 has the mixture of the pure methods; mix_ leaves the pure gradient to the bit."""
    fixed = make_method(from_mapping({"method": {"name": "fixed_mu", "weight": weight}}))
    mixes = [decision.combination for decision in decisions_of(fixed)]
    assert mixes == [decision.combination for decision in decisions_of(method_of(end))] == [Mix(weight)] * NUM_STEPS


def test_chord_mu_with_a_constant_schedule_is_fixed_mu() -> None:
    """peak = valley: the same combination and the same plan at every step."""
    schedule = {"peak": 0.3, "valley": 0.3, "num_decay_steps": 7}
    scheduled = make_method(from_mapping({"method": {"name": "scheduled_mu", "schedule": schedule}}))
    fixed = make_method(from_mapping({"method": {"name": "fixed_mu", "weight": 0.3}}))
    assert losses_of(scheduled) == losses_of(fixed)
    for left, right in zip(decisions_of(scheduled), decisions_of(fixed), strict=True):
        assert left.plain() == right.plain()


def test_chord_mu_follows_its_schedule() -> None:
    """0.9 at step 0, halfway after 100 of 200 steps, 0.05 from there on."""
    method = make_method(settings_of("method=chord_mu"))
    at = {step: method.combine(None, step, measured())[1].mu for step in (0, 100, 200, 499)}
    assert at == pytest.approx({0: 0.9, 100: 0.475, 200: 0.05, 499: 0.05}, rel=1e-12)


def test_chord_phi_is_a_constant_mix_with_its_own_loss() -> None:
    """mu 0.1 and p (1 - p)."""
    method = make_method(settings_of("method=chord_phi"))
    assert {decision.combination for decision in decisions_of(method)} == {Mix(0.1)}
    assert losses_of(method) == (LossSpec("chord_phi"), None)


@pytest.mark.parametrize("name", ["chord_mu", "chord_phi"])
def test_chord_mixes_unscaled_gradients(name: str) -> None:
    """Eq. 3 as it is; the controls of AMFT scale as AMFT does."""
    assert settings_of(f"method={name}").mixture.scale == "none"
    assert settings_of("method=fixed_mu").mixture == settings_of("method=amft").mixture
