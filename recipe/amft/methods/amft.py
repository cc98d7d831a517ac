"""AMFT: mu is learned, by a meta-gradient towards validation reward and a pull towards the target entropy (Eq. 6)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from recipe.amft.algorithm import controller
from recipe.amft.algorithm.controller import ControllerState, Signals
from recipe.amft.algorithm.meta_gradient import meta_gradient
from recipe.amft.methods.base import Measurements, Method, Mix, StepPlan


class AMFT(Method):
    """Algorithm 2. Without a meta learning rate it is entropy-only, without an entropy learning rate meta-only."""

    reads = ("controller", "mixture")

    def plan(self, step: int, state: Any) -> StepPlan:
        """A meta-update every K steps on validation rollouts, in the others on their own, once there is a tangent."""
        learns, settings = self.config.controller.meta.learning_rate > 0, self.config.utility
        validates = settings.source != "rollouts" and step % settings.every == 0
        return StepPlan(
            utility=learns and step > 0 and validates,
            rollout_utility=learns and step > 0 and settings.source != "validation",
            track_tangent=learns and self._is_read_later(step),
        )

    def combine(
        self, state: ControllerState, step: int, measured: Measurements
    ) -> tuple[ControllerState, Mix, dict[str, float]]:
        config = self.config.controller
        entropy = measured.entropy[config.entropy.source]
        if state.target_entropy is None:  # entropy.source=rollout: the first rollouts are the warmed policy's
            state = dataclasses.replace(state, target_entropy=entropy)
        value, metrics = None, {}
        if measured.utility is not None:
            utility = measured.utility
            value, meta_state = meta_gradient(
                utility["dot"],
                utility["utility_norm"],
                utility["tangent_norm"],
                measured.learning_rate,
                config.meta,
                state.meta,
            )
            state = dataclasses.replace(state, meta=meta_state)
            norms = utility["utility_norm"] * utility["tangent_norm"]
            metrics = {
                "meta/gradient": value,
                "meta/dot": utility["dot"],
                "meta/cosine": utility["dot"] / norms if norms > 0 else 0.0,
                "meta/utility_norm": utility["utility_norm"],
                "meta/tangent_norm": utility["tangent_norm"],
                "meta/non_finite": float(not math.isfinite(utility["dot"])),
            }
        state, terms = controller.update(state, Signals(entropy, value), config)
        assert state.target_entropy is not None
        metrics |= {
            "controller/entropy": entropy,
            "controller/target_entropy": state.target_entropy,
            "controller/meta_term": terms["meta"],
            "controller/entropy_term": terms["entropy"],
            "controller/clip_active": terms["clip_active"],
        }
        return state, Mix(state.mu), metrics

    def initial_state(self) -> ControllerState:
        return controller.initial_state(self.config.controller)

    def after_warm_up(self, state: ControllerState, measured: Mapping[str, float]) -> ControllerState:
        """H* is the warmed policy's entropy on demonstrations, unless it is given or measured on rollouts."""
        if state.target_entropy is None and self.config.controller.entropy.source == "demonstration":
            return dataclasses.replace(state, target_entropy=measured["entropy"])
        return state

    def state_to_dict(self, state: ControllerState) -> dict[str, Any]:
        return state.to_dict()

    def state_from_dict(self, values: Mapping[str, Any]) -> ControllerState:
        return ControllerState.from_dict(values)

    def _is_read_later(self, step: int) -> bool:
        """With horizon "one" only the step right before a meta-update matters."""
        settings = self.config.utility
        is_before_one = settings.source != "validation" or (step + 1) % settings.every == 0
        return self.config.controller.meta.horizon != "one" or is_before_one
