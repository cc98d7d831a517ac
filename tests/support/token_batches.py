"""Small batches for the tests of token losses: every loss with its options, and an answer to check by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recipe.amft.algorithm.losses import token_mean
from recipe.amft.algorithm.token_losses import TOKEN_LOSSES, LossSpec, Tokens

L, ROOT = math.log(2), math.sqrt(2)
LENGTHS = (4, 1, 2)  # learned tokens of the three sequences; a fourth position is masked out between the others
MASK = torch.tensor([[1, 1, 1, 0, 1], [0, 1, 0, 0, 0], [1, 0, 0, 1, 0]])
WEIGHTS = torch.tensor([[1.0], [-0.5], [2.0]], dtype=torch.float64)
BATCH_ENTROPY = 0.7
CASES = [LossSpec(name) for name in TOKEN_LOSSES] + [
    LossSpec("iw_sft", {"tau": 2.0}),
    LossSpec("iw_sft", {"largest": 0.9}),
    LossSpec("sft_kl", {"direction": "reverse", "coefficient": 0.7}),
    LossSpec("sft_kl", {"estimator": "k1"}),
    LossSpec("sft_kl", {"direction": "reverse", "estimator": "k1"}),
    LossSpec("shaped_probability", {"gamma": 0.3}),
    LossSpec("entropy_aware_sft", {"coefficient": 0.1, "sign": 1.0}),
    LossSpec("srft_demonstration", {"coefficient": 0.25, "sign": 1.0}),
    LossSpec("srft_demonstration", {"sft_loss": "dft"}),
    LossSpec("srft_demonstration", {"sft_loss": "iw_sft", "sft_options": {"tau": 2.0}, "coefficient": 0.25}),
    LossSpec("srft_rollout", {"coefficient": 0.2, "negatives": 0.0}),
    LossSpec("entropy_aware_sft", {"entropy_scope": "batch"}),
    LossSpec("srft_demonstration", {"entropy_scope": "batch"}),
    LossSpec("srft_rollout", {"entropy_scope": "batch"}),
]


def identify(spec: LossSpec) -> str:
    return "-".join([spec.name, *(f"{key}={value}" for key, value in spec.options.items())])


every_case = pytest.mark.parametrize("spec", CASES, ids=identify)


def chosen_logprobs(logits: Tensor, chosen: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)


def logits_and_tokens(seed: int = 0) -> tuple[Tensor, Tensor, Tokens]:
    """Logits (3, 5, 6) of a policy, the tokens chosen (3, 5), and `Tokens` with a reference and an old policy."""
    generator = torch.Generator().manual_seed(seed)
    logits, reference, old = torch.randn(3, 3, 5, 6, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    chosen = torch.randint(6, (3, 5), generator=generator)
    logs = logits.detach().log_softmax(-1)
    return logits, chosen, Tokens(
        logprobs=chosen_logprobs(logits, chosen),
        mask=MASK,
        weights=WEIGHTS,
        entropy=-(logs.exp() * logs).sum(-1),
        reference_logprobs=chosen_logprobs(reference, chosen),
        old_logprobs=chosen_logprobs(old, chosen),
        batch_entropy=BATCH_ENTROPY,
    )  # fmt: skip


def rows_of(tokens: Tokens, rows: slice | list[int]) -> Tokens:
    """A micro-batch: some rows of the tensors."""
    parts = {name: value[rows] if isinstance(value, Tensor) else value for name, value in vars(tokens).items()}
    return Tokens(**parts)


def loss_and_gradient(spec: LossSpec, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """The mean over learned tokens, and its gradient in a fresh leaf of log-probabilities."""
    leaf = tokens.logprobs.detach().clone().requires_grad_()
    loss = token_mean(spec(replace(tokens, logprobs=leaf)), tokens.mask, num_tokens=int(MASK.sum()))
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def hand_tokens(weight: float) -> Tokens:
    """One answer of two tokens, with a third position that is not learned.

    p = 1/2, 1/4; p_ref = 1/4, 1/4; p_old = 1/4, 1/2; entropies log 2 and 0, in the batch log 2.
    """

    def row(*values: float) -> Tensor:
        return torch.tensor([[*values, 7.0]], dtype=torch.float64)

    return Tokens(
        logprobs=row(-L, -2 * L),
        mask=torch.tensor([[1, 1, 0]]),
        weights=torch.tensor([[weight]], dtype=torch.float64),
        entropy=row(L, 0.0),
        reference_logprobs=row(-2 * L, -2 * L),
        old_logprobs=row(-2 * L, -L),
        batch_entropy=L,
    )
