"""The meta-gradient against autograd through an unrolled step, and against finite differences of real training."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from recipe.amft.algorithm.meta_gradient import (
    MetaConfig,
    MetaGradientState,
    Tangent,
    advance_tangent_,
    clip_coefficient,
    clipped_tangent_coefficients,
    meta_gradient,
    pooled,
)
from recipe.amft.algorithm.mixture import local_inner_products, mix_

SHAPES = ((3, 2), (4,))
BETAS, EPS, WEIGHT_DECAY, LR = (0.9, 0.99), 1e-8, 0.1, 0.01
ADAMW: dict[str, Any] = {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
Tensors = list[Tensor]
Gradients = Callable[[int, Tensors], tuple[list[Tensor | None], list[Tensor | None]]]  # step, theta -> (g_SFT, g_RL)


@dataclass(frozen=True)
class Inner:
    """An inner update: its name and the clipping threshold."""

    name: str
    max_norm: float | None = None

    def optimizer(self, parameters: Tensors) -> torch.optim.Optimizer:
        if self.name == "adamw":
            return torch.optim.AdamW(parameters, **ADAMW)
        return torch.optim.SGD(parameters, lr=LR)


INNERS = [
    Inner("sgd"),
    Inner("clipped", max_norm=100.0),
    Inner("clipped", max_norm=0.5),
    Inner("adamw"),
    Inner("adamw", max_norm=0.5),
]


def randn(seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def sft_loss(theta: Tensors) -> Tensor:
    matrix, vector = theta
    return -((vector[:2] @ matrix.T).log_softmax(-1)[1] + vector.log_softmax(-1)[2])


def rl_loss(theta: Tensors) -> Tensor:
    matrix, vector = theta
    return torch.sin(matrix).sum() * torch.cos(vector).mean() + (matrix**2).sum()


def utility(theta: Tensors) -> Tensor:
    matrix, vector = theta
    return torch.tanh(matrix @ vector[2:]).sum() + 0.5 * (vector * vector.roll(1)).sum()


def curved(step: int, theta: Tensors) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of losses that are not linear in theta."""
    points = [parameter.detach().requires_grad_() for parameter in theta]
    sft, rl = (torch.autograd.grad(loss(points), points) for loss in (sft_loss, rl_loss))
    return list(sft), list(rl)


