"""SRFT: imitation and reinforcement in one step, each weighted by the policy's entropy."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from recipe.amft.algorithm.checks import require_choice, require_range
from recipe.amft.algorithm.groups import advantages_with_demonstration
from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.methods.base import Choice, Groups, Measurements, Method, StepPlan, Sum


@dataclass(frozen=True)
class SrftOptions:
    variant: str = "paper"  # amft_description leaves out the RL term on demonstrations and the negative rollouts
    sft_sign: str = "paper"  # exp(-H) on demonstrations; code: exp(+H), as the official code is said to have it
    entropy_scope: str = "batch"  # H over all tokens of the batch; sequence: over each one's own (HPT's version)
    sft_coefficient: float = 0.5
    positive_coefficient: float = 0.1

    def __post_init__(self) -> None:
        require_choice("method.options.variant", self.variant, ("paper", "amft_description"))
        require_choice("method.options.sft_sign", self.sft_sign, ("paper", "code"))
        require_choice("method.options.entropy_scope", self.entropy_scope, ("batch", "sequence"))
        require_range("method.options.sft_coefficient", self.sft_coefficient, 0.0, math.inf)
        require_range("method.options.positive_coefficient", self.positive_coefficient, 0.0, math.inf)


class Srft(Method):
    """L = L_SFT(demo) + L_RL(demo) + L_RL(self), with H the policy's mean entropy on the tokens that it weighs.

    0.5 sg(exp(-H)) E[-log p] - A p on demonstrations, A = (r - mean)/std in the group of rollouts and demonstration,
    with `amft.demonstrations.loss` in place of -log p;
    0.1 sg(exp(H)) E[-log p] on correct rollouts and E[log p] on the others.
    """

    Options = SrftOptions
    scores_demonstrations = True
    own_advantages = True

    def plan(self, step: int, state: Any) -> StepPlan:
        return StepPlan(paired=True)

    def choose(self, state: Any, step: int, groups: Groups) -> tuple[Any, Choice]:
        assert groups.demonstration_rewards is not None
        signs = torch.where(groups.rewards > 0, 1.0, -1.0)
        _, demonstrations = advantages_with_demonstration(
            groups.rewards, groups.prompts, groups.demonstration_rewards, by_std=True
        )
        if self.options.variant == "amft_description":
            demonstrations = torch.zeros_like(demonstrations)
        choice = Choice(
            advantages=signs,
            demonstrated=range(groups.num_prompts),
            demonstration_weights=demonstrations,
            metrics={"srft/positive_share": float((signs > 0).double().mean())},
        )
        return state, choice

    def combine(self, state: Any, step: int, measured: Measurements) -> tuple[Any, Sum, dict[str, float]]:
        return state, Sum(), {}

    @property
    def demonstration_loss(self) -> LossSpec:
        sign = -1.0 if self.options.sft_sign == "paper" else 1.0
        options = {"coefficient": self.options.sft_coefficient, "sign": sign}
        options |= {"entropy_scope": self.options.entropy_scope}
        sft = super().demonstration_loss
        return LossSpec("srft_demonstration", options | {"sft_loss": sft.name, "sft_options": sft.options})

    @property
    def rollout_loss(self) -> LossSpec:
        negatives = 1.0 if self.options.variant == "paper" else 0.0
        options = {"coefficient": self.options.positive_coefficient, "negatives": negatives}
        return LossSpec("srft_rollout", options | {"entropy_scope": self.options.entropy_scope})
