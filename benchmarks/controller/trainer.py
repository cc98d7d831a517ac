"""Training steps of the recipe on tiny models, in one process: the same methods, mixture, tangent and controller.

The order is that of `recipe/amft/trainer.py`: validation rollouts and the meta-gradient, rollouts, what the method
chooses, both gradients, what it makes of them, clip, AdamW, tangent. Rollouts are of the current policy and there is
one mini-batch, so that the clipped ratio of PPO is 1 and L_RL is a policy gradient with GRPO's advantages.

Runs of one problem are stepped together: forward and backward passes of all of them are one batched operation. What a
run draws depends on (seed, stream, step) only: two controllers with the same seed meet the same prompts, demonstrations
and noise, a step can be repeated with another mu, and a run does not depend on those beside it.

Shapes: R runs, B sequences, P prompt tokens, T response tokens; a list has one entry a run.
"""

import copy
import functools
import math
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.controller.model import Shape, generate, initial_parameters, token_logprobs
from benchmarks.controller.tasks import Problem, World, generator_of
from recipe.amft.algorithm.advantages import leave_one_out
from recipe.amft.algorithm.groups import EPSILON, centred, group_mean
from recipe.amft.algorithm.losses import masked_sum, policy_gradient_loss, token_mean
from recipe.amft.algorithm.meta_gradient import Tangent, advance_tangent_, clip_coefficient
from recipe.amft.algorithm.mixture import MixtureState, add_, local_inner_products, mix_, update_scales
from recipe.amft.algorithm.schedules import cosine
from recipe.amft.algorithm.token_losses import LossSpec, Tokens
from recipe.amft.config import AMFTConfig
from recipe.amft.methods import Choice, Groups, Measurements, Mix, StepPlan, Sum, make_method

BETAS, EPS, WEIGHT_DECAY, MAX_NORM = (0.9, 0.95), 1e-8, 0.1, 1.0  # AMFT Table 6
NUM_HELD_OUT = 1024


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


# ---- passes for several runs at once -----------------------------------------------------------------------------


def gradients(runs: Sequence[Run], samples: Sequence[Sample], specs: Sequence[LossSpec]) -> list[tuple[Tensor, float]]:
    """Gradient (n,) of a token loss (mean over its tokens) and the mean entropy on them, for each run."""

    def loss(index: int, logprobs: Tensor, entropy: Tensor, mask: Tensor) -> Tensor:
        weights = samples[index].weights
        tokens = Tokens(
            logprobs=logprobs,
            mask=mask,
            weights=torch.ones(len(mask), 1) if weights is None else weights.float().unsqueeze(1),
            entropy=entropy,
            old_logprobs=logprobs.detach(),
            batch_entropy=(masked_sum(entropy.detach(), mask) / mask.sum()).item(),
        )
        return token_mean(specs[index](tokens), mask, mask.sum().item())

    return _backward(runs, samples, loss)


def utility_gradients(runs: Sequence[Run], samples: Sequence[Sample]) -> list[Tensor]:
    """grad U (n,) from validation rollouts (Eq. 21), with the leave-one-out baseline, for each run."""

    def loss(index: int, logprobs: Tensor, entropy: Tensor, mask: Tensor) -> Tensor:
        sample = samples[index]
        assert sample.groups is not None
        advantages = leave_one_out(runs[index].world.rewards(sample.prompts, sample.responses), sample.groups)
        return policy_gradient_loss(logprobs, advantages, mask, len(advantages))

    return [-gradient for gradient, _ in _backward(runs, samples, loss)]


def _backward(runs: Sequence[Run], samples: Sequence[Sample], loss: Any) -> list[tuple[Tensor, float]]:
    results: list[tuple[Tensor, float]] = [(torch.empty(0), 0.0)] * len(runs)
    for indices in _by_size(samples):
        parameters = torch.stack([runs[index].parameters for index in indices]).requires_grad_()
        chosen = [samples[index] for index in indices]
        logprobs, entropy = token_logprobs(
            parameters,
            shape_of(runs[0].world),
            torch.stack([sample.prompts for sample in chosen]),
            torch.stack([sample.responses for sample in chosen]),
        )
        masks = [runs[0].world.mask(sample.responses) for sample in chosen]
        losses = [loss(i, logprobs[row], entropy[row], masks[row]) for row, i in enumerate(indices)]
        (gradient,) = torch.autograd.grad(torch.stack(losses).sum(), parameters)
        for row, index in enumerate(indices):
            mean_entropy = (masked_sum(entropy[row], masks[row]) / masks[row].sum()).item()
            results[index] = gradient[row].clone(), mean_entropy
    return results


