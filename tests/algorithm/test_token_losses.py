"""Every token loss: plain loops, hand cases, analytic gradients, masks, micro-batches, errors."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import pytest
import torch
from token_batches import (
    BATCH_ENTROPY,
    MASK,
    ROOT,
    WEIGHTS,
    L,
    every_case,
    hand_tokens,
    logits_and_tokens,
    loss_and_gradient,
    rows_of,
)
from torch import Tensor

from recipe.amft.algorithm.losses import token_mean
from recipe.amft.algorithm.token_losses import DEMONSTRATION_LOSSES, NEEDS_REFERENCE, TOKEN_LOSSES, LossSpec, Tokens

# ---- against the formulas --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """The learned tokens of one sequence as plain numbers: log-probabilities, entropies, and the sequence's weight."""

    policy: list[float]
    reference: list[float]
    old: list[float]
    entropies: list[float]
    weight: float

    def entropy(self, scope: str) -> float:
        return BATCH_ENTROPY if scope == "batch" else sum(self.entropies) / len(self.entropies)

    @property
    def log_ratio(self) -> float:
        """Mean over tokens of log p - log p_ref."""
        return sum(a - b for a, b in zip(self.policy, self.reference, strict=True)) / len(self.policy)


def answers_of(tokens: Tokens) -> list[tuple[Answer, list[int]]]:
    """Each sequence with the positions of its learned tokens."""
    found = []
    for row in range(len(tokens.mask)):
        positions = [column for column in range(tokens.mask.shape[1]) if tokens.mask[row, column]]

        def numbers(values: Tensor, row: int = row, positions: list[int] = positions) -> list[float]:
            return [values[row, column].item() for column in positions]

        answer = Answer(
            numbers(tokens.logprobs),
            numbers(tokens.reference_logprobs),
            numbers(tokens.old_logprobs),
            numbers(tokens.entropy),
            tokens.weights[row, 0].item(),
        )
        found.append((answer, positions))
    return found


def kl_term(a: Answer, t: int, direction: str, estimator: str) -> float:
    p, q = math.exp(a.policy[t]), math.exp(a.reference[t])
    ratio = q / p if direction == "forward" else p / q
    return ratio - math.log(ratio) - 1 if estimator == "k3" else -math.log(ratio)


def kl_slope(a: Answer, t: int, direction: str, estimator: str) -> float:
    """d/d log p of the term above."""
    p, q = math.exp(a.policy[t]), math.exp(a.reference[t])
    if estimator == "k1":
        return 1.0 if direction == "forward" else -1.0
    return 1 - q / p if direction == "forward" else p / q - 1


def probability(a: Answer, t: int) -> float:
    return math.exp(a.policy[t])


def srft_on_demonstrations(
    which: int, a: Answer, t: int, coefficient=0.5, sign=-1, entropy_scope="sequence", sft_loss="sft", sft_options=None
) -> float:
    """The loss (`which` 0) or its derivative (1), with the formula of L_SFT at weight 1."""
    sft = FORMULAS[sft_loss][which](replace(a, weight=1.0), t, **(sft_options or {}))
    return coefficient * math.exp(sign * a.entropy(entropy_scope)) * sft - a.weight * probability(a, t)


