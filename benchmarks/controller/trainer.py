"""One training step of the recipe on a tiny model, in one process: the same methods, mixture, tangent and controller.

The order is that of `recipe/amft/trainer.py`: validation rollouts and the meta-gradient, rollouts, what the method
chooses, both gradients, what it makes of them, clip, AdamW, tangent. Rollouts are of the current policy and there is one
mini-batch, so that the clipped ratio of PPO is 1 and L_RL is a policy gradient with GRPO's advantages.

Everything random is drawn from (seed, stream, step): two controllers with the same seed meet the same prompts,
demonstrations and noise, and a step can be repeated with another mu.

Shapes: N rollouts, B sequences, T response tokens.
"""

import copy
import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.controller.model import Shape, generate, initial_parameters, token_logprobs
from benchmarks.controller.tasks import Problem, World, generator_of
from recipe.amft.algorithm.advantages import leave_one_out
from recipe.amft.algorithm.groups import EPSILON, centred, group_mean
from recipe.amft.algorithm.losses import masked_sum, policy_gradient_loss, token_mean
from recipe.amft.algorithm.meta_gradient import Tangent, advance_tangent_
from recipe.amft.algorithm.mixture import MixtureState, add_, local_inner_products, mix_, update_scales
from recipe.amft.algorithm.schedules import cosine
from recipe.amft.algorithm.token_losses import LossSpec, Tokens
from recipe.amft.config import AMFTConfig
from recipe.amft.methods import Groups, Measurements, Mix, StepPlan, Sum, make_method

BETAS, WEIGHT_DECAY, MAX_NORM = (0.9, 0.95), 0.1, 1.0  # AMFT Table 6
NUM_HELD_OUT = 1024


@dataclass(frozen=True)
class Sizes:
    """Batch sizes and the learning rate, the same for all methods."""

    prompts: int = 8
    rollouts_per_prompt: int = 8
    demonstrations: int = 32
    learning_rate: float = 1e-3  # of the warm-up and the first mixed step; down to a tenth of it on a cosine


@dataclass
class Policy:
    """Weights and optimiser."""

    parameters: Tensor
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = torch.nn.Parameter(self.parameters)
        self.optimizer = torch.optim.AdamW([self.parameters], betas=BETAS, weight_decay=WEIGHT_DECAY)

    def step(self, gradient: Tensor, learning_rate: float) -> float:
        """Clip `gradient` in place, take the step; returns the norm before clipping."""
        self.parameters.grad = gradient
        self.optimizer.param_groups[0]["lr"] = learning_rate
        norm = torch.nn.utils.clip_grad_norm_([self.parameters], MAX_NORM).item()
        self.optimizer.step()
        return norm