def sample(
    runs: Sequence[Run], prompts: Sequence[Tensor], num_each: int, stream: str, steps: Sequence[int] | int
) -> list[Sample]:
    """`num_each` responses to every prompt of each run, from the noise of (seed, stream, step)."""
    world, results = runs[0].world, []
    steps = [steps] * len(runs) if isinstance(steps, int) else steps
    groups = [torch.arange(len(one)).repeat_interleave(num_each) for one in prompts]
    repeated = [one[group] for one, group in zip(prompts, groups, strict=True)]
    noise = []
    for run, rows, step in zip(runs, repeated, steps, strict=True):
        size = (len(rows), world.response_length, world.vocabulary)
        noise.append(torch.rand(size, generator=generator_of(run.seed, stream, step)).clamp_(1e-7, 1 - 1e-7))
    parameters = torch.stack([run.parameters for run in runs])
    responses = generate(parameters, shape_of(world), torch.stack(repeated), torch.stack(noise))
    for rows, answers, group in zip(repeated, responses, groups, strict=True):
        results.append(Sample(rows, answers, groups=group))
    return results


def _by_size(samples: Sequence[Sample]) -> list[list[int]]:
    """Indices of samples that can be stacked."""
    groups = defaultdict(list)
    for index, one in enumerate(samples):
        groups[len(one.prompts)].append(index)
    return list(groups.values())


def validation_rollouts(runs: Sequence[Run], step: int, stream: str = "validation") -> list[Sample]:
    """Rollouts of the validation prompts of `step`; all runs have the same `utility` settings."""
    settings = runs[0].config.utility
    prompts = [
        run.world.prompts(settings.num_prompts, "validation", generator_of(run.seed, f"{stream} prompts", step))
        for run in runs
    ]
    return sample(runs, prompts, settings.rollouts_per_prompt, stream, step)


def successes(runs: Sequence[Run], num_prompts: int = 256, split: str = "test") -> list[float]:
    """Mean reward of one sample at temperature 1 (the U of Eq. 4) for each of the first held-out prompts."""
    world = runs[0].world
    prompts, noise = _held_out(world, split)
    prompts, noise = (part[:num_prompts].expand(len(runs), *part[:num_prompts].shape) for part in (prompts, noise))
    parameters = torch.stack([run.parameters for run in runs])
    responses = generate(parameters, shape_of(world), prompts, noise)
    return [world.rewards(prompts[row], responses[row]).mean().item() for row in range(len(runs))]


@functools.lru_cache(maxsize=8)
def _held_out(world: World, split: str) -> tuple[Tensor, Tensor]:
    generator = generator_of(0, f"held-out {split}", 0)
    noise = torch.rand((NUM_HELD_OUT, world.response_length, world.vocabulary), generator=generator)
    return world.prompts(NUM_HELD_OUT, split, generator), noise.clamp_(1e-7, 1 - 1e-7)


# ---- the two phases ----------------------------------------------------------------------------------------------


def warm_up(runs: Sequence[Run]) -> None:
    """Phase 1: supervised steps, then H* on demonstrations."""
    norms: dict[int, float] = {}
    for step in range(-max(run.config.warm_up.steps for run in runs), 0):
        active = [(index, run) for index, run in enumerate(runs) if step >= -run.config.warm_up.steps]
        rows = [run.demonstrations(step) for _, run in active]
        for (index, run), (gradient, _) in zip(
            active, gradients([run for _, run in active], rows, [LossSpec()] * len(active)), strict=True
        ):
            norms[index] = norm_of(gradient)
            run.descend(gradient, run.learning_rate(step))
    rows = [run.demonstrations(-999, 8 * run.sizes.demonstrations) for run in runs]
    entropies = [entropy for _, entropy in gradients(runs, rows, [LossSpec()] * len(runs))]
    for index, (run, entropy) in enumerate(zip(runs, entropies, strict=True)):
        measured = {"entropy": entropy} | ({"sft_norm": norms[index]} if index in norms else {})
        run.method_state = run.method.after_warm_up(run.method_state, measured)


