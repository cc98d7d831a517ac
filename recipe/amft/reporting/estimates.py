"""Mean and 95% interval over seeds: Student's t, because three runs are too few for a bootstrap."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Two-sided 95% quantiles of Student's t for 1, 2, ... degrees of freedom; beyond the last, that of the normal.
STUDENT_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145)
NORMAL_95 = 1.960


@dataclass(frozen=True)
class Interval:
    """The mean of `num_values` runs; `half` is None for a single run, which has no spread."""

    mean: float
    half: float | None
    num_values: int

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half


def over_seeds(values: Sequence[float]) -> Interval:
    """mean +- t s / sqrt(n), s the sample's standard deviation; ValueError without values."""
    if not values:
        raise ValueError("an interval needs at least one value")
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Interval(mean, None, 1)
    quantile = STUDENT_95[count - 2] if count - 2 < len(STUDENT_95) else NORMAL_95
    return Interval(mean, quantile * statistics.stdev(values) / math.sqrt(count), count)
