"""Training steps of the recipe on tiny models, in one process: the same methods, mixture, tangent and controller.

The order is that of `recipe/amft/trainer.py`: validation rollouts and the meta-gradient, rollouts, what the method
chooses, both gradients, what it makes of them, clip, AdamW, tangent. Rollouts are of the current policy and there is
one mini-batch, so that the clipped ratio of PPO is 1 and L_RL is a policy gradient with GRPO's advantages. Runs of one
problem are stepped together.
"""

import functools
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.controller.model import generate
from benchmarks.controller.passes import gradients, sample, utility_gradients
from benchmarks.controller.run import Run, Sample, norm_of, shape_of
from benchmarks.controller.tasks import World, generator_of
from recipe.amft.algorithm.mixture import local_inner_products
from recipe.amft.algorithm.token_losses import LossSpec
from recipe.amft.methods import Measurements, Mix

NUM_HELD_OUT = 1024


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
        if plans[i].rollout_utility and i not in utilities:
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


def columns(rows: list[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """Metrics by name, with None where a step has none or it is not finite (JSON knows no NaN)."""
    names = sorted({name for row in rows for name in row})
    return {name: [_plain(row.get(name)) for row in rows] for name in names}


def _plain(value: float | None) -> float | None:
    return round(value, 6) if value is not None and math.isfinite(value) else None
