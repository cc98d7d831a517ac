"""Graders: is the answer of a response right? The same code grades in training and in evaluation (docs/graders.md)."""

from recipe.amft.tasks.graders.pool import GraderPool, shared_pool
from recipe.amft.tasks.graders.registry import GRADERS, check_task, grade
from recipe.amft.tasks.graders.verdicts import REASONS, Verdict

__all__ = ["GRADERS", "REASONS", "GraderPool", "Verdict", "check_task", "grade", "shared_pool"]
