"""Two stages in one run: imitation, then reinforcement from its best weights (DFT Tables 5 to 7, AMFT's SFT->RL)."""

from dataclasses import dataclass
from typing import Any

from recipe.amft.methods.base import Measurements, Method, Mix, Stage, StepPlan


@dataclass(frozen=True)
class StagedOptions:
    sft_steps: int = 250  # training steps of the first stage; trainer.total_training_steps counts both
    rl_learning_rate: float | None = None  # constant in the second stage; None follows the actor's schedule

    def __post_init__(self) -> None:
        if self.sft_steps < 1:
            raise ValueError(f"method.options.sft_steps={self.sft_steps} must be at least 1; method=grpo has no SFT.")
        if self.rl_learning_rate is not None and not self.rl_learning_rate > 0:
            raise ValueError(f"method.options.rl_learning_rate={self.rl_learning_rate} must be positive, or null.")


class ImitationThenReinforcement(Method):
    """SFT (or DFT, by `amft.demonstrations.loss`) for `sft_steps`, then RL from the best weights, fresh optimiser."""

    Options = StagedOptions
    kinds = (StepPlan(rollouts=False), StepPlan(demonstrations=False))

    def stage(self, step: int) -> Stage:
        if step < self.options.sft_steps:
            return Stage("imitation", keeps_best=True)
        rate = self.options.rl_learning_rate
        return Stage("reinforcement", from_best=True, optimizer="reinforcement", learning_rate=rate)

    @property
    def least_steps(self) -> tuple[int, str]:
        return self.options.sft_steps + 1, "amft.method.options.sft_steps"

    def plan(self, step: int, state: Any) -> StepPlan:
        imitates = step < self.options.sft_steps
        return StepPlan(rollouts=not imitates, demonstrations=imitates)

    def combine(self, state: Any, step: int, measured: Measurements) -> tuple[Any, Mix, dict[str, float]]:
        mu = float(step < self.options.sft_steps)
        return state, Mix(mu), {"controller/entropy": next(iter(measured.entropy.values()))}
