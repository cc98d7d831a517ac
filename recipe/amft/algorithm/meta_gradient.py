"""The meta-gradient, d U(theta_t) / d mu = <grad U(theta_t), d theta_t / d mu> (Eq. 22), without an extra pass.

The tangent d theta / d mu is carried along the actual inner update. The mixed gradient is g = g_R + mu d with the
disagreement d = g_S - g_R (mixture.py), hence dg/dmu = d, and an optimiser step is differentiated by the chain rule:

    clipping    g -> c g,  c = min(1, C / (|g| + 1e-6))        clip_coefficient, clipped_tangent_coefficients
    SGD         theta -> theta - lr g                          sgd_tangent_: from zero, -lr d, the paper's Eq. 24
    AdamW       m, v, theta -> its three recurrences           adamw_tangent_

The one thing dropped is the dependence of the gradients on theta (Hessian terms), so one step is exact, and K steps
are exact to first order in the learning rate. One formula serves three horizons, which differ in what a step starts
from: zero at every step (the paper), zero after every meta-update, or the decayed tangent of the step before. Over
several steps the tangent is the response to one common shift of all their weights mu.

Tensors are one rank's shards of parameters, gradients and moments; lists have one entry per parameter.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .checks import require_choice, require_positive, require_range
from .mixture import Gradients

INNER_UPDATES = ("sgd", "clipped", "adamw")
HORIZONS = ("one", "window", "trace")
META_SCALES = ("literal", "no_lr", "cosine", "rms")
CLIP_EPSILON = 1e-6  # of torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True)
class MetaConfig:
    """Which inner update is differentiated, over how many steps, and in which unit the result is given."""

    inner: str = "adamw"  # sgd: plain, Eq. 24; clipped: SGD on the clipped gradient; adamw: the actual optimiser
    horizon: str = "trace"  # one: the last step (Eq. 23); window: all since the last meta-update; trace: all, decayed
    trace_decay: float = 0.9  # of the tangent per training step, in [0, 1)
    scale: str = "rms"  # literal: Eq. 25; no_lr: divided by lr; cosine: by both norms; rms: by its running RMS
    rms_decay: float = 0.95  # of the running mean square per meta-update, in [0, 1)

    def __post_init__(self) -> None:
        require_choice("controller.meta.inner", self.inner, INNER_UPDATES)
        require_choice("controller.meta.horizon", self.horizon, HORIZONS)
        require_choice("controller.meta.scale", self.scale, META_SCALES)
        require_range("controller.meta.trace_decay", self.trace_decay, 0.0, 1.0, high_included=False)
        require_range("controller.meta.rms_decay", self.rms_decay, 0.0, 1.0, high_included=False)


# --- The inner update, differentiated ---------------------------------------------------------------------------------


def clip_coefficient(norm: float, max_norm: float | None) -> float:
    """c = min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_; 1 when max_norm is None."""
    if max_norm is None:
        return 1.0
    require_positive("max_norm", max_norm, "0 would freeze the policy; None switches clipping off")
    return min(1.0, max_norm / (norm + CLIP_EPSILON))


def clipped_tangent_coefficients(norm: float, dot_g_d: float, max_norm: float | None) -> tuple[float, float]:
    """(a, b) of d(c g)/dmu = a d + b g, with g the unclipped mixed gradient, |g| = `norm`, <g, d> = `dot_g_d`.

    a = c and b = dc/dmu = -c <g, d> / (|g| (|g| + 1e-6)) where the clip is active, else (1, 0). Up to the 1e-6 the
    clipped gradient has constant length: the part of d along g drops out.
    """
    coefficient = clip_coefficient(norm, max_norm)
    if coefficient == 1.0 or norm == 0.0:
        return coefficient, 0.0
    return coefficient, -coefficient * dot_g_d / (norm * (norm + CLIP_EPSILON))


@torch.no_grad()
def sgd_tangent_(parameter_tangent: Tensor, gradient_tangent: Tensor, lr: float) -> None:
    """dtheta <- dtheta - lr dg, the derivative of an SGD step; from dtheta = 0 this is Eq. 24."""
    parameter_tangent.sub_(gradient_tangent, alpha=lr)


@torch.no_grad()
def adamw_tangent_(
    parameter_tangent: Tensor,
    first_moment_tangent: Tensor,
    second_moment_tangent: Tensor,
    gradient: Tensor,
    gradient_tangent: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: float,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Derivative of one AdamW step, in place on the three tangents; elementwise, all tensors of one shape.

    dm <- b1 dm + (1 - b1) dg
    dv <- b2 dv + 2 (1 - b2) g dg
    dtheta <- (1 - lr wd) dtheta - lr d[m' / (sqrt(v') + eps)],  m' = m / (1 - b1^step),  v' = v / (1 - b2^step)

    `gradient` is g as AdamW saw it, clipped; m = `exp_avg`, v = `exp_avg_sq` and `step` (1 after the first step) are
    those AFTER the step, lr is the one it used. Where v = 0, dv adds nothing to dtheta.
    """
    beta1, beta2 = betas
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    first_moment_tangent.mul_(beta1).add_(gradient_tangent, alpha=1 - beta1)
    second_moment_tangent.mul_(beta2).addcmul_(gradient, gradient_tangent, value=2 * (1 - beta2))

    root = (exp_avg_sq / correction2).sqrt_()
    root_tangent = (second_moment_tangent / (2 * correction2)).div_(root).masked_fill_(root == 0, 0.0)
    denominator = root.add_(eps)
    # d[m'/D] = (dm' - (m'/D) dD) / D
    update_tangent = first_moment_tangent / correction1
    update_tangent.sub_((exp_avg / correction1).div_(denominator).mul_(root_tangent)).div_(denominator)
    parameter_tangent.mul_(1 - lr * weight_decay).sub_(update_tangent, alpha=lr)


