"""A character-level neural language model after Bengio et al. (2003), many runs of it at once.

A token's logits come from the sum of one embedding for each position's token so far, then two hidden layers. The
parameters of a run are one flat vector, so that the functions of `recipe.amft.algorithm`, which take lists of tensors,
get lists of one; those of several runs are stacked, and every operation is done for all runs together.

Shapes: R runs, B sequences, P prompt tokens, T response tokens, V vocabulary, D width.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Size of the model."""

    vocabulary: int
    prompt_length: int
    response_length: int
    width: int = 64

    @cached_property
    def sizes(self) -> list[tuple[int, ...]]:
        """Prompt embeddings, response embeddings, bias by position, two hidden layers, output."""
        vocabulary, width = self.vocabulary, self.width
        return [
            (self.prompt_length * vocabulary, width),
            (self.response_length, vocabulary, width),
            (self.response_length, width),
            (width, width),
            (width, width),
            (width, vocabulary),
        ]

    @cached_property
    def numbers(self) -> list[int]:
        return [math.prod(size) for size in self.sizes]


def initial_parameters(shape: Shape, generator: torch.Generator) -> Tensor:
    """Normal weights that keep the hidden layers at about unit variance, in one vector; the output starts small."""
    embedding = (shape.prompt_length + shape.response_length) ** -0.5
    hidden = (2 / shape.width) ** 0.5
    scales = (embedding, embedding, embedding, hidden, hidden, 0.02)
    return torch.cat(
        [torch.randn(number, generator=generator) * scale for number, scale in zip(shape.numbers, scales, strict=True)]
    )


def token_logprobs(parameters: Tensor, shape: Shape, prompts: Tensor, responses: Tensor) -> tuple[Tensor, Tensor]:
    """log p (R, B, T) of the responses' tokens, with gradient, and the policy's entropy there, nats, without.

    parameters (R, n), prompts (R, B, P), responses (R, B, T).
    """
    weights = _weights(parameters, shape)
    one_hot = F.one_hot(responses, shape.vocabulary).to(parameters.dtype)
    said = torch.einsum("rbtv,rtvd->rtbd", one_hot[:, :, :-1], weights[1][:, :-1]).cumsum(1)
    context = _read(prompts, shape, weights)[:, None] + weights[2][:, :, None]
    context = torch.cat([context[:, :1], context[:, 1:] + said], dim=1)
    logprobs = _scores(context.flatten(1, 2), weights).log_softmax(-1)
    logprobs = logprobs.view(len(parameters), shape.response_length, -1, shape.vocabulary).transpose(1, 2)
    entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
    return logprobs.gather(-1, responses.unsqueeze(-1)).squeeze(-1), entropy


@torch.no_grad()
def generate(parameters: Tensor, shape: Shape, prompts: Tensor, noise: Tensor) -> Tensor:
    """Responses (R, B, T) to prompts (R, B, P), sampled at temperature 1 with `noise` (R, B, T, V) uniform in (0, 1).

    The largest of logits plus Gumbel noise is a sample: the same noise gives policies that hardly differ the same
    responses.
    """
    weights = _weights(parameters, shape)
    context, response = _read(prompts, shape, weights), []
    gumbel = -(-noise.log()).log()
    for position in range(shape.response_length):
        scores = _scores(context + weights[2][:, None, position], weights) + gumbel[:, :, position]
        response.append(scores.argmax(-1))
        context = context + F.one_hot(response[-1], shape.vocabulary).to(parameters.dtype) @ weights[1][:, position]
    return torch.stack(response, dim=-1)


def _weights(parameters: Tensor, shape: Shape) -> list[Tensor]:
    """Each weight of all runs, (R, *size)."""
    parts = parameters.split(shape.numbers, dim=1)
    return [part.view(len(parameters), *size) for part, size in zip(parts, shape.sizes, strict=True)]


def _read(prompts: Tensor, shape: Shape, weights: list[Tensor]) -> Tensor:
    """Sum of the prompt's embeddings, (R, B, D)."""
    return F.one_hot(prompts, shape.vocabulary).to(weights[0].dtype).flatten(2) @ weights[0]


def _scores(context: Tensor, weights: list[Tensor]) -> Tensor:
    """Logits (R, N, V) of contexts (R, N, D)."""
    hidden = (context.relu() @ weights[3]).relu()
    hidden = hidden + (hidden @ weights[4]).relu()
    return hidden @ weights[5]