def flat(step: int, theta: Tensors) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of losses that are linear in theta, different ones at every step: no Hessian to neglect."""
    return list(randn(100 + step)), list(randn(200 + step))


def train(
    mu: float, inner: Inner, num_steps: int, gradients: Gradients, config: MetaConfig | None
) -> tuple[float, float]:
    """Train for 3 steps at mu = 0.5 and then `num_steps` at `mu`, with torch's own optimiser and clipping.

    Returns U(theta) and, if a config is given, <grad U(theta), tangent over the last `num_steps` steps>.
    """
    parameters = [parameter.requires_grad_() for parameter in randn(0)]
    optimizer = inner.optimizer(parameters)
    tangent = Tangent()
    for step in range(1, 3 + num_steps + 1):
        weight = mu if step > 3 else 0.5
        mixed, disagreement = mix_(*gradients(step, parameters), 1.0, 1.0, weight)
        product = local_inner_products([(mixed, disagreement)]).item()
        for parameter, gradient in zip(parameters, mixed, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(parameters, inner.max_norm or math.inf).item()
        optimizer.step()
        if config is not None and step > 3:
            moments = [
                (state["exp_avg"], state["exp_avg_sq"]) for state in optimizer.state.values() if "exp_avg" in state
            ]
            tangent.start_step(config)
            advance_tangent_(
                tangent,
                disagreement,
                mixed,
                moments or None,
                norm=norm,
                dot_mixed_disagreement=product,
                max_norm=inner.max_norm,
                step=step,
                config=config,
                **ADAMW,
            )
    value = utility(parameters)
    ascent = list(torch.autograd.grad(value, parameters))
    return value.item(), local_inner_products([(ascent, tangent.parameters)]).item() if config is not None else 0.0


def finite_difference(mu: float, inner: Inner, num_steps: int, gradients: Gradients, width: float = 1e-5) -> float:
    above, below = (train(mu + sign * width, inner, num_steps, gradients, None)[0] for sign in (1, -1))
    return (above - below) / (2 * width)


def adamw_step(
    theta: Tensors, gradient: Tensors, moments: list[tuple[Tensor, Tensor]], step: int, lr: float
) -> tuple[Tensors, list[tuple[Tensor, Tensor]]]:
    """AdamW written out without in-place operations, for autograd to see through."""
    new_theta, new_moments = [], []
    for parameter, g, (m, v) in zip(theta, gradient, moments, strict=True):
        m = BETAS[0] * m + (1 - BETAS[0]) * g
        v = BETAS[1] * v + (1 - BETAS[1]) * g**2
        direction = (m / (1 - BETAS[0] ** step)) / ((v / (1 - BETAS[1] ** step)).sqrt() + EPS)
        new_theta.append((1 - lr * WEIGHT_DECAY) * parameter - lr * direction)
        new_moments.append((m, v))
    return new_theta, new_moments


def unrolled(mu: float, inner: Inner) -> float:
    """d U(theta_4) / d mu_4 by autograd through the fourth step, after 3 steps at mu = 0.5."""
    theta, moments = randn(0), [(torch.zeros_like(p), torch.zeros_like(p)) for p in randn(0)]
    weight = torch.tensor(mu, dtype=torch.float64, requires_grad=True)
    for step in range(1, 5):
        current = weight if step == 4 else torch.tensor(0.5)
        gradient = [(1 - current) * r + current * s for s, r in zip(*curved(step, theta), strict=True)]
        if inner.max_norm is not None:
            norm = torch.stack([(g**2).sum() for g in gradient]).sum().sqrt()
            gradient = [g * torch.clamp(inner.max_norm / (norm + 1e-6), max=1.0) for g in gradient]
        if inner.name == "adamw":
            theta, moments = adamw_step(theta, gradient, moments, step, LR)
        else:
            theta = [parameter - LR * g for parameter, g in zip(theta, gradient, strict=True)]
    (derivative,) = torch.autograd.grad(utility(theta), weight)
    return float(derivative)


def test_written_out_adamw_is_torch_adamw() -> None:
    """The reference that autograd differentiates takes the same steps as torch.optim.AdamW."""
    inner = Inner("adamw")
    parameters = [parameter.requires_grad_() for parameter in randn(0)]
    optimizer = inner.optimizer(parameters)
    theta, moments = randn(0), [(torch.zeros_like(p), torch.zeros_like(p)) for p in randn(0)]
    for step in range(1, 6):
        gradient = randn(step)
        for parameter, g in zip(parameters, gradient, strict=True):
            parameter.grad = g
        optimizer.step()
        theta, moments = adamw_step(theta, gradient, moments, step, LR)
    torch.testing.assert_close(theta, [parameter.detach() for parameter in parameters], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("inner", INNERS, ids=str)
@pytest.mark.parametrize("mu", [0.1, 0.5, 0.9])
def test_one_step_is_the_exact_derivative_of_the_utility(inner: Inner, mu: float) -> None:
    """Eq. 22 with the tangent of the actual step is d U(theta_t(mu)) / d mu, by autograd and by finite differences."""
    _, dot = train(mu, inner, 1, curved, MetaConfig(inner=inner.name, horizon="one"))
    assert dot == pytest.approx(unrolled(mu, inner), rel=1e-9)
    assert dot == pytest.approx(finite_difference(mu, inner, 1, curved), rel=1e-5)


def test_sgd_is_equation_25_as_printed() -> None:
    """-alpha <grad U(theta_t), grad L_SFT(theta_{t-1}) - grad L_RL(theta_{t-1})>, computed from the printed formula."""
    mu = 0.3
    config = MetaConfig(inner="sgd", horizon="one", scale="literal")
    before = randn(0)
    sft, rl = curved(1, before)
    after = [(p - LR * ((1 - mu) * r + mu * s)).requires_grad_() for p, s, r in zip(before, sft, rl, strict=True)]
    ascent = torch.autograd.grad(utility(after), after)
    printed = -LR * sum(float((u * (s - r)).sum()) for u, s, r in zip(ascent, sft, rl, strict=True))
    tangent = Tangent()
    mixed, disagreement = mix_(sft, rl, 1.0, 1.0, mu)
    advance_tangent_(
        tangent,
        disagreement,
        mixed,
        None,
        norm=1.0,
        dot_mixed_disagreement=0.0,
        max_norm=None,
        step=1,
        config=config,
        **ADAMW,
    )
    dot = local_inner_products([(list(ascent), tangent.parameters)]).item()
    assert meta_gradient(dot, 1.0, 1.0, LR, config, MetaGradientState())[0] == pytest.approx(printed, rel=1e-12)


@pytest.mark.parametrize("inner", INNERS, ids=str)
@pytest.mark.parametrize("mu", [0.2, 0.7])
def test_a_window_is_the_exact_derivative_through_all_its_steps(inner: Inner, mu: float) -> None:
    """Six steps of torch's optimiser on losses linear in theta: moments, clip and weight decay carry over exactly."""
    _, dot = train(mu, inner, 6, flat, MetaConfig(inner=inner.name, horizon="window"))
    assert dot == pytest.approx(finite_difference(mu, inner, 6, flat), rel=1e-5)