# name: (loss of token t, its derivative with respect to log p_t). Defaults are the papers' numbers.
Formula = Callable[..., float]
FORMULAS: dict[str, tuple[Formula, Formula]] = {
    "sft": (lambda a, t: -a.weight * a.policy[t], lambda a, t: -a.weight),
    "dft": (
        lambda a, t: -a.weight * probability(a, t) * a.policy[t],
        lambda a, t: -a.weight * probability(a, t),
    ),
    "dft_sentence": (
        lambda a, t: -a.weight * math.prod(map(math.exp, a.policy)) * a.policy[t],
        lambda a, t: -a.weight * math.prod(map(math.exp, a.policy)),
    ),
    "dft_geometric": (
        lambda a, t: -a.weight * math.prod(map(math.exp, a.policy)) ** (1 / len(a.policy)) * a.policy[t],
        lambda a, t: -a.weight * math.prod(map(math.exp, a.policy)) ** (1 / len(a.policy)),
    ),
    "chord_phi": (
        lambda a, t: -a.weight * probability(a, t) * (1 - probability(a, t)) * a.policy[t],
        lambda a, t: -a.weight * probability(a, t) * (1 - probability(a, t)),
    ),
    "iw_sft": (
        lambda a, t, tau=1.0, largest=16.0: -a.weight * min(math.exp(tau * a.log_ratio), largest) * a.policy[t],
        lambda a, t, tau=1.0, largest=16.0: -a.weight * min(math.exp(tau * a.log_ratio), largest),
    ),
    "sft_kl": (
        lambda a, t, coefficient=0.2, direction="forward", estimator="k3": (
            -a.weight * a.policy[t] + coefficient * kl_term(a, t, direction, estimator)
        ),
        lambda a, t, coefficient=0.2, direction="forward", estimator="k3": (
            -a.weight + coefficient * kl_slope(a, t, direction, estimator)
        ),
    ),
    "policy_gradient": (lambda a, t: -a.weight * a.policy[t], lambda a, t: -a.weight),
    "importance_ratio": (
        lambda a, t: -a.weight * probability(a, t) / math.exp(a.old[t]),
        lambda a, t: -a.weight * probability(a, t) / math.exp(a.old[t]),
    ),
    "shaped_probability": (
        lambda a, t, gamma=0.1: -a.weight * probability(a, t) / (probability(a, t) + gamma),
        lambda a, t, gamma=0.1: -a.weight * gamma * probability(a, t) / (probability(a, t) + gamma) ** 2,
    ),
    "probability": (lambda a, t: -a.weight * probability(a, t), lambda a, t: -a.weight * probability(a, t)),
    "entropy_aware_sft": (
        lambda a, t, coefficient=0.5, sign=-1, entropy_scope="sequence": (
            -a.weight * coefficient * math.exp(sign * a.entropy(entropy_scope)) * a.policy[t]
        ),
        lambda a, t, coefficient=0.5, sign=-1, entropy_scope="sequence": (
            -a.weight * coefficient * math.exp(sign * a.entropy(entropy_scope))
        ),
    ),
    "srft_demonstration": (partial(srft_on_demonstrations, 0), partial(srft_on_demonstrations, 1)),
    "srft_rollout": (
        lambda a, t, coefficient=0.1, negatives=1.0, entropy_scope="sequence": (
            -coefficient * math.exp(a.entropy(entropy_scope)) * a.policy[t] if a.weight > 0 else negatives * a.policy[t]
        ),
        lambda a, t, coefficient=0.1, negatives=1.0, entropy_scope="sequence": (
            -coefficient * math.exp(a.entropy(entropy_scope)) if a.weight > 0 else negatives
        ),
    ),
}  # fmt: skip


def test_every_loss_has_a_formula() -> None:
    """A new loss cannot be added without its plain formula here."""
    assert set(FORMULAS) == set(TOKEN_LOSSES)
    assert set(DEMONSTRATION_LOSSES) < set(TOKEN_LOSSES)


@every_case
def test_values_equal_the_formula_in_plain_loops(spec: LossSpec) -> None:
    """Token by token, with each sequence's own mean, product or weight taken over its learned tokens only."""
    _, _, tokens = logits_and_tokens()
    values = spec(tokens)
    assert values.shape == MASK.shape
    for row, (answer, positions) in enumerate(answers_of(tokens)):
        for t, column in enumerate(positions):
            expected = FORMULAS[spec.name][0](answer, t, **spec.options)
            assert values[row, column].item() == pytest.approx(expected, rel=1e-13, abs=1e-15)


