"""One method on one tiny problem: its weights, its optimiser and what it remembers.

What a run draws depends on (seed, stream, step) only: two controllers with the same seed meet the same prompts,
demonstrations and noise, and a step can be repeated with another mu.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.controller.model import Shape, initial_parameters, token_logprobs
from benchmarks.controller.tasks import Problem, World, generator_of
from recipe.amft.algorithm.groups import EPSILON, centred, group_mean
from recipe.amft.algorithm.losses import token_mean
from recipe.amft.algorithm.meta_gradient import Tangent, advance_tangent_, clip_coefficient
from recipe.amft.algorithm.mixture import MixtureState, add_, local_inner_products, mix_, update_scales
from recipe.amft.algorithm.schedules import cosine
from recipe.amft.config import AMFTConfig
from recipe.amft.methods import Choice, Groups, Mix, StepPlan, Sum, make_method

BETAS, EPS, WEIGHT_DECAY, MAX_NORM = (0.9, 0.95), 1e-8, 0.1, 1.0  # AMFT Table 6


@dataclass(frozen=True)
class Sizes:
    """Batch sizes and the learning rate, the same for all methods."""

    prompts: int = 8
    rollouts_per_prompt: int = 8
    demonstrations: int = 32
    learning_rate: float = 2e-3  # of the warm-up and the first mixed step; down to a tenth of it on a cosine


@dataclass(frozen=True)
class Sample:
    """Sequences of one run: prompts (B, P), responses (B, T), and per sequence a weight and a group, (B,)."""

    prompts: Tensor
    responses: Tensor
    weights: Tensor | None = None
    groups: Tensor | None = None


@dataclass
class Moments:
    """What AdamW remembers of one run."""

    first: Tensor
    second: Tensor
    step: int = 0


class Run:
    """One method on one problem with one seed."""

    def __init__(self, problem: Problem, config: AMFTConfig, seed: int, base: Tensor, sizes: Sizes | None = None):
        self.problem, self.world, self.config, self.seed = problem, problem.world, config, seed
        self.sizes = sizes or Sizes()
        self.parameters = base.clone()
        self.moments = Moments(torch.zeros_like(base), torch.zeros_like(base))
        self.method = make_method(config)
        self.method_state = self.method.initial_state()
        self.mixture_state = MixtureState()
        self.tangent = Tangent()
        # A run without a warm-up has as many more mixed steps, so that all runs make the same number of updates.
        self.num_steps = problem.warm_up_steps + problem.num_steps - config.warm_up.steps

    def twin(self) -> "Run":
        """A copy that can be stepped on its own; what never changes is shared."""
        twin = copy.copy(self)
        twin.parameters = self.parameters.clone()
        twin.moments, twin.tangent = copy.deepcopy(self.moments), copy.deepcopy(self.tangent)
        return twin

    def learning_rate(self, step: int) -> float:
        if step < 0:
            return self.sizes.learning_rate
        return cosine(step, self.sizes.learning_rate, 0.1 * self.sizes.learning_rate, self.num_steps)

    def demonstrations(self, step: int, num: int | None = None) -> Sample:
        return Sample(*self.problem.demonstrations(num or self.sizes.demonstrations, self.seed, step))

    def prompts(self, step: int) -> Tensor:
        return self.world.prompts(self.sizes.prompts, "train", generator_of(self.seed, "prompts", step))

    def descend(self, gradient: Tensor, learning_rate: float) -> float:
        """Clip `gradient` in place and take an AdamW step; returns the norm before clipping."""
        norm = norm_of(gradient)
        adamw_(self.parameters, gradient.mul_(clip_coefficient(norm, MAX_NORM)), self.moments, learning_rate)
        return norm

    def choose(self, step: int, rollouts: Sample, demonstrations: Sample | None) -> tuple[Choice, float]:
        """What the method makes of the rewards, and their mean."""
        rewards = self.world.rewards(rollouts.prompts, rollouts.responses)
        assert rollouts.groups is not None
        of_demonstrations = None
        if self.method.scores_demonstrations and demonstrations is not None:
            of_demonstrations = self.world.rewards(demonstrations.prompts, demonstrations.responses).double()
        names = [str(index) for index in range(self.sizes.prompts)]
        told = Groups(rollouts.groups, rewards.double(), names, of_demonstrations)
        self.method_state, choice = self.method.choose(self.method_state, step, told)
        if choice.keep is not None or choice.collect is not None or choice.rehearsed:
            raise NotImplementedError(f"method={self.config.method.name}: the laboratory learns from every rollout")
        advantages = choice.advantages if choice.advantages is not None else normalised(rewards, rollouts.groups)
        return Choice(
            advantages=advantages.float(), demonstration_weights=choice.demonstration_weights
        ), rewards.mean().item()

    def update(
        self, combination: Mix | Sum, plan: StepPlan, sft: Tensor | None, rl: Tensor | None, step: int
    ) -> dict[str, float]:
        """One optimiser step of the two gradients, and the tangent along with it, as the worker does it."""
        learning_rate = self.learning_rate(step)
        if sft is None or rl is None or isinstance(combination, Sum):
            scales = (combination.sft, combination.rl) if isinstance(combination, Sum) else (1.0, 1.0)
            (gradient,) = add_(None if sft is None else [sft], None if rl is None else [rl], *scales)
            assert gradient is not None
            self.descend(gradient, learning_rate)
            return {"controller/mu": combination.mu} if isinstance(combination, Mix) else {}
        self.mixture_state, *scales = update_scales(self.mixture_state, norm_of(sft), norm_of(rl), self.config.mixture)
        mixed, disagreement = mix_([sft], [rl], *scales, combination.mu)
        product = local_inner_products([(mixed, disagreement)]).item() if plan.track_tangent else math.nan
        assert mixed[0] is not None
        norm = self.descend(mixed[0], learning_rate)
        if plan.track_tangent:
            self.tangent.start_step(self.config.controller.meta)
            advance_tangent_(
                self.tangent,
                disagreement,
                mixed,
                [(self.moments.first, self.moments.second)],
                norm=norm,
                dot_mixed_disagreement=product,
                max_norm=MAX_NORM,
                step=self.moments.step,
                lr=learning_rate,
                betas=BETAS,
                eps=EPS,
                weight_decay=WEIGHT_DECAY,
                config=self.config.controller.meta,
            )
        return {"controller/mu": combination.mu}


def adamw_(parameters: Tensor, gradient: Tensor, moments: Moments, learning_rate: float) -> None:
    """torch.optim.AdamW's step on one tensor, without the seconds that its import of torch._dynamo takes."""
    moments.step += 1
    moments.first.lerp_(gradient, 1 - BETAS[0])
    moments.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    root = (moments.second / (1 - BETAS[1] ** moments.step)).sqrt_().add_(EPS)
    parameters.mul_(1 - learning_rate * WEIGHT_DECAY)
    parameters.addcdiv_(moments.first, root, value=-learning_rate / (1 - BETAS[0] ** moments.step))


