"""Token losses by name: what a demonstration or a rollout contributes, token by token.

Shapes: B sequences, T response tokens. Every loss is a pure function of `Tokens` that returns (B, T); what stands under
mask 0 is ignored. `sg` is a stopped gradient (`detach`). The caller sums over the mask and divides by a count of the
whole batch, so that partial sums over micro-batches and ranks simply add up.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .checks import require_choice

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Tokens:
    """One micro-batch. (B, T), but for `weights` (B, 1); None where nobody asked for it.

    Attributes:
        logprobs: log p of each token under the policy, with gradient.
        mask: 1 on tokens that are learned.
        weights: advantage or weight of each sequence, given by the driver; ones without it.
        entropy: of the policy at each token, nats, no gradient.
        batch_entropy: its mean over all learned tokens of the batch, of which this is a part.
        reference_logprobs: under the reference policy.
        old_logprobs: under the policy that generated the tokens.
    """

    logprobs: Tensor
    mask: Tensor
    weights: Tensor
    entropy: Tensor | None = None
    reference_logprobs: Tensor | None = None
    old_logprobs: Tensor | None = None
    batch_entropy: float | None = None

    def clean(self) -> "Tokens":
        """The same with 0 wherever the mask is 0: a NaN there, times the gradient 0 of a masked sum, would be NaN."""
        learned = self.mask.bool()
        return Tokens(
            logprobs=torch.where(learned, self.logprobs, 0.0),
            mask=self.mask,
            weights=self.weights,
            entropy=None if self.entropy is None else torch.where(learned, self.entropy, 0.0),
            reference_logprobs=(
                None if self.reference_logprobs is None else torch.where(learned, self.reference_logprobs, 0.0)
            ),
            old_logprobs=None if self.old_logprobs is None else torch.where(learned, self.old_logprobs, 0.0),
            batch_entropy=self.batch_entropy,
        )

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Mean of `values` over each sequence's own tokens, (B, 1); 0 for a sequence without any."""
        masked = torch.where(self.mask.bool(), values, torch.zeros_like(values))
        return masked.sum(-1, keepdim=True) / self.mask.sum(-1, keepdim=True).clamp(min=1)

    def sequence_sum(self, values: Tensor) -> Tensor:
        """Sum of `values` over each sequence's own tokens, (B, 1)."""
        return torch.where(self.mask.bool(), values, torch.zeros_like(values)).sum(-1, keepdim=True)


def sft(tokens: Tokens) -> Tensor:
    """Negative log-likelihood, -w log p (AMFT Eq. 2)."""
    return -tokens.weights * tokens.logprobs


def dft(tokens: Tokens) -> Tensor:
    """Dynamic fine-tuning, -w sg(p) log p (DFT Eq. 9): the gradient is that of -w p."""
    return -tokens.weights * tokens.logprobs.detach().exp() * tokens.logprobs


def dft_sentence(tokens: Tokens) -> Tensor:
    """-w sg(prod_t p_t) log p: DFT's weight on the whole answer (DFT Table 8, "sentence level")."""
    return -tokens.weights * tokens.sequence_sum(tokens.logprobs.detach()).exp() * tokens.logprobs


def dft_geometric(tokens: Tokens) -> Tensor:
    """-w sg((prod_t p_t)^(1/T)) log p: the answer's mean probability per token (DFT Table 8, "length-normalised")."""
    return -tokens.weights * tokens.sequence_mean(tokens.logprobs.detach()).exp() * tokens.logprobs


def chord_phi(tokens: Tokens) -> Tensor:
    """-w sg(p (1 - p)) log p (CHORD-phi): neither what the policy knows nor what it would never say."""
    p = tokens.logprobs.detach().exp()
    return -tokens.weights * p * (1 - p) * tokens.logprobs


def iw_sft(tokens: Tokens, tau: float = 1.0, largest: float = 16.0) -> Tensor:
    """Importance-weighted SFT: -w sg(clamp(exp(tau mean_t(log p - log p_ref)), 0, largest)) log p."""
    ratio = tokens.sequence_mean(tokens.logprobs.detach() - _reference(tokens, "iw_sft"))
    return -tokens.weights * (tau * ratio).exp().clamp(max=largest) * tokens.logprobs


def sft_kl(tokens: Tokens, coefficient: float = 0.2, direction: str = "forward", estimator: str = "k3") -> Tensor:
    """-w log p + c KL, estimated on the demonstrations' tokens with the reference policy (SRFT's baseline SFT-KL).

    The tokens are the expert's, neither policy's: the estimate is a regulariser in the spirit of KL, not an unbiased
    one. With d = log p_ref - log p: `k3` is exp(d) - d - 1 (direction forward: as if the tokens were the policy's,
    KL(p || p_ref)) or exp(-d) + d - 1 (reverse: KL(p_ref || p)); `k1` is -d or d.
    """
    require_choice("sft_kl direction", direction, ("forward", "reverse"))
    require_choice("sft_kl estimator", estimator, ("k1", "k3"))
    difference = _reference(tokens, "sft_kl") - tokens.logprobs
    if direction == "reverse":
        difference = -difference
    kl = difference.exp() - difference - 1 if estimator == "k3" else -difference
    return -tokens.weights * tokens.logprobs + coefficient * kl


def policy_gradient(tokens: Tokens) -> Tensor:
    """REINFORCE, -A log p; without clip and ratio, for data of the current policy."""
    return -tokens.weights * tokens.logprobs


