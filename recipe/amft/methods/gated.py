"""Methods that imitate the prompts which the policy fails and reinforce the others: SuperRL, DyME, HPT."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from recipe.amft.algorithm.checks import require_choice, require_positive, require_range, require_unchanged
from recipe.amft.methods.base import Choice, Groups, Measurements, Method, StepPlan, Sum


@dataclass(frozen=True)
class Gate:
    """What the last `choose` saw, for `combine`: the share of prompts that failed and the rollouts of a prompt."""

    failed_share: float = 0.0
    group_size: float = 1.0


class GatedMethod(Method):
    """A prompt with at most `gate` correct rollouts is imitated; `drops_failed` takes its rollouts out of L_RL."""

    gate = 0.0
    correct_above = 0.0
    drops_failed = True

    def plan(self, step: int, state: Any) -> StepPlan:
        return StepPlan(paired=True)

    def initial_state(self) -> Any:
        return Gate()

    def choose(self, state: Any, step: int, groups: Groups) -> tuple[Any, Choice]:
        failed = groups.num_correct(self.correct_above) <= self.gate
        share = float(failed.double().mean())
        choice = Choice(
            keep=~failed[groups.prompts] if self.drops_failed else None,
            demonstrated=failed.nonzero().flatten().tolist(),
            metrics={"method/failed_prompts": share},
        )
        return replace(state, failed_share=share, group_size=float(groups.sizes.max())), choice

    def combine(self, state: Any, step: int, measured: Measurements) -> tuple[Any, Sum, dict[str, float]]:
        return state, Sum(), {}


@dataclass(frozen=True)
class SuperRLOptions:
    mode: str = "switch"  # per prompt; log_sigma: both losses on all prompts, with learned uncertainty weights
    learning_rate: float = 0.01  # of s1 and s2 (log_sigma), by gradient descent
    smallest: float = -2.0  # neither falls below (log_sigma); at most s1's initial 0

    def __post_init__(self) -> None:
        require_choice("method.options.mode", self.mode, ("switch", "log_sigma"))
        require_range("method.options.learning_rate", self.learning_rate, 0.0, math.inf)
        require_range("method.options.smallest", self.smallest, -10.0, 0.0)
        if self.mode == "switch":
            require_unchanged("method.options", self, ("learning_rate", "smallest"), "method.options.mode=log_sigma")


@dataclass(frozen=True)
class SuperRLState(Gate):
    rl_log_sigma: float = 0.0
    sft_log_sigma: float = 1.0


class SuperRL(GatedMethod):
    """Per prompt c = 1[any rollout rewarded]: L = (1 - c) L_SFT + c L_PG, so the two halves weigh by their prompts.

    `log_sigma`: exp(-2 s1) L_RL + exp(-2 s2) L_SFT + s1 + s2 on all prompts, s1 and s2 learned with the policy. For a
    loss L > 0 s settles at log(2 L) / 2; with L_RL about 0, as under centred advantages, s1 falls to `smallest`.
    """

    Options = SuperRLOptions

    def initial_state(self) -> SuperRLState:
        return SuperRLState()

    def choose(self, state: SuperRLState, step: int, groups: Groups) -> tuple[Any, Choice]:
        state, choice = super().choose(state, step, groups)
        if self.options.mode == "log_sigma":
            choice = replace(choice, keep=None, demonstrated=range(groups.num_prompts))
        return state, choice

    def combine(self, state: SuperRLState, step: int, measured: Measurements) -> tuple[Any, Sum, dict[str, float]]:
        if self.options.mode == "switch":
            return state, Sum(sft=state.failed_share, rl=1 - state.failed_share), {}
        weights = Sum(sft=math.exp(-2 * state.sft_log_sigma), rl=math.exp(-2 * state.rl_log_sigma))
        return state, weights, {"superrl/sft_weight": weights.sft, "superrl/rl_weight": weights.rl}

    def observe(self, state: SuperRLState, step: int, metrics: Mapping[str, float]) -> SuperRLState:
        """One step down the gradient of the weighted loss in s1 and s2: 1 - 2 exp(-2 s) L.

        A loss that is absent or not finite (the optimiser skips such a step) leaves its s alone.
        """
        if self.options.mode == "switch":
            return state

        def descend(log_sigma: float, loss: float | None) -> float:
            if loss is None or not math.isfinite(loss):
                return log_sigma
            gradient = 1 - 2 * math.exp(-2 * log_sigma) * loss
            return max(log_sigma - float(self.options.learning_rate) * gradient, float(self.options.smallest))

        return replace(
            state,
            rl_log_sigma=descend(state.rl_log_sigma, metrics.get("rl/loss")),
            sft_log_sigma=descend(state.sft_log_sigma, metrics.get("sft/loss")),
        )

    def state_to_dict(self, state: SuperRLState) -> dict[str, Any]:
        return {"rl_log_sigma": state.rl_log_sigma, "sft_log_sigma": state.sft_log_sigma}

    def state_from_dict(self, values: Mapping[str, Any]) -> SuperRLState:
        return SuperRLState(**values)


class Dyme(GatedMethod):
    """DyME: GRPO, and imitation of a prompt without a correct rollout (reward above 0.5) with the weight 1/k.

    In the original one of its k rollouts becomes the demonstration with advantage 1 and the others get 0, hence 1/k by
    the mean over sequences; all correct: all get 0. With rewards of 0 and 1 GRPO's own advantages of both kinds of
    prompt are 0, so that they are left alone here; graded rewards leave a failed prompt's rollouts their advantages.
    """

    correct_above = 0.5
    drops_failed = False

    def combine(self, state: Gate, step: int, measured: Measurements) -> tuple[Any, Sum, dict[str, float]]:
        return state, Sum(sft=state.failed_share / state.group_size), {}


@dataclass(frozen=True)
class HptOptions:
    gate: int = 0  # largest number of correct rollouts that still means imitation; -1 never imitates
    sft_weight: float = 1.0
    skip_above: float = 80.0  # gradient norm

    def __post_init__(self) -> None:
        if self.gate < -1:
            raise ValueError(
                f"method.options.gate={self.gate} counts correct rollouts; give -1 (never imitate) or more."
            )
        require_range("method.options.sft_weight", self.sft_weight, 0.0, math.inf)
        require_positive("method.options.skip_above", self.skip_above, "a large one, such as 1e9, never skips a step")


class Hpt(GatedMethod):
    """HPT: at most `gate` correct rollouts: drop them and imitate; else GRPO. No step above a gradient norm of 80."""

    Options = HptOptions

    @property
    def gate(self) -> float:  # type: ignore[override]
        return float(self.options.gate)

    def combine(self, state: Gate, step: int, measured: Measurements) -> tuple[Any, Sum, dict[str, float]]:
        return state, Sum(sft=self.options.sft_weight, skip_above=self.options.skip_above), {}
