"""The deck: ranks 1..13, their names, the number each counts as, and seeded draws."""

import random
from typing import Literal

FaceRule = Literal["ten", "value"]

RANK_NAMES = {1: "A", **{rank: str(rank) for rank in range(2, 11)}, 11: "J", 12: "Q", 13: "K"}
MAX_RANK = max(RANK_NAMES)
FIRST_FACE_RANK = 11


def card_value(rank: int, face_rule: FaceRule) -> int:
    """The number a card counts as: J, Q, K are 10 each (`ten`, in distribution) or 11, 12, 13 (`value`)."""
    return min(rank, 10) if face_rule == "ten" else rank


def draw_ranks(rng: random.Random, num_cards: int, max_rank: int, require_face: bool) -> list[int]:
    """`num_cards` independent uniform ranks; with `require_face` one of them, at a random place, is J, Q or K."""
    ranks = [rng.randint(1, max_rank) for _ in range(num_cards)]
    if require_face:
        ranks[-1] = rng.randint(FIRST_FACE_RANK, max_rank)
        rng.shuffle(ranks)
    return ranks
