"""LUFFY: the demonstration is one more rollout of its prompt, learned through a shaped probability."""

from dataclasses import dataclass
from typing import Any

from recipe.amft.algorithm.checks import require_positive, require_unchanged
from recipe.amft.algorithm.groups import advantages_with_demonstration, centred
from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.methods.base import Choice, Groups, Measurements, Method, StepPlan, Sum


@dataclass(frozen=True)
class LuffyOptions:
    gamma: float = 0.1  # f(p) = p / (p + gamma)
    clip_on_policy: bool = True  # AMFT drops the clip on demonstrations only; LUFFY's public code drops it everywhere
    demonstration_rows: int = 1  # of each group; 0 is LUFFY's on-policy baseline

    def __post_init__(self) -> None:
        require_positive("method.options.gamma", self.gamma, "at 0 every probability has the same shaped value")
        if self.demonstration_rows not in (0, 1):
            raise ValueError(
                f"method.options.demonstration_rows={self.demonstration_rows} must be 1, or 0 for rollouts alone: a "
                "prompt has one demonstration."
            )
        if not self.demonstration_rows:
            require_unchanged("method.options", self, ("gamma",), "method.options.demonstration_rows=1")


class Luffy(Method):
    """Group = n rollouts + 1 demonstration with its verifier's reward; A = r - mean, no standard deviation.

    One token mean over both halves, entropy bonus (`actor.entropy_coeff`) included: each half gets its share of the
    step's learned tokens.
    """

    Options = LuffyOptions
    own_advantages = True

    @property
    def scores_demonstrations(self) -> bool:  # type: ignore[override]
        return bool(self.options.demonstration_rows)

    def plan(self, step: int, state: Any) -> StepPlan:
        return StepPlan(paired=True) if self.options.demonstration_rows else StepPlan(demonstrations=False)

    def choose(self, state: Any, step: int, groups: Groups) -> tuple[Any, Choice]:
        if groups.demonstration_rewards is None:
            return state, Choice(advantages=centred(groups.rewards, groups.prompts, groups.num_prompts))
        own, demonstrations = advantages_with_demonstration(
            groups.rewards, groups.prompts, groups.demonstration_rewards, by_std=False
        )
        choice = Choice(
            advantages=own,
            demonstrated=range(groups.num_prompts),
            demonstration_weights=demonstrations,
            metrics={"luffy/demonstration_reward": float(groups.demonstration_rewards.mean())},
        )
        return state, choice

    def combine(self, state: Any, step: int, measured: Measurements) -> tuple[Any, Sum, dict[str, float]]:
        total = sum(measured.num_tokens.values())
        shares = {source: count / total for source, count in measured.num_tokens.items()}
        return state, Sum(sft=shares["demonstration"], rl=shares["rollout"]), {}

    @property
    def demonstration_loss(self) -> LossSpec:
        return LossSpec("shaped_probability", {"gamma": self.options.gamma}, entropy_bonus=True)

    @property
    def rollout_loss(self) -> LossSpec | None:
        return None if self.options.clip_on_policy else LossSpec("importance_ratio", entropy_bonus=True)