def normalised(rewards: Tensor, groups: Tensor) -> Tensor:
    """GRPO's advantages (r - mean) / (std + 1e-6), std unbiased: verl's, without its batch format."""
    num_groups = int(groups.max()) + 1
    difference = centred(rewards, groups, num_groups)
    squares, sizes = group_mean(difference**2, groups, num_groups)
    return difference / ((squares * sizes / (sizes - 1)).sqrt() + EPSILON)[groups]


def shape_of(world: World) -> Shape:
    return Shape(world.vocabulary, world.prompt_length, world.response_length)


def norm_of(gradient: Tensor) -> float:
    return local_inner_products([([gradient], [gradient])]).item() ** 0.5


def pretrained(world: World, folder: Path) -> Tensor:
    """The base model's weights, made once: supervised on what its world says. Every seed starts here."""
    shape = shape_of(world)
    path = folder / f"{world.name}-{sum(shape.numbers)}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    parameters = initial_parameters(shape, generator_of(0, "base", 0))
    moments = Moments(torch.zeros_like(parameters), torch.zeros_like(parameters))
    for step in range(world.pretraining_steps):
        generator = generator_of(0, "pretraining", step)
        prompts = world.prompts(64, "train", generator)
        responses = world.base_answers(prompts, generator)
        mask = world.mask(responses)
        leaf = parameters.clone().requires_grad_()
        logprobs, _ = token_logprobs(leaf[None], shape, prompts[None], responses[None])
        (gradient,) = torch.autograd.grad(token_mean(-logprobs[0], mask, mask.sum().item()), leaf)
        adamw_(parameters, gradient, moments, cosine(step, 2e-3, 0.0, world.pretraining_steps))
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(parameters, path)
    return parameters
