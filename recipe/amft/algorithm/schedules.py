"""Weights mu that follow a schedule instead of the controller: the controls that AMFT is compared with."""

import math
from dataclasses import dataclass

from .checks import require_choice, require_range

SCHEDULE_SHAPES = ("cosine", "linear")


@dataclass(frozen=True)
class ScheduleConfig:
    """CHORD-mu: linear from 0 to `peak` over the warm-up, then down to `valley`, which holds from there on."""

    shape: str = "cosine"  # of the descent: cosine (CHORD-mu) or linear
    peak: float = 0.9  # mu in [0, 1]
    valley: float = 0.05  # mu in [0, 1]
    num_warmup_steps: int = 0
    num_decay_steps: int = 200

    def __post_init__(self) -> None:
        require_choice("schedule.shape", self.shape, SCHEDULE_SHAPES)
        require_range("schedule.peak", self.peak, 0.0, 1.0)
        require_range("schedule.valley", self.valley, 0.0, 1.0)
        require_range("schedule.num_warmup_steps", self.num_warmup_steps, 0, math.inf)
        require_range("schedule.num_decay_steps", self.num_decay_steps, 1, math.inf)


def linear(step: int, start: float, end: float, num_steps: int) -> float:
    """Straight line from `start` at step 0 to `end` at `num_steps`, constant outside."""
    if step >= num_steps:
        return end
    return start + (end - start) * max(step, 0) / num_steps


def cosine(step: int, start: float, end: float, num_steps: int) -> float:
    """Half a cosine from `start` at step 0 to `end` at `num_steps`, constant outside."""
    if step >= num_steps:
        return end
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * max(step, 0) / num_steps))


def scheduled_mu(step: int, config: ScheduleConfig) -> float:
    """The weight mu of training step `step`, counted from 0."""
    if step < config.num_warmup_steps:
        return linear(step, 0.0, config.peak, config.num_warmup_steps)
    descend = cosine if config.shape == "cosine" else linear
    return descend(step - config.num_warmup_steps, config.peak, config.valley, config.num_decay_steps)
