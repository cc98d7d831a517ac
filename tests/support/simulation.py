"""Methods without a policy: steps on synthetic rollouts and measurements, and what is learned from them."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.config import AMFTConfig, from_mapping
from recipe.amft.main import CONFIGS, compose
from recipe.amft.methods import Choice, Groups, Measurements, Method, Mix, StepPlan, Sum, make_method

PRESETS = sorted(path.stem for path in Path(CONFIGS, "method").glob("*.yaml"))
NUM_STEPS, NUM_PROMPTS, GROUP_SIZE, NUM_ROWS = 20, 4, 8, 10
every_preset = pytest.mark.parametrize("preset", PRESETS)


@functools.cache
def composed(*overrides: str) -> Any:
    return compose(list(overrides))


def settings_of(*overrides: str) -> AMFTConfig:
    return from_mapping(OmegaConf.to_container(composed(*overrides).amft, resolve=True))


def method_of(name: str, values: Mapping[str, Any] | None = None, **options: Any) -> Method:
    """A method with options of its own, and `values` of the rest of the `amft:` tree."""
    return make_method(from_mapping({**(values or {}), "method": {"name": name, "options": options}}))


def losses_of(method: Method) -> tuple[LossSpec, LossSpec | None]:
    """Of demonstrations and of rollouts."""
    return method.demonstration_loss, method.rollout_loss


@dataclass(frozen=True)
class Decision:
    """Everything a method says about one step."""

    plan: StepPlan
    choice: Choice
    combination: Mix | Sum
    metrics: Mapping[str, float]

    def plain(self) -> Any:
        """Comparable: tensors as lists."""
        lists = {
            name: value.tolist()
            if isinstance(value, torch.Tensor)
            else list(value)
            if name == "demonstrated"
            else value
            for name, value in vars(self.choice).items()
        }
        return asdict(self.plan), lists, self.combination, dict(self.metrics)


@dataclass
class World:
    """What a method is told at each step: rewards (by default of every kind of prompt) and measurements."""

    rewards: Callable[[int], torch.Tensor] | None = None  # step -> (NUM_PROMPTS, GROUP_SIZE)
    losses: Mapping[str, float] = field(default_factory=lambda: {"rl/loss": 0.3, "sft/loss": 1.7})

    def groups(self, step: int, method: Method) -> Groups:
        generator = torch.Generator().manual_seed(step)
        if self.rewards is not None:
            rewards = self.rewards(step).double().flatten()
        else:
            chances = torch.tensor([0.0, 0.1, 0.5, 1.0])[torch.randperm(NUM_PROMPTS, generator=generator)]
            drawn = torch.rand(NUM_PROMPTS, GROUP_SIZE, generator=generator)
            rewards = (drawn < chances.unsqueeze(-1)).double().flatten()
        prompts = torch.arange(NUM_PROMPTS).repeat_interleave(GROUP_SIZE)
        survives = torch.ones(len(prompts), dtype=torch.bool)
        if step % 5 == 4 and self.rewards is None:  # the environment failed for some rollouts, and for a whole prompt
            survives = (torch.rand(len(prompts), generator=generator) < 0.7) & (prompts != step % NUM_PROMPTS)
        return Groups(
            prompts=prompts[survives],
            rewards=rewards[survives],
            row_ids=[f"row-{(step * NUM_PROMPTS + index) % NUM_ROWS}" for index in range(NUM_PROMPTS)],
            demonstration_rewards=torch.tensor([1.0, 1.0, 0.0, 1.0]).double() if method.scores_demonstrations else None,
        )

    def measurements(self, step: int, plan: StepPlan, choice: Choice, num_rollouts: int) -> Measurements:
        entropy = {"demonstration": 0.5 + 0.01 * step, "rollout": 0.8 - 0.02 * step}
        num_demonstrations = len(choice.demonstrated) if plan.paired else plan.demonstrations * NUM_PROMPTS
        counts = {"demonstration": num_demonstrations, "rollout": num_rollouts}
        return Measurements(
            entropy={source: value for source, value in entropy.items() if counts[source]},
            utility={"dot": math.sin(step), "utility_norm": 2.0, "tangent_norm": 3.0} if plan.utility else None,
            learning_rate=1e-3,
            num_tokens={source: 30 * count for source, count in counts.items()},
            num_sequences=counts,
        )


def prepared(settings: AMFTConfig) -> Method:
    """A method as the driver has it before the first step."""
    method = make_method(settings)
    if method.reads_demonstrations:
        texts = {f"row-{row}": f"What is {row}?" + " 7" * (row % 3) for row in range(NUM_ROWS)}
        method.read_demonstrations(texts, {row: f"First {text} Then 2. So 3." for row, text in texts.items()})
    return method


def take_step(method: Method, state: Any, step: int, world: World) -> tuple[Any, Decision]:
    """One step with the four questions in the driver's order."""
    plan = method.plan(step, state)
    choice, num_rollouts = Choice(), 0
    if plan.rollouts:
        groups = world.groups(step, method)
        state, choice = method.choose(state, step, groups)
        check_choice(method, plan, groups, choice)
        num_rollouts = len(groups.rewards) if choice.keep is None else int(choice.keep.sum())
    measured = world.measurements(step, plan, choice, num_rollouts)
    state, combination, metrics = method.combine(state, step, measured)
    told = {**world.losses, "sft/norm": 2.0 / (1 + step)} if plan.demonstrations else world.losses
    return method.observe(state, step, told), Decision(plan, choice, combination, metrics)


