"""Methods that learn from samples of the initial policy: first collect, then learn (DFT Table 2)."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.methods.base import Choice, Groups, Measurements, Method, Mix, Stage, StepPlan

SAMPLING = StepPlan(demonstrations=False, learns=False)


@dataclass(frozen=True)
class RftOptions:
    sample_steps: int = 50  # steps that only generate: data.train_batch_size x rollout.n samples each

    def __post_init__(self) -> None:
        if self.sample_steps < 1:
            raise ValueError(f"method.options.sample_steps={self.sample_steps} must be at least 1.")


class CollectThenLearn(Method):
    """`sample_steps` steps collect rollouts of the policy that the warm-up ended with; the others learn from them."""

    Options: type = RftOptions
    learning = StepPlan(rollouts=False, collected=True)
    kinds = (SAMPLING, learning)

    def stage(self, step: int) -> Stage:
        return Stage("sampling" if step < self.options.sample_steps else "learning")

    @property
    def least_steps(self) -> tuple[int, str]:
        return self.options.sample_steps + 1, "amft.method.options.sample_steps"

    def plan(self, step: int, state: Any) -> StepPlan:
        return SAMPLING if step < self.options.sample_steps else self.learning

    def choose(self, state: Any, step: int, groups: Groups) -> tuple[Any, Choice]:
        collect = self.collects(groups)
        return state, Choice(collect=collect, metrics={"method/collected_share": float(collect.double().mean())})

    def collects(self, groups: Groups) -> Tensor:
        """Which rollouts to keep, (N,) bool."""
        return groups.rewards > 0

    def combine(self, state: Any, step: int, measured: Measurements) -> tuple[Any, Mix, dict[str, float]]:
        return state, Mix(1.0), {}


class Rft(CollectThenLearn):
    """Rejection-sampling fine-tuning: SFT on the policy's own correct samples."""


@dataclass(frozen=True)
class DpoOptions(RftOptions):
    beta: float = 0.1
    seed: int = 0  # of the pairing

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta > 0:
            raise ValueError(f"method.options.beta={self.beta} must be positive.")


class Dpo(CollectThenLearn):
    """Direct preference optimisation on pairs of a correct and an incorrect sample of one prompt.

    L = -E log sigmoid(z), z = beta [(log p - log p_ref)(better) - (log p - log p_ref)(worse)], the reference being the
    policy that sampled. Its gradient is that of a policy gradient with weights +-beta sigmoid(-z), computed by
    forward passes before each update: pairs need not share a micro-batch or a rank.
    """

    Options = DpoOptions
    reference = "warmed"
    learning = StepPlan(rollouts=False, collected=True, preferences=True)
    kinds = (SAMPLING, learning)

    def collects(self, groups: Groups) -> Tensor:
        """Only prompts with samples of both kinds can make a pair."""
        correct = groups.num_correct()
        return ((correct > 0) & (correct < groups.sizes))[groups.prompts]

    def pairs(self, row_ids: Sequence[str], rewards: Sequence[float]) -> list[tuple[int, int]]:
        """Every correct sample with one incorrect sample of the same prompt, drawn by seed."""
        rng = random.Random(self.options.seed)
        worse: dict[str, list[int]] = {}
        for index, (row_id, reward) in enumerate(zip(row_ids, rewards, strict=True)):
            if reward <= 0:
                worse.setdefault(row_id, []).append(index)
        return [
            (index, rng.choice(worse[row_id]))
            for index, (row_id, reward) in enumerate(zip(row_ids, rewards, strict=True))
            if reward > 0 and row_id in worse
        ]

    def pair_weights(self, policy: Tensor, reference: Tensor) -> Tensor:
        """+-2 beta sigmoid(-z): the loss is a mean over answers, DPO's over pairs, hence the 2."""
        ratio = (policy - reference).view(-1, 2)
        margin = self.options.beta * (ratio[:, 0] - ratio[:, 1])
        weight = 2 * self.options.beta * torch.sigmoid(-margin)
        return torch.stack([weight, -weight], dim=-1).flatten()

    @property
    def demonstration_loss(self) -> LossSpec:
        return LossSpec("policy_gradient", per="sequence")
