"""The adaptive weight controller, Eq. 6, as a pure function: new_state = update(state, signals, config)."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .checks import require_choice, require_range
from .meta_gradient import MetaConfig, MetaGradientState

ENTROPY_SIGNS = ("equation", "prose")
ENTROPY_SOURCES = ("demonstration", "rollout")
SPACES = ("linear", "logit")


@dataclass(frozen=True)
class MetaControllerConfig(MetaConfig):
    """The long-term signal: how it is computed (MetaConfig) and how far it moves mu."""

    learning_rate: float = 0.06  # eta_mu; the typical step in mu with scale=rms (the paper has 1e-4 with scale=literal)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("controller.meta.learning_rate", self.learning_rate, 0.0, math.inf)


@dataclass(frozen=True)
class EntropyConfig:
    """The short-term signal: the policy's entropy H against its target H*, in nats per token."""

    learning_rate: float = 0.02  # eta_H, in mu per nat (AMFT Table 7: 5e-4)
    sign: str = "prose"  # equation: + eta_H (H* - H), Eq. 6; prose: minus that, Section 3.2 (high entropy raises mu)
    source: str = "demonstration"  # where H is measured: on the demonstrations' tokens (Algorithm 2) or on rollouts
    target: float | None = None  # H*; None: the mean entropy after the warm-up

    def __post_init__(self) -> None:
        require_range("controller.entropy.learning_rate", self.learning_rate, 0.0, math.inf)
        require_choice("controller.entropy.sign", self.sign, ENTROPY_SIGNS)
        require_choice("controller.entropy.source", self.source, ENTROPY_SOURCES)
        if self.target is not None:
            require_range("controller.entropy.target", self.target, 0.0, math.inf)


@dataclass(frozen=True)
class ControllerConfig:
    """Range and start of the weight mu of the SFT loss, and the two signals that move it (Eq. 6)."""

    mu_init: float = 0.3  # AMFT Table 7: 0.5; the warm-up has imitated before
    mu_min: float = 0.01
    mu_max: float = 0.99
    space: str = "logit"  # linear: Eq. 6; logit: the same step in logit(mu) / 4, which is as long at mu = 0.5
    meta: MetaControllerConfig = field(default_factory=MetaControllerConfig)
    entropy: EntropyConfig = field(default_factory=EntropyConfig)

    def __post_init__(self) -> None:
        require_choice("controller.space", self.space, SPACES)
        if self.space == "logit" and not 0 < self.mu_min <= self.mu_max < 1:
            raise ValueError(
                f"controller.space='logit' with mu_min={self.mu_min!r}, mu_max={self.mu_max!r}: 0 and 1 have no logit; "
                "choose a range inside (0, 1), or controller.space=linear."
            )
        if not 0 <= self.mu_min <= self.mu_init <= self.mu_max <= 1:
            raise ValueError(
                f"controller.mu_min={self.mu_min!r}, mu_init={self.mu_init!r}, mu_max={self.mu_max!r} are no range; "
                "choose 0 <= mu_min <= mu_init <= mu_max <= 1."
            )


@dataclass(frozen=True)
class ControllerState:
    """Everything that the controller remembers; `to_dict` is plain JSON and loses no bit."""

    mu: float
    target_entropy: float | None = None  # H*, in nats; None until it is measured
    meta: MetaGradientState = field(default_factory=MetaGradientState)
    num_meta_updates: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The state as nested dictionaries of numbers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ControllerState":
        """The inverse of `to_dict`; an unknown or missing field is a TypeError or KeyError."""
        return cls(**{**values, "meta": MetaGradientState(**values["meta"])})


@dataclass(frozen=True)
class Signals:
    """What was measured at this step; None where nothing was."""

    entropy: float | None = None  # H of the current policy, in nats per token
    meta_gradient: float | None = None  # the value of `meta_gradient.meta_gradient`; None between meta-updates


def initial_state(config: ControllerConfig) -> ControllerState:
    """The state before the first step: mu = mu_init, H* = the configured target, or None until it is measured."""
    return ControllerState(mu=config.mu_init, target_entropy=config.entropy.target)


def update(
    state: ControllerState, signals: Signals, config: ControllerConfig
) -> tuple[ControllerState, dict[str, float]]:
    """mu <- clip(mu + eta_mu g_mu + eta_H (H* - H), mu_min, mu_max) (Eq. 6), the entropy term negated for sign=prose.

    With space=logit the same sum moves logit(mu) / 4: at mu = 0.5 it is as long, and 4 mu (1 - mu) times as long
    elsewhere, so that a noisy signal does not throw mu back from either end of its range.
    Returns the new state and {"meta", "entropy"}: the two terms added, in units of mu (at 0.5), and "clip_active": 1.0
    when the clip changed mu. A signal that is None or not finite adds 0 (the caller counts the latter). ValueError when
    there is an entropy to compare and no target.
    """
    meta_term = config.meta.learning_rate * _finite_or_zero(signals.meta_gradient)
    entropy_term = config.entropy.learning_rate * _entropy_gap(state, signals, config)
    proposed = _moved(state.mu, meta_term + entropy_term, config.space)
    mu = min(max(proposed, config.mu_min), config.mu_max)
    new_state = dataclasses.replace(
        state, mu=mu, num_meta_updates=state.num_meta_updates + (signals.meta_gradient is not None)
    )
    return new_state, {"meta": meta_term, "entropy": entropy_term, "clip_active": float(mu != proposed)}


def _moved(mu: float, step: float, space: str) -> float:
    if space == "linear" or step == 0:
        return mu + step
    logit = math.log(mu / (1 - mu)) + 4 * step
    return 0.5 * (1 + math.tanh(0.5 * logit))


def _entropy_gap(state: ControllerState, signals: Signals, config: ControllerConfig) -> float:
    """H* - H for sign=equation, H - H* for sign=prose; 0 where the term is switched off or nothing was measured."""
    if signals.entropy is None or config.entropy.learning_rate == 0:
        return 0.0
    if state.target_entropy is None:
        raise ValueError(
            "target_entropy=None, but there is an entropy to compare with it; measure it after the warm-up, set "
            "controller.entropy.target, or switch the term off with controller.entropy.learning_rate=0."
        )
    gap = _finite_or_zero(state.target_entropy - signals.entropy)
    return gap if config.entropy.sign == "equation" else -gap


def _finite_or_zero(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else 0.0
