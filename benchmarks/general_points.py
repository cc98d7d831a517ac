"""General Points on one core: how many hands a second the solver looks up and the verifier judges.

    python -m benchmarks.general_points [--repeats 3]

Prints the best of the repeats (the machine may be busy). Exits with status 1 below 20,000 hands a second in looking up
hands or in judging answers: above that, the environment costs nothing beside the model.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable

from recipe.amft.tasks.general_points import solver
from recipe.amft.tasks.general_points.cards import card_value
from recipe.amft.tasks.general_points.environment import GeneralPoints
from recipe.amft.tasks.general_points.verifier import verify

NEEDED = 20_000
TARGET = 24
DEALS = [[card_value(rank, "ten") for rank in deal] for deal in itertools.product(range(1, 14), repeat=4)]


def rate(work: Callable[[], int], repeats: int) -> float:
    """Hands a second, the best of `repeats`; `work` returns how many it did."""
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        count = work()
        best = max(best, count / (time.perf_counter() - start))
    return best


def looks_up() -> int:
    """Every ordered deal: is it solvable?"""
    for deal in DEALS:
        solver.solvable(deal, TARGET)
    return len(DEALS)


def looks_up_formulas() -> int:
    """Every ordered deal: all its solutions, as a demonstration needs them."""
    for deal in DEALS:
        solver.formulas(deal, TARGET)
    return len(DEALS)


def solves_from_scratch() -> int:
    """Every multiset of values, nothing cached."""
    for cached in (solver._solvable, solver._integer_targets, solver._formulas, solver._expressions):
        cached.cache_clear()
    hands = list(itertools.combinations_with_replacement(range(1, 11), 4))
    for hand in hands:
        solver.formulas(hand, TARGET)
    return len(hands)


def judges(outputs: Iterable[tuple[str, list[int]]], mode: str) -> Callable[[], int]:
    """Verdicts on (output, numbers of the hand)."""
    outputs = list(outputs)

    def work() -> int:
        for output, numbers in outputs:
            verify(output, numbers, TARGET, mode)
        return len(outputs)

    return work


def plays() -> int:
    """Whole episodes: draw a hand, one wrong answer, the expert's answer."""
    environment = GeneralPoints()
    count = 3000
    for seed in range(count):
        environment.reset(seed)
        environment.step('{"formula": "1+1"}')
        environment.step(environment.expert_action())
    return count


def right_answers() -> list[tuple[str, list[int]]]:
    return [
        (json.dumps({"cards": deal, "number": deal, "formula": f"{found[0]}={TARGET}"}), deal)
        for deal in DEALS
        if (found := solver.formulas(deal, TARGET))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    right = right_answers()
    prose = [(f"Let me try {'10 and 6, ' * 50} so: {output}", numbers) for output, numbers in right]
    rates = {
        "solver: is a hand solvable (looked up)": rate(looks_up, repeats),
        "solver: all solutions of a hand (looked up)": rate(looks_up_formulas, repeats),
        "solver: all solutions of a hand (computed)": rate(solves_from_scratch, repeats),
        "verifier: right answers, mode paper": rate(judges(right, "paper"), repeats),
        "verifier: right answers, mode upstream": rate(judges(right, "upstream"), repeats),
        "verifier: right answers after 500 characters": rate(judges(prose, "paper"), repeats),
        "environment: episodes of two answers": rate(plays, repeats),
    }
    for name, value in rates.items():
        print(f"{name:46} {value:12,.0f} a second")
    slow = [name for name, value in rates.items() if value < NEEDED and ("looked up" in name or "verifier" in name)]
    if slow:
        sys.exit(f"below the {NEEDED:,} a second needed: {'; '.join(slow)}")


if __name__ == "__main__":
    main()