# --- The tangent over steps -------------------------------------------------------------------------------------------


@dataclass
class Tangent:
    """d theta / d mu, and d m / d mu, d v / d mu for AdamW; None is zero, so that memory is taken only where needed."""

    parameters: Gradients = field(default_factory=list)
    first_moments: Gradients = field(default_factory=list)
    second_moments: Gradients = field(default_factory=list)

    @property
    def is_zero(self) -> bool:
        """Whether no step has been taken since the last reset: there is nothing to make a meta-gradient of."""
        return all(tensor is None for tensor in self.parameters)

    def reset(self) -> None:
        """Set everything to zero and free the memory."""
        self.parameters, self.first_moments, self.second_moments = [], [], []

    def decay(self, factor: float) -> None:
        """Multiply everything by `factor`."""
        for tensors in (self.parameters, self.first_moments, self.second_moments):
            for tensor in tensors:
                if tensor is not None:
                    tensor.mul_(factor)

    def state_dict(self) -> dict[str, Gradients]:
        """What a checkpoint needs to resume with a tangent pending; shares the tensors."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Gradients]) -> None:
        """The inverse of `state_dict`; other keys are a TypeError."""
        vars(self).update(vars(Tangent(**state)))

    def start_step(self, config: MetaConfig) -> None:
        """Before a training step: horizon=one forgets the past, horizon=trace lets it fade."""
        if config.horizon == "one":
            self.reset()
        elif config.horizon == "trace":
            self.decay(config.trace_decay)

    def finish_meta_update(self, config: MetaConfig) -> None:
        """After a meta-update: horizon=window starts a new window (so does horizon=one, only to free the memory)."""
        if config.horizon != "trace":
            self.reset()


@torch.no_grad()
def advance_tangent_(
    tangent: Tangent,
    disagreement: Gradients,
    mixed: Sequence[Tensor | None],
    moments: Sequence[tuple[Tensor, Tensor] | None] | None,
    *,
    norm: float,
    dot_mixed_disagreement: float,
    max_norm: float | None,
    step: float,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    config: MetaConfig,
) -> None:
    """Carry the tangent through the optimiser step that has just been taken; consumes `disagreement`.

    `mixed` is what the optimiser left in p.grad: the CLIPPED gradient c g, which spares a copy of g, for
    d(c g)/dmu = a d + b g = a d + (b / c) (c g). `norm` = |g| and `dot_mixed_disagreement` = <g, d> are those of the
    unclipped g, over all shards. `moments` are (exp_avg, exp_avg_sq) after the step, for inner=adamw only; `step`,
    `lr`, `betas`, `eps` and `weight_decay` are those of the step, one for all parameters. A parameter whose gradient is
    None was left alone, and so is its tangent. The entries of `disagreement` are overwritten, then released.
    `Tangent.start_step` is to be called once before the first optimiser step of a training step; their tangents add up.
    ValueError for a `norm` that is not finite: the optimiser skips such a step, and so must the caller.
    """
    if not math.isfinite(norm):
        raise ValueError(f"norm={norm!r} is not finite: the optimiser skipped the step, do not advance the tangent.")
    along_disagreement, along_gradient = 1.0, 0.0
    if config.inner != "sgd":
        along_disagreement, along_gradient = clipped_tangent_coefficients(norm, dot_mixed_disagreement, max_norm)
        along_gradient /= clip_coefficient(norm, max_norm)

    parts = [tangent.parameters, tangent.first_moments, tangent.second_moments]
    for part in parts:
        part.extend([None] * (len(mixed) - len(part)))
    for index, (gradient, difference) in enumerate(zip(mixed, disagreement, strict=True)):
        if gradient is None or difference is None:
            continue
        gradient_tangent = difference.mul_(along_disagreement).add_(gradient, alpha=along_gradient)
        if config.inner == "adamw":
            theta, m, v = (_entry(part, index, gradient) for part in parts)
            exp_avg, exp_avg_sq = _moments_of(moments, index)
            hyperparameters = step, lr, betas, eps, weight_decay
            adamw_tangent_(theta, m, v, gradient, gradient_tangent, exp_avg, exp_avg_sq, *hyperparameters)
        else:
            sgd_tangent_(_entry(tangent.parameters, index, gradient), gradient_tangent, lr)
        disagreement[index] = None


def _entry(tensors: Gradients, index: int, like: Tensor) -> Tensor:
    """tensors[index], created as zeros in the form of `like` when it is None."""
    entry = tensors[index]
    if entry is None:
        entry = tensors[index] = torch.zeros_like(like)
    return entry


def _moments_of(moments: Sequence[tuple[Tensor, Tensor] | None] | None, index: int) -> tuple[Tensor, Tensor]:
    entry = moments[index] if moments is not None else None
    if entry is None:
        raise ValueError(
            f"Parameter {index} has a gradient but no AdamW moments (None); use the AdamW optimiser, or choose "
            "controller.meta.inner=clipped."
        )
    return entry


# --- The signal -------------------------------------------------------------------------------------------------------


def pooled(measurements: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the sum of several gradients of U says, one or more, each of the rollouts of other prompts.

    Each is {dot: <grad U, dtheta/dmu>, utility_norm: |grad U|, tangent_norm: |dtheta/dmu|}, and so is the result. The
    products add up. The norm of the sum is the root of the sum of squares, as if the gradients shared no direction:
    nearly so for small batches, which are mostly noise. The tangent's norm, which moves little meanwhile, is the mean.
    """
    return {
        "dot": sum(measured["dot"] for measured in measurements),
        "utility_norm": math.sqrt(sum(measured["utility_norm"] ** 2 for measured in measurements)),
        "tangent_norm": sum(measured["tangent_norm"] for measured in measurements) / len(measurements),
    }