def train_step(runs: Sequence[Run], step: int, weights: Sequence[float] | None = None) -> list[dict[str, float]]:
    """One mixed step of every run; `weights` overrule the methods' mu (for finite differences). Returns metrics."""
    every = range(len(runs))
    plans = [run.method.plan(step, run.method_state) for run in runs]
    metrics: list[dict[str, float]] = [{} for _ in runs]
    utilities = measure_utilities(runs, [i for i in every if plans[i].utility], step)

    demonstrations = {
        i: runs[i].demonstrations(step, runs[i].sizes.prompts if plans[i].paired else None)
        for i in every
        if plans[i].demonstrations
    }
    exploring = [i for i in every if plans[i].rollouts]
    rollouts: dict[int, Sample] = {}
    if exploring:
        prompts = [demonstrations[i].prompts if plans[i].paired else runs[i].prompts(step) for i in exploring]
        num_each = runs[0].sizes.rollouts_per_prompt
        sampled = sample([runs[i] for i in exploring], prompts, num_each, "rollouts", step)
        for i, one in zip(exploring, sampled, strict=True):
            choice, metrics[i]["rl/reward"] = runs[i].choose(step, one, demonstrations.get(i))
            rollouts[i] = Sample(one.prompts, one.responses, choice.advantages, one.groups)
            if choice.demonstration_weights is not None:
                demos = demonstrations[i]
                demonstrations[i] = Sample(demos.prompts, demos.responses, choice.demonstration_weights)
    sft = _gradients_of(runs, demonstrations, [run.method.demonstration_loss for run in runs])
    on_rollouts = [run.method.rollout_loss or LossSpec("policy_gradient") for run in runs]
    rl = _gradients_of(runs, rollouts, on_rollouts)

    for i in every:
        if plans[i].rollout_utility:
            utilities[i] = meta_signals(runs[i], -rl[i][0])
    for i, run in enumerate(runs):
        entropy = {name: part[i][1] for name, part in (("demonstration", sft), ("rollout", rl)) if i in part}
        measured = Measurements(entropy, utilities.get(i), run.learning_rate(step))
        run.method_state, combination, told = run.method.combine(run.method_state, step, measured)
        if weights is not None:
            combination = Mix(weights[i])
        metrics[i] |= told | {f"entropy/{name}": value for name, value in entropy.items()}
        both = [part[i][0] if i in part else None for part in (sft, rl)]
        metrics[i] |= {
            name: norm_of(part) for name, part in zip(("sft/norm", "rl/norm"), both, strict=True) if part is not None
        }
        metrics[i] |= run.update(combination, plans[i], *both, step)
        run.method_state = run.method.observe(run.method_state, step, metrics[i])
    return metrics


def measure_utilities(runs: Sequence[Run], indices: Sequence[int], step: int) -> dict[int, dict[str, float]]:
    """`meta_signals` on validation rollouts, for the runs of `indices`."""
    chosen = [runs[i] for i in indices]
    if not chosen:
        return {}
    utilities = utility_gradients(chosen, validation_rollouts(chosen, step))
    return {i: meta_signals(run, utility) for i, run, utility in zip(indices, chosen, utilities, strict=True)}


def meta_signals(run: Run, utility: Tensor) -> dict[str, float]:
    """<grad U, tangent> and the two norms: a meta-update, as `AMFTTrainingWorker` makes it."""
    tangent = run.tangent.parameters or [None]
    dot, square, tangent_square = local_inner_products(
        [([utility], tangent), ([utility], [utility]), (tangent, tangent)]
    ).tolist()
    run.tangent.finish_meta_update(run.config.controller.meta)
    return {"dot": dot, "utility_norm": square**0.5, "tangent_norm": tangent_square**0.5}


def _gradients_of(
    runs: Sequence[Run], samples: Mapping[int, Sample], specs: Sequence[LossSpec]
) -> dict[int, tuple[Tensor, float]]:
    if not samples:
        return {}
    indices = list(samples)
    found = gradients([runs[i] for i in indices], list(samples.values()), [specs[i] for i in indices])
    return dict(zip(indices, found, strict=True))


def train(runs: Sequence[Run], every: int = 12) -> list[dict[str, Any]]:
    """Warm up, train, and evaluate every `every` steps: the records of the runs."""
    started = time.process_time()
    warm_up(runs)
    curves = [[[0, success]] for success in successes(runs)]
    steps: list[list[dict[str, float]]] = [[] for _ in runs]
    for step in range(max(run.num_steps for run in runs)):
        active = [i for i, run in enumerate(runs) if step < run.num_steps]
        for i, metrics in zip(active, train_step([runs[i] for i in active], step), strict=True):
            steps[i].append(metrics)
        due = [i for i in active if (step + 1) % every == 0 or step + 1 == runs[i].num_steps]
        if due:
            for i, success in zip(due, successes([runs[i] for i in due]), strict=True):
                curves[i].append([step + 1, success])
    seconds = (time.process_time() - started) / len(runs)
    return [
        {"final": final, "seconds": seconds, "curve": curve, "steps": columns(rows)}
        for final, curve, rows in zip(successes(runs, NUM_HELD_OUT), curves, steps, strict=True)
    ]


# ---- small things ------------------------------------------------------------------------------------------------


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
    path = folder / f"{world.name}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    shape = shape_of(world)
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


def columns(rows: list[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """Metrics by name, with None where a step has none or it is not finite (JSON knows no NaN)."""
    names = sorted({name for row in rows for name in row})
    return {name: [_plain(row.get(name)) for row in rows] for name in names}


def _plain(value: float | None) -> float | None:
    return round(value, 6) if value is not None and math.isfinite(value) else None