def take_steps(method: Method, state: Any, steps: range, world: World | None = None) -> tuple[Any, list[Decision]]:
    decisions = []
    for step in steps:
        state, decision = take_step(method, state, step, world or World())
        decisions.append(decision)
    return state, decisions


def decisions_of(method: Method, world: World | None = None, num_steps: int = NUM_STEPS) -> list[Decision]:
    state = method.after_warm_up(method.initial_state(), {"entropy": 0.6, "sft_norm": 2.0})
    return take_steps(method, state, range(num_steps), world)[1]


def check_choice(method: Method, plan: StepPlan, groups: Groups, choice: Choice) -> None:
    """What the driver relies on."""
    num_rollouts = len(groups.rewards)
    if choice.keep is not None:
        assert choice.keep.shape == (num_rollouts,)
        assert choice.keep.dtype == torch.bool
    assert (choice.advantages is not None) == method.own_advantages
    if choice.advantages is not None:
        assert choice.advantages.shape == (num_rollouts,)
        assert choice.advantages.isfinite().all()
    demonstrated = list(choice.demonstrated)
    assert len(set(demonstrated)) == len(demonstrated)
    assert set(demonstrated) <= set(range(groups.num_prompts))
    assert plan.paired or not demonstrated
    if choice.demonstration_weights is not None:
        assert choice.demonstration_weights.shape == (len(demonstrated),)
    assert plan.rehearsal or not choice.rehearsed
    assert len(set(choice.rehearsed)) == len(choice.rehearsed)
    assert all(isinstance(value, float) for value in choice.metrics.values())
    if plan.paired:
        kept = num_rollouts if choice.keep is None else int(choice.keep.sum())
        assert demonstrated or kept, "a step must have something to learn from"


def groups_of(*rewards: list[float], demonstrations: list[float] | None = None, first_row: int = 0) -> Groups:
    """One list of rewards per prompt; row ids count from `first_row`."""
    return Groups(
        prompts=torch.tensor([prompt for prompt, values in enumerate(rewards) for _ in values], dtype=torch.int64),
        rewards=torch.tensor([reward for values in rewards for reward in values], dtype=torch.float64),
        row_ids=[f"row-{first_row + index}" for index in range(len(rewards))],
        demonstration_rewards=None if demonstrations is None else torch.tensor(demonstrations).double(),
    )


def measured(num_demonstration_tokens: int = 100, num_rollout_tokens: int = 300) -> Measurements:
    return Measurements(
        entropy={"demonstration": 0.5, "rollout": 0.8},
        num_tokens={"demonstration": num_demonstration_tokens, "rollout": num_rollout_tokens},
        num_sequences={"demonstration": 1, "rollout": 7},
    )


def decided(method: Method, groups: Groups, told: Measurements | None = None) -> tuple[Choice, Any]:
    """(choice, combination) of the first step."""
    state, choice = method.choose(method.initial_state(), 0, groups)
    _, combination, _ = method.combine(state, 0, told or measured())
    return choice, combination


def mixed(step: int) -> torch.Tensor:
    """Every prompt has correct and wrong rollouts."""
    generator = torch.Generator().manual_seed(100 + step)
    rewards = (torch.rand(NUM_PROMPTS, GROUP_SIZE, generator=generator) < 0.5).double()
    rewards[:, 0], rewards[:, 1] = 0.0, 1.0
    return rewards


def learned(decision: Decision) -> dict[str, Any]:
    """What a step comes to: the rollouts and demonstrations with their weights, whatever way they were said."""
    plan, choice, combination = decision.plan, decision.choice, decision.combination
    num_rollouts = NUM_PROMPTS * GROUP_SIZE if plan.rollouts else 0
    keep = [True] * num_rollouts if choice.keep is None else choice.keep.tolist()
    demonstrated = list(choice.demonstrated) if plan.paired else ["next"] * plan.demonstrations
    sft, rl = (
        (combination.sft, combination.rl) if isinstance(combination, Sum) else (combination.mu, 1 - combination.mu)
    )
    return {
        "rollouts": keep if any(keep) else [],
        "rl_weight": rl if any(keep) else None,
        "own_advantages": choice.advantages is not None,
        "demonstrations": demonstrated,
        "sft_weight": sft if demonstrated else None,
        "demonstration_weights": choice.demonstration_weights,
        "rehearsed": list(choice.rehearsed),
    }


def assert_same_learning(one: Method, other: Method, world: World) -> None:
    pairs = zip(decisions_of(one, world), decisions_of(other, world), strict=True)
    assert all(learned(left) == learned(right) for left, right in pairs)
    assert losses_of(one) == losses_of(other)