@every_case
def test_gradients_equal_the_analytic_expression(spec: LossSpec) -> None:
    """d loss / d logits = (d loss_t / d log p_t) (onehot - softmax) on learned tokens, exactly 0 elsewhere.

    So weights that are stopped gradients contribute nothing, and no token's loss depends on another token's gradient.
    """
    logits, chosen, tokens = logits_and_tokens()
    (gradient,) = torch.autograd.grad(token_mean(spec(tokens), MASK, num_tokens=1), logits)
    probabilities = logits.detach().softmax(-1)
    expected = torch.zeros_like(gradient)
    for row, (answer, positions) in enumerate(answers_of(tokens)):
        for t, column in enumerate(positions):
            onehot = torch.nn.functional.one_hot(chosen[row, column], 6)
            slope = FORMULAS[spec.name][1](answer, t, **spec.options)
            expected[row, column] = slope * (onehot - probabilities[row, column])
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
    assert gradient[MASK == 0].count_nonzero() == 0


def test_the_chosen_logit_of_dft_has_the_gradient_minus_p_times_one_minus_p() -> None:
    """-sg(p) log p has the gradient of -p: -p (1 - p) for the logit of the chosen token."""
    logits, chosen, tokens = logits_and_tokens()
    unweighted = replace(tokens, weights=torch.ones_like(WEIGHTS))
    loss = token_mean(LossSpec("dft")(unweighted), MASK, num_tokens=1)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (of_minus_p,) = torch.autograd.grad(-tokens.logprobs.exp()[MASK > 0].sum(), logits)
    torch.testing.assert_close(gradient, of_minus_p, rtol=1e-12, atol=1e-15)
    p = tokens.logprobs.detach().exp()
    own = gradient.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(own[MASK > 0], (-p * (1 - p))[MASK > 0], rtol=1e-12, atol=1e-15)


# ---- hand cases ------------------------------------------------------------------------------------------------------

# What each loss is on the two tokens of `hand_tokens`.
HAND_CASES = [
    ("sft", {}, 2.0, [2 * L, 4 * L]),
    ("dft", {}, 2.0, [L, L]),
    ("dft_sentence", {}, 2.0, [L / 4, L / 2]),
    ("dft_geometric", {}, 2.0, [2 * L / 8**0.5, 4 * L / 8**0.5]),
    ("chord_phi", {}, 2.0, [L / 2, 3 / 4 * L]),
    ("iw_sft", {}, 2.0, [2 * ROOT * L, 4 * ROOT * L]),
    ("iw_sft", {"tau": 2.0}, 2.0, [4 * L, 8 * L]),
    ("iw_sft", {"tau": 20.0}, 1.0, [16 * L, 32 * L]),
    ("iw_sft", {"largest": 1.25}, 1.0, [1.25 * L, 2.5 * L]),
    ("sft_kl", {}, 1.0, [L + 0.2 * (L - 0.5), 2 * L]),
    ("sft_kl", {"direction": "reverse"}, 1.0, [L + 0.2 * (1 - L), 2 * L]),
    ("sft_kl", {"estimator": "k1"}, 1.0, [1.2 * L, 2 * L]),
    ("sft_kl", {"estimator": "k1", "direction": "reverse"}, 1.0, [0.8 * L, 2 * L]),
    ("policy_gradient", {}, -1.0, [-L, -2 * L]),
    ("importance_ratio", {}, 2.0, [-4.0, -1.0]),
    ("shaped_probability", {}, 2.0, [-5 / 3, -10 / 7]),
    ("shaped_probability", {"gamma": 0.25}, -1.0, [2 / 3, 1 / 2]),
    ("probability", {}, 2.0, [-1.0, -1 / 2]),
    ("entropy_aware_sft", {}, 2.0, [L / ROOT, 2 * L / ROOT]),
    ("entropy_aware_sft", {"sign": 1.0}, 2.0, [L * ROOT, 2 * L * ROOT]),
    ("srft_demonstration", {}, 2.0, [L / (2 * ROOT) - 1, L / ROOT - 1 / 2]),
    ("srft_demonstration", {"sft_loss": "dft"}, 2.0, [L / (4 * ROOT) - 1, L / (4 * ROOT) - 1 / 2]),
    ("srft_demonstration", {"sign": 1.0}, -1.0, [L / ROOT + 1 / 2, ROOT * L + 1 / 4]),
    ("srft_rollout", {}, 1.0, [0.1 * ROOT * L, 0.2 * ROOT * L]),
    ("srft_rollout", {}, -1.0, [-L, -2 * L]),
    ("srft_rollout", {"negatives": 0.0}, -1.0, [0.0, 0.0]),
    ("entropy_aware_sft", {"entropy_scope": "batch"}, 2.0, [L / 2, L]),
    ("srft_demonstration", {"entropy_scope": "batch"}, 2.0, [L / 4 - 1, L / 2 - 1 / 2]),
    ("srft_rollout", {"entropy_scope": "batch"}, 1.0, [0.2 * L, 0.4 * L]),
]