def importance_ratio(tokens: Tokens) -> Tensor:
    """-A p / p_old without a clip (LUFFY's public code on its own rollouts)."""
    if tokens.old_logprobs is None:
        raise ValueError("the importance ratio needs old log-probabilities; use it on rollouts")
    return -tokens.weights * (tokens.logprobs - tokens.old_logprobs).exp()


def shaped_probability(tokens: Tokens, gamma: float = 0.1) -> Tensor:
    """-A p / (p + gamma): LUFFY's policy shaping on demonstrations (behaviour probability 1), gradient through it."""
    p = tokens.logprobs.exp()
    return -tokens.weights * p / (p + gamma)


def probability(tokens: Tokens) -> Tensor:
    """-A p: the ratio to a behaviour policy of probability 1, not clipped (SRFT's RL term on demonstrations)."""
    return -tokens.weights * tokens.logprobs.exp()


def entropy_aware_sft(
    tokens: Tokens, coefficient: float = 0.5, sign: float = -1.0, entropy_scope: str = "sequence"
) -> Tensor:
    """-c sg(exp(sign H)) log p, H the mean entropy of the sequence or of the batch (SRFT: sign -1 on demonstrations,
    +1 on rollouts)."""
    return -tokens.weights * coefficient * (sign * _mean_entropy(tokens, entropy_scope)).exp() * tokens.logprobs


def srft_demonstration(
    tokens: Tokens,
    coefficient: float = 0.5,
    sign: float = -1.0,
    entropy_scope: str = "sequence",
    sft_loss: str = "sft",
    sft_options: Mapping[str, Any] = NO_OPTIONS,
) -> Tensor:
    """SRFT on demonstrations: c sg(exp(sign H)) L_SFT - A p, its SFT and its RL term; `weights` are advantages A.

    L_SFT is -log p, or another loss of `DEMONSTRATION_LOSSES` with its options.
    """
    require_choice("sft_loss", sft_loss, DEMONSTRATION_LOSSES)
    factor = coefficient * (sign * _mean_entropy(tokens, entropy_scope)).exp()
    imitated = TOKEN_LOSSES[sft_loss](replace(tokens, weights=torch.ones_like(tokens.weights)), **sft_options)
    return factor * imitated - tokens.weights * tokens.logprobs.exp()


def srft_rollout(
    tokens: Tokens, coefficient: float = 0.1, negatives: float = 1.0, entropy_scope: str = "sequence"
) -> Tensor:
    """SRFT on its own rollouts: c sg(exp(H)) (-log p) where `weights` > 0, negatives * log p where they are not."""
    positive = -coefficient * _mean_entropy(tokens, entropy_scope).exp() * tokens.logprobs
    return torch.where(tokens.weights > 0, positive, negatives * tokens.logprobs)


TOKEN_LOSSES: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        sft, dft, dft_sentence, dft_geometric, chord_phi, iw_sft, sft_kl, policy_gradient, importance_ratio,
        shaped_probability, probability, entropy_aware_sft, srft_demonstration, srft_rollout,
    )
}  # fmt: skip
DEMONSTRATION_LOSSES = ("sft", "dft", "dft_sentence", "dft_geometric", "chord_phi", "iw_sft", "sft_kl")
NEEDS_REFERENCE = ("iw_sft", "sft_kl")


@dataclass(frozen=True)
class LossSpec:
    """A token loss, its options, and what the sum over tokens is divided by.

    `per` is "token" (all learned tokens of the batch) or "sequence" (all its sequences). With `entropy_bonus` the
    actor's entropy coefficient times the mean entropy of the tokens is taken off, as verl's policy loss does.
    """

    name: str = "sft"
    options: Mapping[str, Any] = field(default_factory=dict)
    per: str = "token"
    entropy_bonus: bool = False

    def __post_init__(self) -> None:
        require_choice("token loss", self.name, tuple(TOKEN_LOSSES))
        require_choice("normalisation of a token loss", self.per, ("token", "sequence"))
        allowed = list(inspect.signature(TOKEN_LOSSES[self.name]).parameters)[1:]
        for option in self.options:
            if option not in allowed:
                known = ", ".join(allowed) or "none"
                raise ValueError(f"token loss {self.name} has no option {option!r}; its options: {known}.")

    @property
    def needs_reference(self) -> bool:
        return self.name in NEEDS_REFERENCE or self.options.get("sft_loss") in NEEDS_REFERENCE

    @property
    def needs_batch_entropy(self) -> bool:
        return self.options.get("entropy_scope") == "batch"

    def __call__(self, tokens: Tokens) -> Tensor:
        """(B, T) loss per token."""
        return TOKEN_LOSSES[self.name](tokens.clean(), **self.options)


def _reference(tokens: Tokens, name: str) -> Tensor:
    if tokens.reference_logprobs is None:
        raise ValueError(f"the token loss {name} needs log-probabilities of the reference policy")
    return tokens.reference_logprobs


def _mean_entropy(tokens: Tokens, scope: str) -> Tensor:
    """H, (B, 1): the mean over each sequence's tokens, or over all tokens of the batch."""
    require_choice("entropy_scope", scope, ("batch", "sequence"))
    if scope == "batch":
        if tokens.batch_entropy is None:
            raise ValueError("this token loss needs the policy's mean entropy over the whole batch")
        return torch.full_like(tokens.logprobs[:, :1], tokens.batch_entropy)
    if tokens.entropy is None:
        raise ValueError("this token loss needs the policy's entropy at each token")
    return tokens.sequence_mean(tokens.entropy.detach())
