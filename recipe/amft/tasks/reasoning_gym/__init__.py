"""Data sets of the package reasoning-gym as tasks (optional: pip install reasoning-gym)."""

from recipe.amft.tasks.reasoning_gym.environment import ReasoningGym

__all__ = ["ReasoningGym"]