@pytest.mark.parametrize(("name", "options", "weight", "expected"), HAND_CASES)
def test_hand_cases(name: str, options: dict, weight: float, expected: list[float]) -> None:
    """Closed forms on one answer whose probabilities are powers of two."""
    values = LossSpec(name, options)(hand_tokens(weight))[0, :2]
    assert values.tolist() == pytest.approx(expected, rel=1e-13, abs=1e-15)


def test_the_hand_cases_hold_every_loss() -> None:
    """None is left out."""
    assert {name for name, *_ in HAND_CASES} == set(TOKEN_LOSSES)


# ---- masks and micro-batches -----------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_under_mask_zero_has_no_influence(spec: LossSpec, bad: float) -> None:
    """NaN, infinities and huge numbers in the log-probabilities, entropies, reference or old policy of a masked token.

    The value and the gradient are those without them, to the bit, and the gradient there is 0 (0 times NaN is NaN).
    """
    _, _, tokens = logits_and_tokens()
    dirty = {
        name: torch.where(MASK.bool(), value.detach(), torch.tensor(bad, dtype=torch.float64))
        for name, value in vars(tokens).items()
        if name not in ("mask", "weights", "batch_entropy")
    }
    loss, gradient = loss_and_gradient(spec, replace(tokens, **dirty))
    clean_loss, clean_gradient = loss_and_gradient(spec, tokens)
    assert torch.equal(loss, clean_loss)
    assert torch.equal(gradient, clean_gradient)
    assert gradient[MASK == 0].count_nonzero() == 0


@every_case
@pytest.mark.parametrize("parts", [[[0], [1], [2]], [[2, 0], [1]], [[1], [0, 2]]])
def test_micro_batches_add_up_to_the_whole_batch(spec: LossSpec, parts: list[list[int]]) -> None:
    """With the global token count as denominator, neither the split nor the order of the rows is visible."""
    _, _, tokens = logits_and_tokens()
    whole, gradient = loss_and_gradient(spec, tokens)
    pieces = [loss_and_gradient(spec, rows_of(tokens, rows)) for rows in parts]
    torch.testing.assert_close(sum(loss for loss, _ in pieces), whole, rtol=1e-13, atol=1e-15)
    order = torch.tensor([row for part in parts for row in part])
    joined = torch.cat([piece for _, piece in pieces])[order.argsort()]
    torch.testing.assert_close(joined, gradient, rtol=1e-13, atol=1e-15)


@every_case
def test_a_sequence_without_a_learned_token_adds_nothing(spec: LossSpec) -> None:
    """The trainer's padding rows: finite values, no loss and no gradient."""
    _, _, tokens = logits_and_tokens()
    empty = replace(tokens, mask=torch.zeros_like(MASK))
    assert spec(empty).isfinite().all()
    loss, gradient = loss_and_gradient(spec, empty)
    assert loss.item() == 0.0
    assert gradient.count_nonzero() == 0


@every_case
def test_the_type_of_the_mask_does_not_matter(spec: LossSpec) -> None:
    """Integer, boolean and floating masks give the same numbers."""
    _, _, tokens = logits_and_tokens()
    for mask in (MASK.bool(), MASK.double()):
        torch.testing.assert_close(spec(replace(tokens, mask=mask)), spec(tokens), rtol=0, atol=0)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEEDS_REFERENCE)
