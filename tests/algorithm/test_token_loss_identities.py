"""Identities between token losses: what a paper says is another loss, or a weight on it, is that, token by token."""

import math
from dataclasses import replace

import pytest
import torch
from token_batches import (
    BATCH_ENTROPY,
    MASK,
    WEIGHTS,
    logits_and_tokens,
    loss_and_gradient,
)
from torch import Tensor

from recipe.amft.algorithm.token_losses import LossSpec, Tokens


def assert_same_loss(left: LossSpec, right: LossSpec, tokens: Tokens, factor: Tensor | float = 1.0) -> None:
    """Values and gradients of `left` are those of `right` times `factor` (per token), on learned tokens."""
    leaf = tokens.logprobs.detach().clone().requires_grad_()
    tokens = replace(tokens, logprobs=leaf)
    learned = tokens.mask.bool()
    scaled = factor * right(tokens)
    torch.testing.assert_close(left(tokens)[learned], scaled[learned], rtol=1e-14, atol=1e-15)
    gradients = [torch.autograd.grad(values[learned].sum(), leaf)[0] for values in (left(tokens), scaled)]
    torch.testing.assert_close(*gradients, rtol=1e-14, atol=1e-15)


def test_dft_is_sft_weighted_by_the_probability_token_by_token() -> None:
    """Value and gradient of DFT are those of SFT times p, for every token by itself."""
    _, _, tokens = logits_and_tokens()
    assert_same_loss(LossSpec("dft"), LossSpec("sft"), tokens, factor=tokens.logprobs.detach().exp())


def test_iw_sft_without_temperature_is_sft() -> None:
    """tau = 0: every importance weight is exp(0) = 1, whatever the reference says."""
    _, _, tokens = logits_and_tokens()
    assert_same_loss(LossSpec("iw_sft", {"tau": 0.0}), LossSpec("sft"), tokens)


def test_iw_sft_of_the_reference_itself_is_sft() -> None:
    """Policy = reference: the weights are 1 for any tau."""
    _, _, tokens = logits_and_tokens()
    same = replace(tokens, reference_logprobs=tokens.logprobs.detach())
    assert_same_loss(LossSpec("iw_sft", {"tau": 3.0}), LossSpec("sft"), same)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_sft_kl_without_coefficient_is_sft(direction: str, estimator: str) -> None:
    """c = 0 leaves the negative log-likelihood."""
    _, _, tokens = logits_and_tokens()
    options = {"coefficient": 0.0, "direction": direction, "estimator": estimator}
    assert_same_loss(LossSpec("sft_kl", options), LossSpec("sft"), tokens)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_k3_term_is_a_distance(direction: str) -> None:
    """Never negative, and 0 with gradient 0 where policy and reference agree."""
    _, _, tokens = logits_and_tokens()
    silent = replace(tokens, weights=torch.zeros_like(WEIGHTS))
    spec = LossSpec("sft_kl", {"coefficient": 1.0, "direction": direction})
    assert (spec(silent)[MASK > 0] > 0).all()
    loss, gradient = loss_and_gradient(spec, replace(silent, reference_logprobs=tokens.logprobs.detach()))
    assert loss.item() == 0.0
    assert gradient.count_nonzero() == 0


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_kl_estimators_are_unbiased_on_the_tokens_of_their_own_policy(direction: str, estimator: str) -> None:
    """Expected over the vocabulary under p (forward) or p_ref (reverse): exactly KL(p || p_ref) or KL(p_ref || p)."""
    generator = torch.Generator().manual_seed(3)
    policy, reference = torch.randn(2, 6, generator=generator, dtype=torch.float64).log_softmax(-1)
    vocabulary = Tokens(
        logprobs=policy.unsqueeze(-1),
        mask=torch.ones(6, 1),
        weights=torch.zeros(6, 1, dtype=torch.float64),
        reference_logprobs=reference.unsqueeze(-1),
    )
    options = {"coefficient": 1.0, "direction": direction, "estimator": estimator}
    terms = LossSpec("sft_kl", options)(vocabulary).squeeze(-1)
    own, other = (policy, reference) if direction == "forward" else (reference, policy)
    expected = (own.exp() * (own - other)).sum()
    torch.testing.assert_close((own.exp() * terms).sum(), expected, rtol=1e-13, atol=0)


def test_answers_of_one_token_have_one_geometric_mean() -> None:
    """The mean probability per token is the answer's probability, and both are the token's: all DFT losses agree."""
    _, _, tokens = logits_and_tokens()
    single = replace(tokens, mask=(torch.arange(5) == 2).long().expand(3, 5))
    assert_same_loss(LossSpec("dft_geometric"), LossSpec("dft_sentence"), single)
    assert_same_loss(LossSpec("dft"), LossSpec("dft_sentence"), single)


