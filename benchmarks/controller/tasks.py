"""Problems that differ in how much imitation is best, on sequences of at most 14 tokens.

A world says what prompts, answers and rewards are; a problem adds where the demonstrations come from. Prompts are split
by their number: two in ten for the test, two for the validation of the meta-gradient, the others for training.

Shapes: N prompts, P prompt tokens, T response tokens.
"""

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from recipe.amft.tasks.general_points import solver
from recipe.amft.tasks.general_points.verifier import verify

SPLITS = {"test": (0, 1), "validation": (2, 3), "train": (4, 5, 6, 7, 8, 9)}  # last digit of a hash of the prompt


class World(Protocol):
    """Prompts (N, P), answers (N, T) and rewards (N,) as token ids."""

    name: str
    vocabulary: int
    prompt_length: int
    response_length: int
    pretraining_steps: int

    def prompts(self, num: int, split: str, generator: Generator) -> Tensor: ...
    def answers(self, prompts: Tensor, generator: Generator) -> Tensor: ...
    def misleading_answers(self, prompts: Tensor) -> Tensor: ...
    def base_answers(self, prompts: Tensor, generator: Generator) -> Tensor: ...
    def rewards(self, prompts: Tensor, responses: Tensor) -> Tensor: ...
    def mask(self, responses: Tensor) -> Tensor: ...


def _digits(num: int, length: int, split: str, generator: Generator) -> Tensor:
    """(num, length) uniform digits of one split."""
    powers = 10 ** torch.arange(length)
    found: list[Tensor] = []
    while sum(map(len, found)) < num:
        digits = torch.randint(10, (8 * num, length), generator=generator)
        residue = (digits * powers).sum(-1) * 7919 % 101 % 10
        found.append(digits[torch.isin(residue, torch.tensor(SPLITS[split]))])
    return torch.cat(found)[:num]


@dataclass(frozen=True)
class Sorting:
    """Digits in ascending order, all or nothing. The base knows to write each digit of the prompt once, in any order.

    Misleading answers are in descending order. `share_sorted` of what the base saw is in order.
    """

    length: int
    share_sorted: float
    pretraining_steps: int = 700
    vocabulary: int = 10

    @property
    def name(self) -> str:
        return f"sorting-{self.length}-{self.share_sorted}"

    @property
    def prompt_length(self) -> int:
        return self.length

    @property
    def response_length(self) -> int:
        return self.length

    def prompts(self, num: int, split: str, generator: Generator) -> Tensor:
        return _digits(num, self.length, split, generator)

    def answers(self, prompts: Tensor, generator: Generator) -> Tensor:
        return prompts.sort(dim=1).values

    def misleading_answers(self, prompts: Tensor) -> Tensor:
        return prompts.sort(dim=1, descending=True).values

    def base_answers(self, prompts: Tensor, generator: Generator) -> Tensor:
        order = torch.rand(prompts.shape, generator=generator).argsort(dim=1)
        is_sorted = torch.rand((len(prompts), 1), generator=generator) < self.share_sorted
        return torch.where(is_sorted, prompts.sort(dim=1).values, prompts.gather(1, order))

    def rewards(self, prompts: Tensor, responses: Tensor) -> Tensor:
        return (responses == prompts.sort(dim=1).values).all(dim=1).float()

    def mask(self, responses: Tensor) -> Tensor:
        return torch.ones(responses.shape)