def test_the_last_step_alone_is_not_the_window() -> None:
    """The previous test can tell the horizons apart: with horizon=one the same six steps give another number."""
    inner = Inner("adamw", max_norm=0.5)
    window, one = (train(0.2, inner, 6, flat, MetaConfig(inner="adamw", horizon=name))[1] for name in ("window", "one"))
    assert abs(window - one) > 0.1 * abs(window)


@pytest.mark.parametrize(("norm", "max_norm"), [(3.0, 0.5), (0.2, 0.5), (0.5, 0.5), (0.0, 0.5)])
def test_clip_coefficient_is_that_of_torch(norm: float, max_norm: float) -> None:
    """The same factor as torch.nn.utils.clip_grad_norm_, around and at the threshold."""
    parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    parameter.grad = torch.tensor([norm], dtype=torch.float64)
    torch.nn.utils.clip_grad_norm_([parameter], max_norm)
    assert parameter.grad.item() == pytest.approx(norm * clip_coefficient(norm, max_norm), rel=1e-15)
    assert clip_coefficient(norm, None) == 1.0


def test_clipped_tangent_is_the_exact_derivative_of_the_clipped_gradient() -> None:
    """a d + b g against autograd, with a norm so small that the 1e-6 of the formula matters."""
    g = torch.tensor([3e-6, 4e-6], dtype=torch.float64)
    d = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    max_norm = 2e-6

    def clipped(mu: Tensor) -> Tensor:
        mixed = g + mu * d
        return mixed * torch.clamp(max_norm / (mixed.norm() + 1e-6), max=1.0)

    expected = torch.autograd.functional.jacobian(clipped, torch.zeros((), dtype=torch.float64))
    a, b = clipped_tangent_coefficients(g.norm().item(), float(g @ d), max_norm)
    assert a < 1
    torch.testing.assert_close(a * d + b * g, expected, rtol=1e-9, atol=0)
    assert clipped_tangent_coefficients(g.norm().item(), float(g @ d), 1.0) == (1.0, 0.0)
    assert clipped_tangent_coefficients(0.0, 0.0, 1e-9)[1] == 0.0


