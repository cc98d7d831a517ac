"""mu on a schedule: CHORD-mu's cosine from peak to valley, or a straight line."""

from typing import Any

from recipe.amft.algorithm.schedules import scheduled_mu
from recipe.amft.methods.base import Measurements, Method, Mix, StepPlan


class ScheduledMu(Method):
    """Eq. 3 with mu = `algorithm.schedules.scheduled_mu(step)`."""

    reads = ("method.schedule", "mixture")

    def plan(self, step: int, state: Any) -> StepPlan:
        return StepPlan()

    def combine(self, state: Any, step: int, measured: Measurements) -> tuple[Any, Mix, dict[str, float]]:
        mu = scheduled_mu(step, self.config.method.schedule)
        return state, Mix(mu), {"controller/entropy": measured.entropy["demonstration"]}
