"""TAPO in AMFT's simplified form: rollouts guided by reasoning steps from the demonstrations of other prompts.

The original (renamed TemplateRL) builds its library by tree search; here a pattern is the outline of a demonstration.
"""

import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recipe.amft.methods.base import Measurements, Method, Mix, StepPlan

NUMBER = re.compile(r"\d+")
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True)
class TapoOptions:
    num_patterns: int = 2  # of different demonstrations, taken in turn by the rollouts of a prompt
    num_steps: int = 4  # reasoning steps of a pattern
    step_characters: int = 80  # a step is cut after as many

    def __post_init__(self) -> None:
        if min(self.num_patterns, self.num_steps, self.step_characters) < 1:
            raise ValueError(f"method.options of tapo must all be at least 1; got {self}.")


class Tapo(Method):
    """GRPO on prompts with guidance; a prompt takes the patterns of the demonstrations nearest in complexity.

    Complexity is the number of numbers in the prompt (known conditions). A prompt never sees its own demonstration.
    """

    Options = TapoOptions
    reads_demonstrations = True

    def read_demonstrations(self, prompts: Mapping[str, str], targets: Mapping[str, str]) -> None:
        self.complexity = {row_id: len(NUMBER.findall(text)) for row_id, text in prompts.items()}
        self.library = sorted((self.complexity[row_id], row_id) for row_id in targets)
        self.patterns = {row_id: self.outline(text) for row_id, text in targets.items()}

    def outline(self, text: str) -> str:
        """The beginnings of a demonstration's first sentences, numbered."""
        options = self.options
        steps = [step.strip() for step in SENTENCE.split(text) if step.strip()][: options.num_steps]
        return "\n".join(f"{index}. {step[: options.step_characters]}" for index, step in enumerate(steps, 1))

    def guidance(self, step: int, row_ids: Sequence[str]) -> list[list[str]]:
        return [[f"Steps of a similar problem:\n{text}" for text in self.nearest(row_id)] for row_id in row_ids]

    def nearest(self, row_id: str) -> list[str]:
        """`num_patterns` different patterns of other rows, nearest in complexity first, ties by row id."""
        complexity = self.complexity.get(row_id, 0)
        left = bisect_left(self.library, (complexity, row_id)) - 1
        right = left + 1
        found: list[str] = []
        while len(found) < self.options.num_patterns and (left >= 0 or right < len(self.library)):
            below = complexity - self.library[left][0] if left >= 0 else None
            above = self.library[right][0] - complexity if right < len(self.library) else None
            if above is None or (below is not None and below < above):
                candidate, left = self.library[left][1], left - 1
            else:
                candidate, right = self.library[right][1], right + 1
            if candidate != row_id and self.patterns[candidate] not in found:
                found.append(self.patterns[candidate])
        return found

    def plan(self, step: int, state: Any) -> StepPlan:
        return StepPlan(demonstrations=False)

    def combine(self, state: Any, step: int, measured: Measurements) -> tuple[Any, Mix, dict[str, float]]:
        return state, Mix(0.0), {"controller/entropy": measured.entropy["rollout"]}
