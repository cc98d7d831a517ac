"""Playing cards, drawn: the image of a hand as General Points shows it (Chu et al., arXiv 2501.17161).

The full size is theirs: 1200 x 1200 pixels, background #35654d, for four cards 270 x 378 each at x = 5, 302, 599, 896.
Everything scales with the size of the image and the number of cards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from recipe.amft.tasks.rendering.glyphs import SUITS, glyph, glyph_size, ink, suit

IMAGE_SIZE = 1200  # pixels
BACKGROUND = (0x35, 0x65, 0x4D)
CARD_WIDTH, CARD_HEIGHT = 270, 378  # the units of a card's layout
WHITE, EDGE = (250, 250, 246), (120, 120, 116)
INK = {"S": (16, 16, 20), "C": (16, 16, 20), "H": (196, 22, 34), "D": (196, 22, 34)}
COLOURS: dict[str, tuple[str, ...]] = {"black": ("S", "C"), "red": ("H", "D"), "mixed": SUITS}
RANKS = {1: "A", **{rank: str(rank) for rank in range(2, 11)}, 11: "J", 12: "Q", 13: "K"}

_LEFT, _MIDDLE, _RIGHT = 88, 135, 182
_ROWS = {1: 90, 2: 123, 3: 139, 4: 156, 5: 189, 6: 222, 7: 239, 8: 255, 9: 288}
# Pips of 2 to 10: (x, row) of their centres in the layout's units.
_PIPS: dict[int, tuple[tuple[int, int], ...]] = {
    2: ((_MIDDLE, 1), (_MIDDLE, 9)),
    3: ((_MIDDLE, 1), (_MIDDLE, 5), (_MIDDLE, 9)),
    4: tuple((x, row) for x in (_LEFT, _RIGHT) for row in (1, 9)),
    5: (*((x, row) for x in (_LEFT, _RIGHT) for row in (1, 9)), (_MIDDLE, 5)),
    6: tuple((x, row) for x in (_LEFT, _RIGHT) for row in (1, 5, 9)),
    7: (*((x, row) for x in (_LEFT, _RIGHT) for row in (1, 5, 9)), (_MIDDLE, 3)),
    8: (*((x, row) for x in (_LEFT, _RIGHT) for row in (1, 5, 9)), (_MIDDLE, 3), (_MIDDLE, 7)),
    9: (*((x, row) for x in (_LEFT, _RIGHT) for row in (1, 4, 6, 9)), (_MIDDLE, 5)),
    10: (*((x, row) for x in (_LEFT, _RIGHT) for row in (1, 4, 6, 9)), (_MIDDLE, 2), (_MIDDLE, 8)),
}

Card = tuple[int, str]  # rank 1 to 13, suit of SUITS


@dataclass(frozen=True)
class HandPicture:
    """The image of a hand, drawn when it is needed."""

    cards: tuple[Card, ...]
    side: int = IMAGE_SIZE

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return (self.side, self.side)

    def draw(self) -> Image.Image:
        """The RGB image."""
        return hand_image(self.cards, self.side)


def hand_image(cards: Sequence[Card], size: int = IMAGE_SIZE) -> Image.Image:
    """RGB image, `size` x `size`, of the cards from left to right."""
    image = _table(size).copy()
    for (left, top, width, height), (rank, name) in zip(places(len(cards), size), cards, strict=True):
        image[top : top + height, left : left + width] = card(rank, name, width, height)
    return Image.fromarray(image)


@lru_cache(maxsize=4)
def _table(size: int) -> np.ndarray:
    return np.full((size, size, 3), BACKGROUND, np.uint8)


def places(num_cards: int, size: int = IMAGE_SIZE) -> list[tuple[int, int, int, int]]:
    """(left, top, width, height) of each card: nine tenths of its share of the width, gaps of a tenth of a card."""
    width = int(size / num_cards * 0.9)
    height = width * CARD_HEIGHT // CARD_WIDTH
    margin = 5 * size // IMAGE_SIZE
    return [(margin + int(index * width * 1.1), (size - height) // 2, width, height) for index in range(num_cards)]


@lru_cache(maxsize=128)
def card(rank: int, name: str, width: int, height: int) -> np.ndarray:
    """One card, (height, width, 3) uint8, with rank and suit in two corners. Do not write to it."""
    scale = width / CARD_WIDTH
    image = _blank(width, height, scale).copy()
    _indices(image, rank, name, scale)
    if rank == 1:
        _symbol(image, name, CARD_WIDTH / 2, CARD_HEIGHT / 2, 118, scale)
    elif rank <= 10:
        for x, row in _PIPS[rank]:
            _symbol(image, name, x, _ROWS[row], 40, scale)
    else:
        _frame(image, INK[name], scale)
        letter_height = max(5, round(120 * scale))
        letter_width, _ = glyph_size(letter_height, 1.1)
        letter = glyph(RANKS[rank], letter_width, letter_height, 1.1)
        ink(image, letter, (width - letter_width) // 2, (height - letter_height) // 2, INK[name])
        _symbol(image, name, 92, 102, 44, scale)
        _symbol(image, name, CARD_WIDTH - 92, CARD_HEIGHT - 102, 44, scale)
    return image


@lru_cache(maxsize=4)
def _blank(width: int, height: int, scale: float) -> np.ndarray:
    """A white card with round corners on the table, and a thin edge. Do not write to it."""
    x, y = np.arange(width)[None, :] + 0.5, np.arange(height)[:, None] + 0.5
    radius = 14 * scale
    dx = np.maximum(np.abs(x - width / 2) - (width / 2 - radius), 0)
    dy = np.maximum(np.abs(y - height / 2) - (height / 2 - radius), 0)
    inside = radius - np.sqrt(dx * dx + dy * dy)  # pixels to the border where it is round; elsewhere at most `radius`
    inside = np.minimum(inside, np.minimum(np.minimum(x, width - x), np.minimum(y, height - y)))
    image = np.empty((height, width, 3), np.uint8)
    image[:] = WHITE
    ink(image, _cover(max(1.0, 2 * scale) - inside), 0, 0, EDGE)
    ink(image, _cover(-inside), 0, 0, BACKGROUND)
    return image


def _cover(depth: np.ndarray) -> np.ndarray:
    return np.asarray(np.round(np.clip(depth + 0.5, 0, 1) * 255), dtype=np.uint8)


def _indices(image: np.ndarray, rank: int, name: str, scale: float) -> None:
    """Rank and suit in the upper left corner, and turned by half a turn in the lower right one."""
    height, width, label = max(5, round(58 * scale)), max(4, round(37 * scale)), RANKS[rank]
    narrow = max(3, round(25 * scale)) if len(label) == 2 else width
    for place, character in enumerate(label):
        left = round(12 * scale) + place * (narrow + max(1, round(3 * scale)))
        _twice(image, glyph(character, narrow, height, 1.3), left, round(16 * scale), INK[name])
    side = max(3, round(38 * scale))
    symbol = suit(name, side, side)
    _twice(image, symbol, round(30 * scale - side / 2), round(102 * scale - side / 2), INK[name])


def _twice(image: np.ndarray, mask: np.ndarray, left: int, top: int, colour: tuple[int, int, int]) -> None:
    ink(image, mask, left, top, colour)
    height, width = image.shape[0] - top - mask.shape[0], image.shape[1] - left - mask.shape[1]
    ink(image, mask[::-1, ::-1], width, height, colour)


def _symbol(image: np.ndarray, name: str, x: float, y: float, size: float, scale: float) -> None:
    """A suit's symbol around (x, y) of the layout."""
    side = max(3, round(size * scale))
    ink(image, suit(name, side, side), round(x * scale - side / 2), round(y * scale - side / 2), INK[name])


def _frame(image: np.ndarray, colour: tuple[int, int, int], scale: float) -> None:
    """The frame of a picture card."""
    line = max(1, round(3 * scale))
    left, top = round(64 * scale), round(52 * scale)
    right, bottom = image.shape[1] - left, image.shape[0] - top
    for rows, columns in (
        (slice(top, top + line), slice(left, right)),
        (slice(bottom - line, bottom), slice(left, right)),
        (slice(top, bottom), slice(left, left + line)),
        (slice(top, bottom), slice(right - line, right)),
    ):
        image[rows, columns] = colour