@dataclass(frozen=True)
class SmallGeneralPoints:
    """Two cards of 1 to 9 and a target of two digits -> a formula, judged by the recipe's own verifier.

    The base saw sums of the right cards, whatever the target, and `share_solved` formulas with the right value: that
    the other operators are worth a try is rarely found by chance.
    """

    share_solved: float = 0.03
    pretraining_steps: int = 700
    name: str = "general-points-sums"
    vocabulary: int = 15
    prompt_length: int = 4
    response_length: int = 4

    characters = "0123456789+-*/."

    def prompts(self, num: int, split: str, generator: Generator) -> Tensor:
        found: list[list[int]] = []
        while len(found) < num:
            cards = torch.randint(1, 10, (2,), generator=generator).tolist()
            targets = _targets(tuple(sorted(cards)))
            target = targets[int(torch.randint(len(targets), (1,), generator=generator))]
            if (cards[0] + 13 * cards[1] + 169 * target) * 7919 % 101 % 10 in SPLITS[split]:
                found.append([*cards, target // 10, target % 10])
        return torch.tensor(found)

    def answers(self, prompts: Tensor, generator: Generator) -> Tensor:
        draws = torch.rand(len(prompts), generator=generator).tolist()
        rows = []
        for (*cards, tens, units), draw in zip(prompts.tolist(), draws, strict=True):
            solutions = solver.formulas(cards, 10 * tens + units)
            rows.append(self._encoded(solutions[int(draw * len(solutions))]))
        return torch.tensor(rows)

    def misleading_answers(self, prompts: Tensor) -> Tensor:
        raise NotImplementedError("General Points has exact demonstrations only")

    def base_answers(self, prompts: Tensor, generator: Generator) -> Tensor:
        answers = self.answers(prompts, generator).tolist()
        rng = random.Random(int(torch.randint(1 << 30, (1,), generator=generator)))
        for row, (*cards, _, _) in enumerate(prompts.tolist()):
            if rng.random() >= self.share_solved:
                answers[row] = self._encoded(f"{cards[0]}+{cards[1]}")
        return torch.tensor(answers)

    def rewards(self, prompts: Tensor, responses: Tensor) -> Tensor:
        texts = ["".join(self.characters[token] for token in row).partition(".")[0] for row in responses.tolist()]
        return torch.tensor(
            [_solves(tuple(prompt), text) for prompt, text in zip(prompts.tolist(), texts, strict=True)]
        )

    def mask(self, responses: Tensor) -> Tensor:
        ended = (responses == self.vocabulary - 1).cumsum(1) - (responses == self.vocabulary - 1).long()
        return (ended == 0).float()

    def _encoded(self, text: str) -> list[int]:
        return [self.characters.index(character) for character in text.ljust(self.response_length, ".")]


@lru_cache(maxsize=1 << 16)
def _solves(prompt: tuple[int, ...], formula: str) -> float:
    *cards, tens, units = prompt
    return float(verify(f'{{"formula": "{formula}"}}', cards, 10 * tens + units).success)


@lru_cache(maxsize=1 << 12)
def _targets(cards: tuple[int, ...]) -> list[int]:
    """Targets of two digits that some formula reaches."""
    return [target for target in sorted(solver.integer_targets(cards)) if target < 100]


@dataclass(frozen=True)
class Problem:
    """A world, its demonstrations and the length of a run.

    Attributes:
        num_demonstrations: size of the pool; None draws fresh ones for every step.
        share_misleading: of the demonstrations, before and from the middle of the run on.
        warm_up_steps, num_steps: supervised, then mixed.
    """

    name: str
    world: Any
    num_demonstrations: int | None = None
    share_misleading: tuple[float, float] = (0.0, 0.0)
    warm_up_steps: int = 20
    num_steps: int = 120

    def demonstrations(self, num: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
        """Prompts (num, P) and answers (num, T) of step `step`; the warm-up's steps are negative."""
        generator = generator_of(seed, "demonstrations", step + 1000)
        if self.num_demonstrations is None:
            prompts, answers, misleads = self.draw(num, generator)
        else:
            chosen = torch.randint(self.num_demonstrations, (num,), generator=generator)
            prompts, answers, misleads = (part[chosen] for part in _pool(self, self.num_demonstrations, seed))
        share = self.share_misleading[step >= self.num_steps / 2]
        if share > 0:
            is_misled = (misleads < share).unsqueeze(1)
            answers = torch.where(is_misled, self.world.misleading_answers(prompts), answers)
        return prompts, answers

    def draw(self, num: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Prompts (num, P), correct answers (num, T), and a number in [0, 1) each: misleading where below the share."""
        prompts = self.world.prompts(num, "train", generator)
        return prompts, self.world.answers(prompts, generator), torch.rand(num, generator=generator)


@lru_cache(maxsize=16)
def _pool(problem: Problem, num: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    return problem.draw(num, generator_of(seed, "pool", 0))


def generator_of(seed: int, stream: str, step: int) -> Generator:
    """A generator that depends on nothing but its arguments: what one controller draws does not shift another's."""
    return Generator().manual_seed(random.Random(f"{seed}/{stream}/{step}").getrandbits(60))


PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("few_clean", Sorting(4, 0.05), num_demonstrations=4, warm_up_steps=10),
        Problem("sparse", Sorting(5, 0.0), share_misleading=(0.1, 0.1), warm_up_steps=5),
        Problem("misleading", Sorting(4, 0.05), share_misleading=(0.6, 0.6), warm_up_steps=20),
        Problem("regime", Sorting(5, 0.0), share_misleading=(0.0, 1.0), warm_up_steps=5),
        Problem("general_points", SmallGeneralPoints(), warm_up_steps=5),
    )
}
