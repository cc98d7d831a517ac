"""One card in a picture, never twice at the same place and size; the answer is its rank."""

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from recipe.amft.tasks.environment import IMAGE, Observation
from recipe.amft.tasks.rendering.cards import BACKGROUND, CARD_HEIGHT, CARD_WIDTH, COLOURS, RANKS, card


@dataclass(frozen=True)
class CardPicture:
    """A card on a table of some brightness; `width`, `left` and `top` in pixels."""

    rank: int
    suit: str
    side: int
    width: int
    left: int
    top: int
    brightness: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return (self.side, self.side)

    def draw(self) -> Image.Image:
        """The RGB image."""
        image = np.empty((self.side, self.side, 3), np.uint8)
        image[:] = [round(self.brightness * part) for part in BACKGROUND]
        height = card_height(self.width)
        picture = card(self.rank, self.suit, self.width, height)
        image[self.top : self.top + height, self.left : self.left + self.width] = picture
        return Image.fromarray(image)


def card_height(width: int) -> int:
    """Of a card `width` pixels wide."""
    return width * CARD_HEIGHT // CARD_WIDTH


@dataclass(kw_only=True)
class CardReading:
    """Ends after one answer: reward 1.0 for the rank (A, 2 to 10, J, Q, K), else 0.0."""

    image_size: int = 84  # pixels per side
    colours: str = "black"  # of the suits: black | red | mixed
    spread: float = 1.0  # how much place and size differ: 0 not at all, 1 anywhere in the image

    _picture: CardPicture | None = field(default=None, init=False)
    _open: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.image_size, int) or isinstance(self.image_size, bool) or self.image_size < 56:
            raise ValueError(f"image_size must be an integer, 56 or more; got {self.image_size!r}")
        if self.colours not in COLOURS:
            raise ValueError(f"colours must be one of {', '.join(COLOURS)}; got {self.colours!r}")
        if not 0 <= self.spread <= 1:
            raise ValueError(f"spread must be from 0 (one place) to 1 (anywhere in the image); got {self.spread!r}")

    def reset(self, seed: int, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Draws rank, suit, place, size and brightness from `seed`; there are no options."""
        if options:
            raise ValueError(f"unknown reset options {sorted(options)}; there are none")
        rng, side = random.Random(seed), self.image_size
        rank, suit = rng.randint(1, len(RANKS)), rng.choice(COLOURS[self.colours])
        width = round(side * (0.63 + self.spread * rng.uniform(-0.05, 0.05)))
        left, top = (
            round(room * (0.5 + self.spread * rng.uniform(-0.5, 0.5)))
            for room in (side - width, side - card_height(width))
        )
        self._picture = CardPicture(rank, suit, side, width, left, top, rng.uniform(0.6, 1.4))
        self._open = True
        return {"text": f"{IMAGE}Card?", "images": [self._picture], "reset_context": False}, {"rank": RANKS[rank]}

    def step(self, text: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Judges the answer; info: success, verdict, recognition_accuracy."""
        if not self._open:
            raise RuntimeError("step() without an open episode: call reset() first")
        self._open = False
        success = text.strip().upper() == self.expert_action()
        info = {
            "success": success,
            "verdict": "correct" if success else "wrong_rank",
            "recognition_accuracy": float(success),
        }
        return {"text": "", "images": [], "reset_context": False}, float(success), success, not success, info

    def expert_action(self) -> str:
        """The card's rank."""
        if self._picture is None:
            raise RuntimeError("expert_action() without a card: call reset() first")
        return RANKS[self._picture.rank]