@dataclass(frozen=True)
class MetaGradientState:
    """Running mean of (dot / |grad U|)**2 for scale=rms, before the correction of its bias towards the initial 0."""

    mean_square: float = 0.0
    num_updates: int = 0


def meta_gradient(
    dot: float,
    utility_norm: float,
    tangent_norm: float,
    lr: float,
    config: MetaConfig,
    state: MetaGradientState,
) -> tuple[float, MetaGradientState]:
    """The signal g_mu of Eq. 6 from dot = <grad U, dtheta/dmu>, positive when more imitation would raise U.

    grad U is the ASCENT direction: minus the gradient of losses.policy_gradient_loss. By `config.scale`:
    literal  dot: Eq. 25, for the tangent of Eq. 24;  no_lr  dot / lr;  cosine  dot / (|grad U| |dtheta/dmu|)
    rms      dot / |grad U| over its running root mean square, this one included: first +-1, never beyond
             +-1 / sqrt(1 - rms_decay). Independent of the unit of U, of the learning rate and of the model's size.
    A denominator of 0 gives 0. A dot that is not finite gives 0 and leaves the state alone; the caller counts it.
    """
    if not math.isfinite(dot):
        return 0.0, state
    if config.scale == "literal":
        return dot, state
    if config.scale == "no_lr":
        return _ratio(dot, lr), state
    if config.scale == "cosine":
        return _ratio(dot, utility_norm * tangent_norm), state
    dot = _ratio(dot, utility_norm)
    decay, num_updates = config.rms_decay, state.num_updates + 1
    mean_square = decay * state.mean_square + (1 - decay) * dot * dot
    root = math.sqrt(mean_square / (1 - decay**num_updates))
    return _ratio(dot, root), MetaGradientState(mean_square, num_updates)


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator > 0 else 0.0
