"""What the quickstart's tiny base model knows before it meets the game: chats about plain arithmetic.

A chat is a few independent questions of three kinds, none of which has the game's format:

    user: Numbers: 3 5 7            assistant: (3+5)*7=56     user: Another.     assistant: 7-5+3=5
    user: Make 12                   assistant: 3*8/2=12
    user: Numbers: 3 8 5 Make 19    assistant: 3*8-5=19

The first uses given numbers for whatever value comes out, the second reaches a value with whatever numbers, the third
does both for two or three numbers: the game's arithmetic without its wording, its answer format, its turns and its
held-out hands (no chat contains an equation of a validation or test hand).
"""

import json
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

from recipe.amft.data.general_points import splits_from_options
from recipe.amft.tasks.general_points import solver

Message = dict[str, str]
Hand = tuple[tuple[int, ...], int]  # numbers in ascending order, value


@dataclass(frozen=True)
class Equations:
    """All equations that chats may use: by the numbers in them, by their value, and by both."""

    by_numbers: dict[tuple[int, ...], list[str]]
    by_value: dict[int, list[str]]
    problems: dict[Hand, list[str]]


def held_out_hands(task_options: Mapping[str, Any]) -> set[Hand]:
    """Numbers and targets of the validation and test hands of a General Points task (its `make` options)."""
    splits = splits_from_options(task_options)
    hands = set()
    for split in ("validation", "test"):
        for row in splits[split]:
            hand = json.loads(row["extra_info"]["options"])
            hands.add((tuple(sorted(hand["cards"])), hand["target"]))
    return hands


def equations(largest: int, counts: Iterable[int], largest_value: int, excluded: set[Hand]) -> Equations:
    """Every equation over `counts` numbers from 1 to `largest` with a whole value up to `largest_value`."""
    by_numbers: dict[tuple[int, ...], list[str]] = {}
    by_value: dict[int, list[str]] = {}
    problems: dict[Hand, list[str]] = {}
    for count in counts:
        for numbers in combinations_with_replacement(range(1, largest + 1), count):
            for value in sorted(solver.integer_targets(numbers)):
                if value > largest_value or (numbers, value) in excluded:
                    continue
                found = [f"{formula}={value}" for formula in solver.formulas(numbers, value)]
                by_numbers.setdefault(numbers, []).extend(found)
                by_value.setdefault(value, []).extend(found)
                problems[numbers, value] = found
    return Equations(by_numbers, by_value, problems)


def chats(source: Equations, seed: int, questions: int = 4) -> Iterable[list[Message]]:
    """Endless chats of `questions` or one more questions each, in a seeded order.

    Several questions in a chat fill a batch evenly, and teach that an answer belongs to the question right before it.
    """
    rng = random.Random(seed)
    numbers, values, problems = list(source.by_numbers), list(source.by_value), list(source.problems)
    while True:
        chat: list[Message] = []
        while len(chat) < 2 * questions:
            kind = rng.random()
            if kind < 0.35:
                chosen = rng.choice(numbers)
                known = source.by_numbers[chosen]
                chat += turn(f"Numbers: {shuffled(chosen, rng)}", rng.choice(known))
                if len(known) > 1 and rng.random() < 0.5:
                    chat += turn("Another.", rng.choice([answer for answer in known if answer != chat[-1]["content"]]))
            elif kind < 0.5:
                value = rng.choice(values)
                chat += turn(f"Make {value}", rng.choice(source.by_value[value]))
            else:
                chosen, value = rng.choice(problems)
                answer = rng.choice(source.problems[chosen, value])
                chat += turn(f"Numbers: {shuffled(chosen, rng)} Make {value}", answer)
        yield chat


def turn(question: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def shuffled(numbers: tuple[int, ...], rng: random.Random) -> str:
    return " ".join(map(str, rng.sample(numbers, len(numbers))))
