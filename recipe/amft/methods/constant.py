"""Methods whose mu does not change: the two ends, and any constant between them."""

from typing import Any

from recipe.amft.methods.base import Measurements, Method, Mix, StepPlan


class SupervisedOnly(Method):
    """SFT: mu = 1. No rollouts at all; the rollout engine wakes only for validation."""

    def plan(self, step: int, state: Any) -> StepPlan:
        return StepPlan(rollouts=False)

    def combine(self, state: Any, step: int, measured: Measurements) -> tuple[Any, Mix, dict[str, float]]:
        return state, Mix(1.0), {"controller/entropy": measured.entropy["demonstration"]}


class ReinforcementOnly(Method):
    """RL: mu = 0. GRPO or PPO with a critic, by `algorithm.adv_estimator`; demonstrations serve the warm-up only."""

    def plan(self, step: int, state: Any) -> StepPlan:
        return StepPlan(demonstrations=False)

    def combine(self, state: Any, step: int, measured: Measurements) -> tuple[Any, Mix, dict[str, float]]:
        return state, Mix(0.0), {"controller/entropy": measured.entropy["rollout"]}


class FixedMu(Method):
    """Eq. 3 with a constant mu = `method.weight`: the control that a learned mu has to beat."""

    reads = ("method.weight", "mixture")

    def plan(self, step: int, state: Any) -> StepPlan:
        return StepPlan()

    def combine(self, state: Any, step: int, measured: Measurements) -> tuple[Any, Mix, dict[str, float]]:
        mu = self.config.method.weight
        return state, Mix(mu), {"controller/entropy": measured.entropy["demonstration"]}
