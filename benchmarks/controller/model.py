"""A character-level transformer whose parameters are one flat vector: a run costs seconds on one core.

One vector means one tensor for the gradient, the tangent and AdamW's moments, so that the functions of
`recipe.amft.algorithm`, which take lists of tensors, get lists of one.

Shapes: B sequences, P prompt tokens, T response tokens, L = P + T, V vocabulary, D width.
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
    length: int  # of the longest sequence
    width: int = 32
    num_layers: int = 2
    num_heads: int = 4

    @cached_property
    def sizes(self) -> list[tuple[int, ...]]:
        """Shapes of the weights, in the order in which they lie in the vector."""
        width = self.width
        layer = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
        return [(self.vocabulary, width), (self.length, width), *layer * self.num_layers, (self.vocabulary, width)]

    @cached_property
    def numbers(self) -> list[int]:
        return [math.prod(size) for size in self.sizes]


def initial_parameters(shape: Shape, generator: torch.Generator) -> Tensor:
    """Normal weights, 1 / sqrt(fan in) but for the embeddings (0.5) and the last matrix (0.02), in one vector."""
    parts = []
    for index, size in enumerate(shape.sizes):
        scale = 0.5 if index < 2 else 0.02 if index == len(shape.sizes) - 1 else size[1] ** -0.5
        parts.append(torch.randn(math.prod(size), generator=generator) * scale)
    return torch.cat(parts)


def logits(parameters: Tensor, shape: Shape, tokens: Tensor, num_last: int) -> Tensor:
    """Next-token logits (B, num_last, V) at the last positions of `tokens` (B, L')."""
    weights = _weights(parameters, shape)
    hidden = weights[0][tokens] + weights[1][: tokens.shape[1]]
    for index in range(shape.num_layers):
        hidden, _ = _layer(hidden, weights[2 + 4 * index : 6 + 4 * index], shape, None)
    return F.linear(_normalised(hidden[:, -num_last:]), weights[-1])


@torch.no_grad()
def generate(
    parameters: Tensor, shape: Shape, prompts: Tensor, num_tokens: int, generator: torch.Generator | None
) -> Tensor:
    """Responses (B, T) to prompts (B, P), sampled at temperature 1; without a generator the most probable tokens."""
    weights = _weights(parameters, shape)
    caches: list[tuple[Tensor, Tensor] | None] = [None] * shape.num_layers
    tokens, start, response = prompts, 0, []
    for _ in range(num_tokens):
        hidden = weights[0][tokens] + weights[1][start : start + tokens.shape[1]]
        for index in range(shape.num_layers):
            hidden, caches[index] = _layer(hidden, weights[2 + 4 * index : 6 + 4 * index], shape, caches[index])
        scores = F.linear(_normalised(hidden[:, -1]), weights[-1])
        if generator is not None:  # the largest of logits plus Gumbel noise is a sample
            noise = torch.rand(scores.shape, generator=generator).clamp_(1e-7, 1 - 1e-7)
            scores = scores - (-noise.log()).log()
        start += tokens.shape[1]
        tokens = scores.argmax(-1, keepdim=True)
        response.append(tokens)
    return torch.cat(response, dim=1)


def token_logprobs(parameters: Tensor, shape: Shape, prompts: Tensor, responses: Tensor) -> tuple[Tensor, Tensor]:
    """log p (B, T) of the responses' tokens, with gradient, and the policy's entropy there, nats, without."""
    length = responses.shape[1]
    scores = logits(parameters, shape, torch.cat([prompts, responses[:, :-1]], dim=1), length)
    logprobs = scores.log_softmax(-1)
    entropy = -(logprobs.detach().exp() * logprobs.detach()).sum(-1)
    return logprobs.gather(-1, responses.unsqueeze(-1)).squeeze(-1), entropy


def _weights(parameters: Tensor, shape: Shape) -> list[Tensor]:
    parts = parameters.split(shape.numbers)
    return [part.view(size) for part, size in zip(parts, shape.sizes, strict=True)]


def _layer(
    hidden: Tensor, weights: list[Tensor], shape: Shape, cache: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One pre-norm block without biases; `cache` holds the keys and values of the tokens before (one token a call)."""
    query_key_value, output, up, down = weights
    batch, length, width = hidden.shape
    heads = F.linear(_normalised(hidden), query_key_value).view(batch, length, 3, shape.num_heads, -1)
    query, key, value = heads.permute(2, 0, 3, 1, 4)
    if cache is not None:
        key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=cache is None)
    hidden = hidden + F.linear(attended.transpose(1, 2).reshape(batch, length, width), output)
    return hidden + F.linear(F.gelu(F.linear(_normalised(hidden), up)), down), (key, value)


def _normalised(hidden: Tensor) -> Tensor:
    return F.layer_norm(hidden, hidden.shape[-1:])
