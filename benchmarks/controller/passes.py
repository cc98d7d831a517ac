"""Forward and backward passes of several runs of one problem at once: each is one batched operation.

A run does not depend on those beside it. Shapes: R runs, B sequences, P prompt tokens, T response tokens; a list has
one entry a run.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.controller.model import generate, token_logprobs
from benchmarks.controller.run import Run, Sample, shape_of
from benchmarks.controller.tasks import generator_of
from recipe.amft.algorithm.advantages import leave_one_out
from recipe.amft.algorithm.losses import masked_sum, policy_gradient_loss, token_mean
from recipe.amft.algorithm.token_losses import LossSpec, Tokens


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
