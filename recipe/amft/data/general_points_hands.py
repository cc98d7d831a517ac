"""Which hands of General Points go into which split: all solvable ones, in groups that must stay together."""

import random
from collections.abc import Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any, Literal

from recipe.amft.tasks.general_points import solver
from recipe.amft.tasks.general_points.cards import FIRST_FACE_RANK, card_value
from recipe.amft.tasks.general_points.environment import GeneralPoints

Hand = tuple[tuple[int, ...], int]  # ranks in ascending order, target
Disjoint = Literal["pair", "multiset"]


def solvable_hands(environment: GeneralPoints, targets: Sequence[int]) -> list[Hand]:
    """Every (multiset of ranks, target) that the game can deal and an exact formula solves."""
    return [
        (ranks, target)
        for ranks in combinations_with_replacement(range(1, environment.ranks + 1), environment.num_cards)
        if ranks[-1] >= FIRST_FACE_RANK or not environment.require_face
        for target in targets
        if solver.solvable(numbers(environment, ranks), target)
    ]


def numbers(environment: GeneralPoints, ranks: Sequence[int]) -> tuple[int, ...]:
    """What the cards count as, in ascending order."""
    return tuple(sorted(card_value(rank, environment.face_rule) for rank in ranks))


def group(environment: GeneralPoints, hand: Hand, disjoint: Disjoint) -> Any:
    """What two hands of different splits must not share: (numbers, target) for `pair`, numbers for `multiset`."""
    ranks, target = hand
    return (numbers(environment, ranks), target) if disjoint == "pair" else numbers(environment, ranks)


def split_hands(
    environment: GeneralPoints,
    hands: Sequence[Hand],
    sizes: Mapping[str, int],
    disjoint: Disjoint,
    rng: random.Random,
) -> dict[str, list[Hand]]:
    """Deals whole groups (hands that must stay together) to the splits by share, then samples each split's hands."""
    wanted = sum(sizes.values())
    if wanted > len(hands):
        raise _too_small(sizes, len(hands))
    shuffled = _shuffled_groups(environment, hands, disjoint, rng)
    splits = {}
    for split in sorted(sizes, key=lambda split: sizes[split]):  # the largest last: it takes the rounding
        pool = _take(shuffled, len(hands) * sizes[split] // max(wanted, 1))
        if len(pool) < sizes[split]:
            raise _too_small(sizes, len(hands))
        splits[split] = rng.sample(pool, sizes[split])
    return {split: splits[split] for split in sizes}


def held_out_hands(
    environment: GeneralPoints, hands: Sequence[Hand], num_hands: int, disjoint: Disjoint, rng: random.Random
) -> list[Hand]:
    """`num_hands` hands from no more whole groups than they need.

    Few groups, because one hand from each of many would cost the other splits nearly all hands with several tens:
    there, K K 4 6 stands and falls with the 9 other ways to show 10 10 4 6.
    """
    if num_hands > len(hands):
        raise _too_small({"evaluation": num_hands}, len(hands))
    return rng.sample(_take(_shuffled_groups(environment, hands, disjoint, rng), num_hands), num_hands)


def _shuffled_groups(
    environment: GeneralPoints, hands: Sequence[Hand], disjoint: Disjoint, rng: random.Random
) -> list[list[Hand]]:
    groups: dict[Any, list[Hand]] = {}
    for hand in hands:
        groups.setdefault(group(environment, hand, disjoint), []).append(hand)
    shuffled = list(groups.values())
    rng.shuffle(shuffled)
    return shuffled


def _take(groups: list[list[Hand]], at_least: int) -> list[Hand]:
    """The hands of as many groups from the end of `groups`, which are removed there, as hold `at_least` hands."""
    pool: list[Hand] = []
    while groups and len(pool) < at_least:
        pool += groups.pop()
    return pool


def _too_small(sizes: Mapping[str, int], num_hands: int) -> ValueError:
    return ValueError(
        f"the game has {num_hands} solvable (cards, target) pairs, too few for disjoint splits of {dict(sizes)}; "
        "ask for fewer, or add targets, ranks or cards"
    )