class Trainer:
    """A run of one method on one problem with one seed."""

    def __init__(self, problem: Problem, config: AMFTConfig, seed: int, base: Tensor, sizes: Sizes | None = None):
        self.problem, self.world, self.config, self.seed = problem, problem.world, config, seed
        self.sizes = sizes or Sizes()
        self.shape = shape_of(self.world)
        self.policy = Policy(base.clone())
        self.method = make_method(config)
        self.method_state = self.method.initial_state()
        self.mixture_state = MixtureState()
        self.tangent = Tangent()
        # A run without a warm-up has as many more mixed steps, so that all runs make the same number of updates.
        self.num_steps = problem.warm_up_steps + problem.num_steps - config.warm_up.steps

    def __deepcopy__(self, memo: dict) -> "Trainer":
        """A copy of what changes; the rest is shared."""
        twin = copy.copy(self)
        twin.policy = Policy(self.policy.parameters.detach().clone())
        twin.policy.optimizer.load_state_dict(copy.deepcopy(self.policy.optimizer.state_dict()))
        twin.tangent = copy.deepcopy(self.tangent)
        return twin

    # ---- the two phases ----------------------------------------------------------------------------------------

    def warm_up(self) -> None:
        """Phase 1: supervised steps, then H* on demonstrations."""
        steps, norm = self.config.warm_up.steps, math.nan
        for step in range(-steps, 0):
            prompts, answers = self.problem.demonstrations(self.sizes.demonstrations, self.seed, step)
            gradient, _ = self.gradient(LossSpec(), prompts, answers)
            norm = _norm(gradient)
            self.policy.step(gradient, self.sizes.learning_rate)
        prompts, answers = self.problem.demonstrations(8 * self.sizes.demonstrations, self.seed, -steps - 1)
        measured = {"entropy": self.entropy(prompts, answers)}
        if steps:
            measured["sft_norm"] = norm
        self.method_state = self.method.after_warm_up(self.method_state, measured)

    def step(self, step: int, mu: float | None = None) -> dict[str, float]:
        """One mixed step; `mu` overrules the method's (for finite differences). Returns metrics."""
        plan = self.method.plan(step, self.method_state)
        metrics: dict[str, float] = {}
        utility = self.measure_utility(step) if plan.utility else None
        demonstrations, rollouts, entropy = None, None, {}
        learning_rate, sft, rl = self.learning_rate(step), None, None
        demonstration_loss, rollout_loss = self.method.losses(step)
        if plan.demonstrations:
            demonstrations = self.demonstrations(plan, step)
        weights = None
        if plan.rollouts:
            prompts, responses, groups = self.rollouts(step, demonstrations[0] if plan.paired else None)
            rewards = self.world.rewards(prompts, responses)
            metrics["rl/reward"] = rewards.mean().item()
            demonstration_rewards = None
            if self.method.scores_demonstrations and demonstrations is not None:
                demonstration_rewards = self.world.rewards(*demonstrations).double()
            names = [str(index) for index in range(int(groups.max()) + 1)]
            told = Groups(groups, rewards.double(), names, demonstration_rewards)
            self.method_state, choice = self.method.choose(self.method_state, step, told)
            if choice.keep is not None or choice.collect is not None or choice.rehearsed:
                raise NotImplementedError(f"method={self.config.method.name}: the laboratory keeps every rollout")
            weights = choice.demonstration_weights
            advantages = choice.advantages if choice.advantages is not None else normalised(rewards, groups)
            rollouts = (prompts, responses, advantages.float())
        if demonstrations is not None:
            sft, entropy["demonstration"] = self.gradient(demonstration_loss, *demonstrations, weights)
            metrics["sft/norm"] = _norm(sft)
        if rollouts is not None:
            rl, entropy["rollout"] = self.gradient(rollout_loss or LossSpec("policy_gradient"), *rollouts)
            metrics["rl/norm"] = _norm(rl)
        measured = Measurements(entropy, utility, learning_rate)
        self.method_state, combination, told_metrics = self.method.combine(self.method_state, step, measured)
        if mu is not None:
            combination = Mix(mu)
        metrics |= told_metrics | {f"entropy/{name}": value for name, value in entropy.items()}
        self.update(combination, plan, sft, rl, learning_rate, metrics)
        self.method_state = self.method.observe(self.method_state, step, metrics)
        return metrics

    def learning_rate(self, step: int) -> float:
        return cosine(step, self.sizes.learning_rate, 0.1 * self.sizes.learning_rate, self.num_steps)

    def update(
        self,
        combination: Mix | Sum,
        plan: StepPlan,
        sft: Tensor | None,
        rl: Tensor | None,
        learning_rate: float,
        metrics: dict[str, float],
    ) -> None:
        """Make one optimiser step of the two gradients, and carry the tangent along."""
        if sft is None or rl is None or isinstance(combination, Sum):
            scales = (combination.sft, combination.rl) if isinstance(combination, Sum) else (1.0, 1.0)
            (gradient,) = add_(None if sft is None else [sft], None if rl is None else [rl], *scales)
            metrics["controller/mu"] = combination.mu if isinstance(combination, Mix) else math.nan
            self.policy.step(gradient, learning_rate)
            return
        metrics["controller/mu"] = combination.mu
        metrics["mixture/cosine"] = _cosine(sft, rl)
        self.mixture_state, *scales = update_scales(
            self.mixture_state, metrics["sft/norm"], metrics["rl/norm"], self.config.mixture
        )
        mixed, disagreement = mix_([sft], [rl], *scales, combination.mu)
        product = local_inner_products([(mixed, disagreement)]).item() if plan.track_tangent else math.nan
        norm = self.policy.step(mixed[0], learning_rate)
        if plan.track_tangent:
            state = self.policy.optimizer.state[self.policy.parameters]
            advance_tangent_(
                self.tangent,
                disagreement,
                mixed,
                [(state["exp_avg"], state["exp_avg_sq"])],
                norm=norm,
                dot_mixed_disagreement=product,
                max_norm=MAX_NORM,
                step=int(state["step"]),
                lr=learning_rate,
                betas=BETAS,
                eps=1e-8,
                weight_decay=WEIGHT_DECAY,
                config=self.config.controller.meta,
            )

    # ---- what a step is made of --------------------------------------------------------------------------------

    def demonstrations(self, plan: StepPlan, step: int) -> tuple[Tensor, Tensor]:
        num = self.sizes.prompts if plan.paired else self.sizes.demonstrations
        return self.problem.demonstrations(num, self.seed, step)

    def rollouts(self, step: int, prompts: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts, sampled responses and the group of each, for the step's training prompts."""
        if prompts is None:
            prompts = self.world.prompts(self.sizes.prompts, "train", generator_of(self.seed, "prompts", step))
        return self.sample(prompts, self.sizes.rollouts_per_prompt, generator_of(self.seed, "rollouts", step))

    def sample(self, prompts: Tensor, num_each: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        groups = torch.arange(len(prompts)).repeat_interleave(num_each)
        repeated = prompts[groups]
        parameters = self.policy.parameters
        return repeated, generate(parameters, self.shape, repeated, self.world.response_length, generator), groups

    def gradient(
        self, spec: LossSpec, prompts: Tensor, responses: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """Gradient of a token loss (token mean), and the mean entropy on its tokens."""
        mask = self.world.mask(responses)
        logprobs, entropy = token_logprobs(self.policy.parameters, self.shape, prompts, responses)
        weights = torch.ones(len(prompts)) if weights is None else weights.float()
        tokens = Tokens(
            logprobs=logprobs, mask=mask, weights=weights.unsqueeze(1), entropy=entropy, old_logprobs=logprobs.detach()
        )
        count = mask.sum().item() if spec.per == "token" else len(prompts)
        (gradient,) = torch.autograd.grad(token_mean(spec(tokens), mask, count), self.policy.parameters)
        return gradient, (masked_sum(entropy, mask) / mask.sum()).item()

    @torch.no_grad()
    def entropy(self, prompts: Tensor, answers: Tensor) -> float:
        mask = self.world.mask(answers)
        _, entropy = token_logprobs(self.policy.parameters, self.shape, prompts, answers)
        return (masked_sum(entropy, mask) / mask.sum()).item()

    def utility_gradient(self, num_prompts: int, num_each: int, stream: str, step: int) -> Tensor:
        """grad U at the present weights, from fresh validation rollouts (Eq. 21)."""
        prompts = self.world.prompts(num_prompts, "validation", generator_of(self.seed, f"{stream} prompts", step))
        prompts, responses, groups = self.sample(prompts, num_each, generator_of(self.seed, stream, step))
        advantages = leave_one_out(self.world.rewards(prompts, responses), groups)
        logprobs, _ = token_logprobs(self.policy.parameters, self.shape, prompts, responses)
        loss = policy_gradient_loss(logprobs, advantages, self.world.mask(responses), len(prompts))
        return -torch.autograd.grad(loss, self.policy.parameters)[0]

    def measure_utility(self, step: int) -> dict[str, float]:
        """<grad U, tangent> and the two norms, as `AMFTTrainingWorker.validation_gradient`."""
        settings = self.config.utility
        utility = self.utility_gradient(settings.num_prompts, settings.rollouts_per_prompt, "validation", step)
        tangent = self.tangent.parameters or [None]
        dot, square, tangent_square = local_inner_products(
            [([utility], tangent), ([utility], [utility]), (tangent, tangent)]
        ).tolist()
        self.tangent.finish_meta_update(self.config.controller.meta)
        return {"dot": dot, "utility_norm": square**0.5, "tangent_norm": tangent_square**0.5}

    @torch.no_grad()
    def success(self, split: str = "test", num_prompts: int = 256) -> float:
        """Mean reward of one sample (temperature 1, the U of Eq. 4) for each of the first held-out prompts."""
        prompts = _held_out(self.world, split)[:num_prompts]
        generator = generator_of(0, "evaluation", 0)
        responses = generate(self.policy.parameters, self.shape, prompts, self.world.response_length, generator)
        return self.world.rewards(prompts, responses).mean().item()


@functools.lru_cache(maxsize=8)
def _held_out(world: World, split: str) -> Tensor:
    return world.prompts(NUM_HELD_OUT, split, generator_of(0, f"held-out {split}", 0))


def normalised(rewards: Tensor, groups: Tensor) -> Tensor:
    """GRPO's advantages (r - mean) / (std + 1e-6), std unbiased: verl's, without its batch format."""
    num_groups = int(groups.max()) + 1
    difference = centred(rewards, groups, num_groups)
    squares, sizes = group_mean(difference**2, groups, num_groups)
    return difference / ((squares * sizes / (sizes - 1)).sqrt() + EPSILON)[groups]


def shape_of(world: World) -> Shape:
    return Shape(world.vocabulary, world.prompt_length + world.response_length)


def pretrained(world: World, folder: Path) -> Tensor:
    """The base model's weights, made once: supervised on what the world says a base has seen. Any seed starts here."""
    path = folder / f"{world.name}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    shape = shape_of(world)
    policy = Policy(initial_parameters(shape, generator_of(0, "base", 0)))
    for step in range(world.pretraining_steps):
        generator = generator_of(0, "pretraining", step)
        prompts = world.prompts(64, "train", generator)
        responses = world.base_answers(prompts, generator)
        mask = world.mask(responses)
        logprobs, _ = token_logprobs(policy.parameters, shape, prompts, responses)
        (gradient,) = torch.autograd.grad(token_mean(-logprobs, mask, mask.sum().item()), policy.parameters)
        policy.step(gradient, 2e-3 * min(1.0, (world.pretraining_steps - step) / (0.3 * world.pretraining_steps)))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(policy.parameters.detach().clone(), path)
    return policy.parameters.detach().clone()


def _norm(gradient: Tensor) -> float:
    return local_inner_products([([gradient], [gradient])]).item() ** 0.5


def _cosine(left: Tensor, right: Tensor) -> float:
    lengths = _norm(left) * _norm(right)
    return local_inner_products([([left], [right])]).item() / lengths if lengths > 0 else 0.0


def run(problem: Problem, config: AMFTConfig, seed: int, base: Tensor, every: int = 15) -> dict[str, Any]:
    """Warm up, train, and evaluate every `every` steps: the record of a run."""
    trainer = Trainer(problem, config, seed, base)
    started = time.process_time()
    trainer.warm_up()
    curve, steps = [[0, trainer.success()]], []
    for step in range(trainer.num_steps):
        steps.append(trainer.step(step))
        if (step + 1) % every == 0 or step + 1 == trainer.num_steps:
            curve.append([step + 1, trainer.success()])
    final = trainer.success(num_prompts=NUM_HELD_OUT)
    return {"final": final, "seconds": time.process_time() - started, "curve": curve, "steps": columns(steps)}


def columns(rows: list[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """Metrics by name, with None where a step has none or it is not finite (JSON knows no NaN)."""
    names = sorted({name for row in rows for name in row})
    return {name: [_plain(row.get(name)) for row in rows] for name in names}


def _plain(value: float | None) -> float | None:
    return round(value, 6) if value is not None and math.isfinite(value) else None