@pytest.mark.parametrize("inner", ["sgd", "clipped", "adamw"])
@pytest.mark.parametrize("good_arm", [0, 1])
def test_sign_on_a_two_armed_bandit(inner: str, good_arm: int) -> None:
    """Demonstrations show arm 0: the value is positive where validation rewards arm 0, negative where arm 1."""
    theta = torch.tensor([0.2, -0.1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([theta], **{**ADAMW, "weight_decay": 0.0})
    (sft,) = torch.autograd.grad(-theta.log_softmax(-1)[0], theta)
    (rl,) = torch.autograd.grad(-0.1 * theta.softmax(-1)[good_arm], theta)
    mixed, disagreement = mix_([sft], [rl], 1.0, 1.0, 0.5)
    product = local_inner_products([(mixed, disagreement)]).item()
    theta.grad = mixed[0]
    norm = torch.nn.utils.clip_grad_norm_([theta], 10.0).item()
    optimizer.step()
    state = optimizer.state[theta]
    config = MetaConfig(inner=inner, horizon="one", scale="rms")
    tangent = Tangent()
    advance_tangent_(
        tangent,
        disagreement,
        mixed,
        [(state["exp_avg"], state["exp_avg_sq"])],
        norm=norm,
        dot_mixed_disagreement=product,
        max_norm=10.0,
        step=1,
        config=config,
        **{**ADAMW, "weight_decay": 0.0},
    )
    ascent = list(torch.autograd.grad(theta.softmax(-1)[good_arm], theta))
    dot = local_inner_products([(ascent, tangent.parameters)]).item()
    value, _ = meta_gradient(dot, 1.0, 1.0, LR, config, MetaGradientState())
    assert value == pytest.approx(1.0 if good_arm == 0 else -1.0)


@pytest.mark.parametrize(("along_sft", "along_rl"), [(0.3, 0.1), (0.1, 0.4), (0.2, 0.2)])
def test_a_clipped_step_has_an_equilibrium_inside_and_a_plain_one_has_none(along_sft: float, along_rl: float) -> None:
    """For orthogonal gradients of one length and an active clip d U / d mu is 0 at b / (a + b), with b and a the parts
    of grad U along a step of imitation and of RL, positive below and negative above; for plain SGD it is b - a."""
    sft, rl = torch.eye(2, dtype=torch.float64)
    ascent = -(along_sft * sft + along_rl * rl)

    def slope(weight: float, inner: str) -> float:
        mixed, disagreement = mix_([sft.clone()], [rl.clone()], 1.0, 1.0, weight)
        norm = mixed[0].norm().item()  # type: ignore[union-attr]
        product = local_inner_products([(mixed, disagreement)]).item()
        mixed[0].mul_(clip_coefficient(norm, 0.1))  # type: ignore[union-attr]
        tangent, options = Tangent(), {"norm": norm, "dot_mixed_disagreement": product, "max_norm": 0.1, "step": 1}
        config = MetaConfig(inner=inner, horizon="one")
        advance_tangent_(tangent, disagreement, mixed, None, **options, **ADAMW, config=config)
        return local_inner_products([([ascent], tangent.parameters)]).item()

    equilibrium = along_sft / (along_sft + along_rl)
    assert slope(equilibrium, "clipped") == pytest.approx(0.0, abs=1e-7)
    assert slope(equilibrium - 0.1, "clipped") > 1e-5
    assert slope(equilibrium + 0.1, "clipped") < -1e-5
    for weight in (0.1, 0.5, 0.9):
        assert slope(weight, "sgd") == pytest.approx(LR * (along_sft - along_rl), abs=1e-12)


def test_gradients_of_other_prompts_speak_together():
    """For gradients at right angles the pooled numbers are those of their sum: products add up, norms by Pythagoras."""
    generator = torch.Generator().manual_seed(0)
    gradients, _ = torch.linalg.qr(torch.randn(6, 3, generator=generator, dtype=torch.float64))
    gradients = gradients * torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    tangent = torch.randn(6, generator=generator, dtype=torch.float64)

    def measured(gradient: Tensor) -> dict[str, float]:
        return {
            "dot": float(gradient @ tangent), "utility_norm": float(gradient.norm()),
            "tangent_norm": float(tangent.norm()),
        }  # fmt: skip

    assert pooled([measured(gradient) for gradient in gradients.T]) == pytest.approx(measured(gradients.sum(1)))
    assert pooled([measured(gradients[:, 0])]) == pytest.approx(measured(gradients[:, 0]))


def test_one_gradient_that_is_not_finite_is_not_hidden_by_the_others():
    broken = {"dot": math.nan, "utility_norm": 1.0, "tangent_norm": 1.0}
    assert math.isnan(pooled([broken, {"dot": 1.0, "utility_norm": 1.0, "tangent_norm": 1.0}])["dot"])
