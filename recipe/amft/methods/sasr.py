"""SASR as this project reads it: each step imitates with a probability that falls with the SFT gradient's norm."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from recipe.amft.algorithm.checks import require_range
from recipe.amft.methods.base import Measurements, Method, Mix, StepPlan


@dataclass(frozen=True)
class SasrOptions:
    seed: int = 0  # of the coin
    least: float = 0.05  # probability of imitation never falls below, so that the norm is measured again

    def __post_init__(self) -> None:
        require_range("method.options.least", self.least, 0.0, 1.0)


@dataclass(frozen=True)
class SasrState:
    """Norms of the SFT gradient: at the end of the warm-up (or first measured), and last measured."""

    first_norm: float | None = None
    last_norm: float | None = None


class Sasr(Method):
    """SFT with probability p_t, else GRPO; p_t = |g_SFT| / |g_SFT at the end of the warm-up|, in [least, 1].

    The formula of SASR is not public: this follows AMFT's Table 1 and SASR's abstract (the ratio to the warm-up's norm)
    and leaves out its second signal, the divergence from the initial policy.
    """

    Options = SasrOptions
    kinds = (StepPlan(demonstrations=False), StepPlan(rollouts=False))

    def initial_state(self) -> SasrState:
        return SasrState()

    def after_warm_up(self, state: SasrState, measured: Mapping[str, float]) -> SasrState:
        norm = _finite(measured.get("sft_norm"))
        return replace(state, first_norm=norm, last_norm=norm)

    def probability(self, state: SasrState) -> float:
        """Of imitating in the next step."""
        if state.first_norm is None or state.last_norm is None or state.first_norm == 0:
            return 1.0
        return min(1.0, max(float(self.options.least), state.last_norm / state.first_norm))

    def plan(self, step: int, state: SasrState) -> StepPlan:
        imitates = random.Random(f"{self.options.seed}/{step}").random() < self.probability(state)
        return StepPlan(rollouts=not imitates, demonstrations=imitates)

    def combine(self, state: SasrState, step: int, measured: Measurements) -> tuple[Any, Mix, dict[str, float]]:
        mu = float(self.plan(step, state).demonstrations)
        return state, Mix(mu), {"sasr/probability": self.probability(state)}

    def observe(self, state: SasrState, step: int, metrics: Mapping[str, float]) -> SasrState:
        norm = _finite(metrics.get("sft/norm"))
        if norm is None:
            return state
        return replace(state, first_norm=norm if state.first_norm is None else state.first_norm, last_norm=norm)

    def state_to_dict(self, state: SasrState) -> dict[str, Any]:
        return {"first_norm": state.first_norm, "last_norm": state.last_norm}

    def state_from_dict(self, values: Mapping[str, Any]) -> SasrState:
        return SasrState(**values)


def _finite(norm: float | None) -> float | None:
    """None for a norm that is absent, or not finite: the optimiser skips such a step."""
    return norm if norm is not None and math.isfinite(norm) else None
