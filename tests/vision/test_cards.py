"""The drawn cards: the same bytes per seed, laid out as the paper's, and legible."""

import hashlib
import pickle

import numpy as np
import pytest

from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.rendering.cards import BACKGROUND, COLOURS, HandPicture, card, hand_image, places
from recipe.amft.tasks.rendering.glyphs import SUITS

GOLDEN = {
    (0, "black", 1200): "9fe03612ccf20b30",
    (1, "red", 1200): "3b1dbb916d46f9c6",
    (2, "mixed", 224): "e27cf223163ca47f",
    (3, "black", 112): "3384c5e63032ab48",
}


def drawn(seed: int, colours: str, size: int) -> np.ndarray:
    environment = make_environment("general_points", {"modality": "image", "colours": colours, "image_size": size})
    observation, _ = environment.reset(seed)
    return np.asarray(observation["images"][0].draw())


@pytest.mark.parametrize("case", sorted(GOLDEN, key=str))
def test_a_seed_draws_the_same_bytes_everywhere(case):
    """No font and no drawing library takes part, so the hash holds on any machine."""
    assert hashlib.sha256(drawn(*case).tobytes()).hexdigest()[:16] == GOLDEN[case]


def test_the_full_size_is_laid_out_as_the_public_images():
    assert places(4) == [(left, 411, 270, 378) for left in (5, 302, 599, 896)]
    image = np.asarray(hand_image([(1, "S"), (2, "C"), (3, "S"), (4, "C")]))
    assert image.shape == (1200, 1200, 3)
    outside = np.ones((1200, 1200), bool)
    for left, top, width, height in places(4):
        outside[top : top + height, left : left + width] = False
    assert (image[outside] == BACKGROUND).all()


def test_a_picture_is_drawn_when_needed_and_says_its_size_before():
    picture = HandPicture(((1, "S"), (13, "H")), 300)
    assert picture.size == picture.draw().size == (300, 300)
    assert pickle.loads(pickle.dumps(picture)).draw().tobytes() == picture.draw().tobytes()


@pytest.mark.parametrize("colours", ["black", "red"])
def test_colours(colours):
    """Ink is grey in black suits and red in red ones."""
    image = drawn(5, colours, 400).astype(int)
    reddish = (image[..., 0] - image[..., 1] > 100).any()
    assert reddish == (colours == "red")


def ink(part: np.ndarray) -> np.ndarray:
    """How far each pixel is from white, relative to the darkest; colour does not matter."""
    distance = 255.0 - part.astype(float).min(axis=2)
    return distance / distance.max()


def corner(image: np.ndarray, place: tuple[int, int, int, int]) -> np.ndarray:
    """Where the rank stands on a card."""
    left, top, width, height = place
    return ink(image[top + height // 30 : top + height // 5, left + width // 25 : left + width // 4])


@pytest.mark.parametrize("size", [1200, 448, 224])
@pytest.mark.parametrize("colours", ["black", "red"])
def test_a_template_matcher_reads_every_card(size, colours):
    """The rank by its corner, against the corners of the spades: right for each of 13 ranks in each suit and place."""
    spots = places(4, size)
    _, _, width, height = spots[0]
    templates = {rank: corner(card(rank, "S", width, height), (0, 0, width, height)) for rank in range(1, 14)}
    for suit in COLOURS[colours]:
        for first in range(1, 14):
            hand = [((first + shift) % 13 + 1, suit) for shift in range(4)]
            image = np.asarray(hand_image(hand, size))
            for (rank, _), place in zip(hand, spots, strict=True):
                seen = corner(image, place)
                nearest = min(templates, key=lambda other: float(np.abs(templates[other] - seen).mean()))
                assert nearest == rank


def test_every_card_is_different():
    """52 pictures, no two alike, at the full size and at that of the tiny model."""
    for width in (270, 50):
        pictures = {card(rank, suit, width, width * 7 // 5).tobytes() for rank in range(1, 14) for suit in SUITS}
        assert len(pictures) == 52
