"""Eq. 3 on gradients: g = (1 - mu) s_R g_R + mu s_S g_S = s_R g_R + mu d, with the disagreement d = s_S g_S - s_R g_R.

Mixing gradients instead of losses costs nothing and yields d, from which the meta-gradient is made (Eq. 24).
Gradients are lists with one entry per parameter; None is a parameter without a gradient, which counts as zero.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import require_choice, require_range

Gradients = list[Tensor | None]

MIXTURE_SCALES = ("none", "equal_norm", "capped")


@dataclass(frozen=True)
class MixtureConfig:
    """How the two gradients are scaled before they are mixed."""

    # none: Eq. 3 as printed; equal_norm: both at the mean of their running norms; capped: so while the SFT gradient is
    # the longer one, otherwise none: what is learned by heart fades.
    scale: str = "capped"
    decay: float = 0.9  # of the running norms, per update, in [0, 1)

    def __post_init__(self) -> None:
        require_choice("mixture.scale", self.scale, MIXTURE_SCALES)
        require_range("mixture.decay", self.decay, 0.0, 1.0, high_included=False)


@dataclass(frozen=True)
class MixtureState:
    """Running means of the two gradient norms, before the correction of their bias towards the initial 0."""

    sft_norm: float = 0.0
    rl_norm: float = 0.0
    num_updates: int = 0


def update_scales(
    state: MixtureState, sft_norm: float, rl_norm: float, config: MixtureConfig
) -> tuple[MixtureState, float, float]:
    """Scales (s_S, s_R) of the two gradients: s_X = (n_S + n_R) / (2 n_X), n_X the bias-corrected running norm.

    With `capped` both are 1 where n_S <= n_R. A gradient whose running norm is 0 gets scale 1. When either norm is not
    finite the optimiser will skip the step, so neither enters the running means. The scales do not depend on mu.
    """
    if config.scale == "none":
        return state, 1.0, 1.0
    if math.isfinite(sft_norm) and math.isfinite(rl_norm):
        state = MixtureState(
            sft_norm=config.decay * state.sft_norm + (1 - config.decay) * sft_norm,
            rl_norm=config.decay * state.rl_norm + (1 - config.decay) * rl_norm,
            num_updates=state.num_updates + 1,
        )
    if config.scale == "capped" and state.sft_norm <= state.rl_norm:
        return state, 1.0, 1.0
    # Both running means carry the same bias, 1 - decay**num_updates: it cancels in the ratio.
    mean = 0.5 * (state.sft_norm + state.rl_norm)
    return state, _ratio(mean, state.sft_norm), _ratio(mean, state.rl_norm)


def _ratio(target: float, norm: float) -> float:
    return target / norm if norm > 0 else 1.0


@torch.no_grad()
def mix_(
    sft_gradients: Sequence[Tensor | None],
    rl_gradients: Sequence[Tensor | None],
    sft_scale: float,
    rl_scale: float,
    weight: float,
) -> tuple[Gradients, Gradients]:
    """Return (mixed, disagreement) = (s_R g_R + weight d, d = s_S g_S - s_R g_R), overwriting both inputs (Eq. 3).

    d takes the storage of g_S, mixed that of g_R; at weight 1 they trade places, because g_R + 1 (g_S - g_R) rounds.
    Thus with scale 1 the mixed gradient is g_R at weight 0 and g_S at weight 1, to the bit. A gradient that is None in
    one phase is replaced by new zeros; None in both phases stays None.
    """
    mixed: Gradients = []
    disagreement: Gradients = []
    for sft, rl in zip(sft_gradients, rl_gradients, strict=True):
        if sft is None and rl is None:
            mixed.append(None)
            disagreement.append(None)
            continue
        sft = _scaled_(sft, rl, sft_scale)
        rl = _scaled_(rl, sft, rl_scale)
        if weight == 1.0:
            mixed.append(sft)
            disagreement.append(rl.neg_().add_(sft))
        else:
            disagreement.append(sft.sub_(rl))
            # At weight 0 nothing is added: 0 times an infinite SFT gradient must not reach the mixed gradient.
            mixed.append(rl.add_(sft, alpha=weight) if weight else rl)
    return mixed, disagreement


@torch.no_grad()
def add_(
    sft_gradients: Sequence[Tensor | None] | None,
    rl_gradients: Sequence[Tensor | None] | None,
    sft_scale: float,
    rl_scale: float,
) -> Gradients:
    """s_R g_R + s_S g_S, overwriting both inputs; a missing phase counts as zero, and scale 1 leaves it to the bit."""
    if sft_gradients is None or rl_gradients is None:
        gradients, scale = (rl_gradients, rl_scale) if sft_gradients is None else (sft_gradients, sft_scale)
        assert gradients is not None, "a step without any gradient"
        return [gradient if gradient is None or scale == 1.0 else gradient.mul_(scale) for gradient in gradients]
    total: Gradients = []
    for sft, rl in zip(sft_gradients, rl_gradients, strict=True):
        if sft is None and rl is None:
            total.append(None)
        else:
            total.append(_scaled_(rl, sft, rl_scale).add_(_scaled_(sft, rl, sft_scale)))
    return total


def _scaled_(gradient: Tensor | None, other: Tensor | None, scale: float) -> Tensor:
    """`gradient` times `scale` in place, or new zeros in the form of `other`."""
    if gradient is None:
        assert other is not None
        return torch.zeros_like(other)
    return gradient if scale == 1.0 else gradient.mul_(scale)


@torch.no_grad()
def local_inner_products(
    pairs: Iterable[tuple[Sequence[Tensor | None], Sequence[Tensor | None]]], chunk_size: int = 1 << 24
) -> Tensor:
    """Inner products <x, y> of pairs of lists of local tensors, (num_pairs,) float64; None counts as zero.

    Accumulated in float64 over chunks of `chunk_size` elements, so that no large tensor is copied whole. Of sharded
    gradients this is one rank's part: the caller all-reduces it over the shard group, and no wider, for replicas would
    count twice.
    """
    totals = []
    for left, right in pairs:
        parts = [
            torch.dot(x_chunk.double(), y_chunk.double())
            for x, y in zip(left, right, strict=True)
            if x is not None and y is not None
            for x_chunk, y_chunk in zip(_chunks(x, chunk_size), _chunks(y, chunk_size), strict=True)
        ]
        totals.append(torch.stack(parts).sum() if parts else None)
    known = [total for total in totals if total is not None]
    zero = torch.zeros((), dtype=torch.float64, device=known[0].device if known else None)
    return torch.stack([zero if total is None else total for total in totals]) if totals else zero.new_zeros(0)


def _chunks(tensor: Tensor, chunk_size: int) -> tuple[Tensor, ...]:
    return torch.split(tensor.flatten(), chunk_size)
