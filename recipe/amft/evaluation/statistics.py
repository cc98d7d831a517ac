"""avg@k, pass@k and bootstrap intervals: pure functions of numbers.

Shapes: P prompts, K samples of each, B resamples. What varies between evaluations of other prompts is which prompts
were drawn, so that intervals resample prompts; the K samples of a prompt stay together.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
CHUNK = 4_000_000  # indices that are drawn at a time

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean over prompts and its 95% bootstrap interval."""

    mean: float
    low: float
    high: float


def average_at_k(successes: ArrayLike) -> Array:
    """avg@k of each prompt: (P, K) successes or rewards -> (P,) means."""
    values = np.asarray(successes, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"successes have shape {values.shape}; (prompts, samples) with at least one of each is needed")
    means: Array = values.mean(axis=1)
    return means


def pass_at_k(successes: ArrayLike, k: int) -> Array:
    """pass@k of each prompt: (P, K) of 0 and 1 -> (P,), 1 - C(n - c, k) / C(n, k) for c right ones of n = K samples.

    The unbiased estimator of the chance that at least one of k samples is right (Chen et al., arXiv 2107.03374, Eq. 1).
    """
    values = np.asarray(successes)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"successes have shape {values.shape}; (prompts, samples) with at least one of each is needed")
    if not np.isin(values, (0, 1)).all():
        raise ValueError("pass@k is defined for successes: every value must be 0 or 1")
    n = values.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} samples: k must be 1 to {n}")
    # Exact integers; n + 1 different values.
    by_count = np.array([1 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)])
    values_of_prompts: Array = by_count[values.astype(np.int64).sum(axis=1)]
    return values_of_prompts


def bootstrap_means(values: ArrayLike, num_resamples: int, seed: int, weights: ArrayLike | None = None) -> Array:
    """(B,) means of P values drawn with replacement from the (P,) given; with weights sum(w v) / sum(w) of the drawn.

    A resample without any weight has the mean 0.
    """
    numbers, shares = _checked(values, weights)
    rng = np.random.default_rng(seed)
    size = len(numbers)
    means = np.empty(num_resamples)
    step = max(1, CHUNK // size)
    for start in range(0, num_resamples, step):
        stop = min(start + step, num_resamples)
        drawn = rng.integers(size, size=(stop - start, size), dtype=np.int32)
        if weights is None:
            means[start:stop] = numbers[drawn].mean(axis=1)
            continue
        total = shares[drawn].sum(axis=1)
        weighted = (numbers * shares)[drawn].sum(axis=1)
        means[start:stop] = np.divide(weighted, total, out=np.zeros_like(total), where=total > 0)
    return means


def estimate(values: ArrayLike, num_resamples: int, seed: int, weights: ArrayLike | None = None) -> Estimate:
    """The (weighted) mean over prompts with its percentile interval."""
    numbers, shares = _checked(values, weights)
    total = float(shares.sum())
    mean = float((numbers * shares).sum()) / total if total > 0 else 0.0
    return with_interval(mean, bootstrap_means(numbers, num_resamples, seed, weights))


def with_interval(mean: float, means: Array) -> Estimate:
    """`mean` with the central 95% of its bootstrap distribution."""
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(mean, float(low), float(high))


def _checked(values: ArrayLike, weights: ArrayLike | None) -> tuple[Array, Array]:
    numbers = np.asarray(values, dtype=np.float64)
    shares = np.ones_like(numbers) if weights is None else np.asarray(weights, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0 or shares.shape != numbers.shape:
        raise ValueError(f"values {numbers.shape} and weights {shares.shape} must be vectors of one length above 0")
    if not np.isfinite(numbers).all() or not (shares >= 0).all():
        raise ValueError("values must be finite and weights 0 or more")
    return numbers, shares