def test_a_missing_reference_is_said_and_foreseen(name: str) -> None:
    """The loss names itself, and `needs_reference` tells the driver beforehand."""
    assert LossSpec(name).needs_reference
    within = LossSpec("srft_demonstration", {"sft_loss": name})
    assert within.needs_reference
    with pytest.raises(ValueError, match=f"{name} needs log-probabilities of the reference policy"):
        within(replace(hand_tokens(1.0), reference_logprobs=None))
    with pytest.raises(ValueError, match=f"{name} needs log-probabilities of the reference policy"):
        LossSpec(name)(replace(hand_tokens(1.0), reference_logprobs=None))


@pytest.mark.parametrize(
    ("missing", "names"),
    [
        ("old_logprobs", ["importance_ratio"]),
        ("entropy", ["entropy_aware_sft", "srft_demonstration", "srft_rollout"]),
        ("reference_logprobs", list(NEEDS_REFERENCE)),
    ],
)
def test_each_loss_reads_what_it_says_and_nothing_else(missing: str, names: list[str]) -> None:
    """Without old log-probabilities, entropies or a reference exactly the losses that use them are refused."""
    incomplete = replace(hand_tokens(1.0), **{missing: None})
    for name in TOKEN_LOSSES:
        if name in names:
            with pytest.raises(ValueError, match=r"needs (old log-prob|the policy's entropy|log-probabilities of)"):
                LossSpec(name)(incomplete)
        else:
            LossSpec(name)(incomplete)
            assert not (missing == "reference_logprobs" and LossSpec(name).needs_reference)


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (("stf",), ["token loss='stf'", "sft, dft,", "srft_rollout"]),
        (("iw_sft", {"tua": 1.0}), ["iw_sft", "'tua'", "tau, largest"]),
        (("sft", {"tau": 1.0}), ["sft", "'tau'", "none"]),
        (("sft", {"tokens": 1.0}), ["sft", "'tokens'", "none"]),
        (("sft", {}, "tokens"), ["'tokens'", "token, sequence"]),
    ],
)
def test_unknown_names_and_options_are_refused_with_the_known_ones(arguments: tuple, fragments: list[str]) -> None:
    """A specification is checked when it is built, on the driver."""
    with pytest.raises(ValueError) as error:
        LossSpec(*arguments)
    assert all(fragment in str(error.value) for fragment in fragments), error.value


def test_the_batchs_entropy_must_be_there_where_it_is_asked_for() -> None:
    """And it is foreseen; a scope that is not known is refused."""
    spec = LossSpec("srft_rollout", {"entropy_scope": "batch"})
    assert spec.needs_batch_entropy
    assert not LossSpec("srft_rollout").needs_batch_entropy
    with pytest.raises(ValueError, match="needs the policy's mean entropy over the whole batch"):
        spec(replace(hand_tokens(1.0), batch_entropy=None))
    with pytest.raises(ValueError, match="entropy_scope='token' is not known"):
        LossSpec("srft_rollout", {"entropy_scope": "token"})(hand_tokens(1.0))


def test_an_unknown_sft_loss_of_srft_is_refused() -> None:
    """Losses of rollouts are none: SRFT adds its own RL term."""
    with pytest.raises(ValueError, match="sft_loss='policy_gradient' is not known; choose one of sft, dft"):
        LossSpec("srft_demonstration", {"sft_loss": "policy_gradient"})(hand_tokens(1.0))


@pytest.mark.parametrize(("option", "value"), [("direction", "backward"), ("estimator", "k2")])
def test_unknown_choices_of_sft_kl_are_refused(option: str, value: str) -> None:
    """They name what is allowed."""
    with pytest.raises(ValueError, match=f"sft_kl {option}='{value}' is not known; choose one of"):
        LossSpec("sft_kl", {option: value})(hand_tokens(1.0))