def test_chord_phi_is_dft_times_what_is_not_known_yet() -> None:
    """p (1 - p) = p times (1 - p)."""
    _, _, tokens = logits_and_tokens()
    assert_same_loss(LossSpec("chord_phi"), LossSpec("dft"), tokens, factor=1 - tokens.logprobs.detach().exp())


def test_the_importance_ratio_of_the_policy_itself_has_the_gradient_of_reinforce() -> None:
    """old = policy: every ratio is 1 and d(-A p / p_old) = -A d log p."""
    _, _, tokens = logits_and_tokens()
    current = replace(tokens, old_logprobs=tokens.logprobs.detach())
    _, gradient = loss_and_gradient(LossSpec("importance_ratio"), current)
    _, expected = loss_and_gradient(LossSpec("policy_gradient"), current)
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=0)


def test_shaping_favours_improbable_tokens() -> None:
    """LUFFY: f'(p) p = gamma p / (p + gamma)^2 is largest at p = gamma; without shaping, p itself is largest at 1."""

    def slope(name: str, p: float) -> float:
        leaf = torch.tensor([[math.log(p)]], dtype=torch.float64, requires_grad=True)
        LossSpec(name)(Tokens(leaf, torch.ones(1, 1), torch.ones(1, 1))).sum().backward()
        assert leaf.grad is not None
        return -leaf.grad.item()

    assert slope("shaped_probability", 0.1) == pytest.approx(0.25, rel=1e-13)
    assert slope("shaped_probability", 1.0) == pytest.approx(0.1 / 1.1**2, rel=1e-13)
    assert slope("probability", 0.1) == pytest.approx(0.1, rel=1e-13)
    assert slope("probability", 1.0) == 1.0


def test_srft_on_demonstrations_is_the_sum_of_its_two_terms() -> None:
    """Each term alone: coefficient 0 leaves -A p, advantage 0 leaves 0.5 exp(-H) (-log p) (AMFT's description)."""
    _, _, tokens = logits_and_tokens()
    assert_same_loss(LossSpec("srft_demonstration", {"coefficient": 0.0}), LossSpec("probability"), tokens)
    ones, zeros = torch.ones_like(WEIGHTS), torch.zeros_like(WEIGHTS)
    described = LossSpec("srft_demonstration")(replace(tokens, weights=zeros))
    imitation = LossSpec("entropy_aware_sft")(replace(tokens, weights=ones))
    torch.testing.assert_close(described, imitation, rtol=1e-14, atol=1e-15)
    whole, reinforced = LossSpec("srft_demonstration")(tokens), LossSpec("probability")(tokens)
    torch.testing.assert_close(whole, imitation + reinforced, rtol=1e-14, atol=1e-15)


def test_srft_on_rollouts_splits_by_the_sign_of_the_advantage() -> None:
    """0.1 exp(H) (-log p) where A > 0; REINFORCE with A = -1 elsewhere; nothing there in AMFT's description."""
    _, _, tokens = logits_and_tokens()
    ones = torch.ones_like(WEIGHTS)
    positive, negative = replace(tokens, weights=ones), replace(tokens, weights=-ones)
    aware = LossSpec("entropy_aware_sft", {"coefficient": 0.1, "sign": 1.0})
    assert_same_loss(LossSpec("srft_rollout"), aware, positive)
    assert_same_loss(LossSpec("srft_rollout"), LossSpec("policy_gradient"), negative)
    assert_same_loss(LossSpec("srft_rollout"), LossSpec("srft_rollout"), replace(tokens, weights=0 * ones))
    _, gradient = loss_and_gradient(LossSpec("srft_rollout", {"negatives": 0.0}), negative)
    assert gradient.count_nonzero() == 0


def test_only_the_sign_of_a_rollout_matters_to_srft() -> None:
    """Scaling the weights by a positive number changes nothing."""
    _, _, tokens = logits_and_tokens()
    scaled = replace(tokens, weights=3 * WEIGHTS)
    torch.testing.assert_close(LossSpec("srft_rollout")(scaled), LossSpec("srft_rollout")(tokens), rtol=0, atol=0)


def test_srft_over_the_batch_is_srft_over_sequences_of_that_entropy() -> None:
    """Where every token has the batch's mean entropy, the two scopes are one loss."""
    _, _, tokens = logits_and_tokens()
    level = replace(tokens, entropy=torch.full_like(tokens.logprobs.detach(), BATCH_ENTROPY))
    for name in ("srft_demonstration", "srft_rollout", "entropy_aware_sft"):
        assert_same_loss(LossSpec(name, {"entropy_scope": "batch"}), LossSpec(name), level)
