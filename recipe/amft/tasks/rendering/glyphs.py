"""Letters, digits and card suits as geometry, rasterised by numpy: no font file, no drawing library.

A glyph is a set of polylines on a grid 4 wide and 6 high (y downwards), a suit a region of [-1, 1] x [-1, 1]. A mask is
the share of each pixel that is covered, 0 to 255, so the same glyph at the same size has the same bytes everywhere.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import numpy as np

GRID_WIDTH, GRID_HEIGHT = 4.0, 6.0
SUITS = ("S", "H", "D", "C")  # spades, hearts, diamonds, clubs
SUBSAMPLES = 4  # per pixel and axis, of a suit's region

Mask = np.ndarray  # (height, width) uint8
Points = tuple[np.ndarray, np.ndarray]

_STROKES = {
    "A": "0,6 2,0 4,6|0.8,3.8 3.2,3.8",
    "B": "0,0 0,6 3,6 4,5 4,4 3,3 0,3|0,0 3,0 4,1 4,2 3,3",
    "C": "4,1 3,0 1,0 0,1 0,5 1,6 3,6 4,5",
    "D": "0,0 0,6 2.5,6 4,4.5 4,1.5 2.5,0 0,0",
    "E": "4,0 0,0 0,6 4,6|0,3 3,3",
    "F": "4,0 0,0 0,6|0,3 3,3",
    "G": "4,1 3,0 1,0 0,1 0,5 1,6 3,6 4,5 4,3.2 2.4,3.2",
    "H": "0,0 0,6|4,0 4,6|0,3 4,3",
    "I": "2,0 2,6|1,0 3,0|1,6 3,6",
    "J": "1.6,0 4,0|3.2,0 3.2,5 2.2,6 1,6 0,5 0,4.2",
    "K": "0,0 0,6|4,0 0,3.6|1.3,2.5 4,6",
    "L": "0,0 0,6 4,6",
    "M": "0,6 0,0 2,3 4,0 4,6",
    "N": "0,6 0,0 4,6 4,0",
    "O": "1,0 3,0 4,1 4,5 3,6 1,6 0,5 0,1 1,0",
    "P": "0,6 0,0 3,0 4,1 4,2.4 3,3.4 0,3.4",
    "Q": "1,0 3,0 4,1 4,5 3,6 1,6 0,5 0,1 1,0|2.3,4.2 4,6",
    "R": "0,6 0,0 3,0 4,1 4,2.4 3,3.4 0,3.4|2,3.4 4,6",
    "S": "4,1 3,0 1,0 0,1 0,2 1,3 3,3 4,4 4,5 3,6 1,6 0,5",
    "T": "0,0 4,0|2,0 2,6",
    "U": "0,0 0,5 1,6 3,6 4,5 4,0",
    "V": "0,0 2,6 4,0",
    "W": "0,0 1,6 2,2.5 3,6 4,0",
    "X": "0,0 4,6|4,0 0,6",
    "Y": "0,0 2,3 4,0|2,3 2,6",
    "Z": "0,0 4,0 0,6 4,6",
    "0": "1.2,0 2.8,0 3.8,1.2 3.8,4.8 2.8,6 1.2,6 0.2,4.8 0.2,1.2 1.2,0",
    "1": "0.8,1.4 2.2,0 2.2,6|0.8,6 3.6,6",
    "2": "0,1.2 1,0 3,0 4,1.2 4,2.2 0,6 4,6",
    "3": "0,0 4,0 2,2.4 3,2.4 4,3.4 4,5 3,6 1,6 0,5",
    "4": "3,6 3,0 0,4.2 4.2,4.2",
    "5": "4,0 0.2,0 0,2.8 3,2.6 4,3.6 4,5 3,6 1,6 0,5",
    "6": "3.5,0.2 2,0 0.6,1.2 0,3 0,5 1,6 3,6 4,5 4,3.8 3,2.8 1,2.8 0,3.8",
    "7": "0,0 4,0 1.4,6",
    "8": "1,0 3,0 4,1 4,2 3,3 1,3 0,2 0,1 1,0|1,3 0,4 0,5 1,6 3,6 4,5 4,4 3,3",
    "9": "0.5,5.8 2,6 3.4,4.8 4,3 4,1 3,0 1,0 0,1 0,2.2 1,3.2 3,3.2 4,2.2",
    "&": "4,6 0.8,1.8 0.8,0.8 1.6,0 2.4,0 3.2,0.8 3,1.8 0,4 0,5 1,6 2,6 4,3.8",
    "-": "1,3 3,3",
    "'": "2,0 2,1.2",
    ".": "2,5.9 2,6",
    " ": "",
}
_UNKNOWN = "0,0 4,0 4,6 0,6 0,0"


def glyph_size(height: int, weight: float) -> tuple[int, int]:
    """(width, height) in pixels of a character's mask with capitals `height` high, strokes `weight` grid units wide."""
    unit = height / (GRID_HEIGHT + weight)
    return round(unit * (GRID_WIDTH + weight)), height


@lru_cache(maxsize=1024)
def glyph(character: str, width: int, height: int, weight: float) -> Mask:
    """The mask of a capital letter, a digit or a sign; other characters are an empty frame. Do not write to it."""
    segments = [
        pair
        for stroke in _STROKES.get(character.upper(), _UNKNOWN).split("|")
        if stroke
        for pair in _segments([tuple(map(float, point.split(","))) for point in stroke.split(" ")])
    ]
    scale = np.array([width / (GRID_WIDTH + weight), height / (GRID_HEIGHT + weight)])
    x, y = _pixel_centres(width, height)
    distance = np.full((height, width), np.inf)
    for start, end in segments:
        a, b = ((np.array(point) + weight / 2) * scale for point in (start, end))
        along = b - a
        square = float(along[0] * along[0] + along[1] * along[1])
        share = np.clip(((x - a[0]) * along[0] + (y - a[1]) * along[1]) / max(square, 1e-9), 0, 1)
        dx, dy = x - a[0] - share * along[0], y - a[1] - share * along[1]
        distance = np.minimum(distance, np.sqrt(dx * dx + dy * dy))
    return _to_bytes(np.clip(weight * float(scale.min()) / 2 - distance + 0.5, 0, 1))


@lru_cache(maxsize=256)
def suit(name: str, width: int, height: int) -> Mask:
    """The mask of a suit's symbol. Do not write to it."""
    x, y = _pixel_centres(width * SUBSAMPLES, height * SUBSAMPLES)
    inside = _REGIONS[name]((2 * x / (width * SUBSAMPLES) - 1, 2 * y / (height * SUBSAMPLES) - 1))
    shares = inside.reshape(height, SUBSAMPLES, width, SUBSAMPLES).mean(axis=(1, 3))
    return _to_bytes(shares)


@lru_cache(maxsize=1024)
def text(line: str, height: int, weight: float = 0.9) -> Mask:
    """A line of text, capitals `height` high. Do not write to it."""
    width, _ = glyph_size(height, weight)
    gap = max(1, round(width / 5))
    mask = np.zeros((height, len(line) * (width + gap) - gap if line else 1), np.uint8)
    for index, character in enumerate(line):
        left = index * (width + gap)
        mask[:, left : left + width] = glyph(character, width, height, weight)
    return mask


def ink(image: np.ndarray, mask: Mask, left: int, top: int, colour: tuple[int, int, int]) -> None:
    """Lay `colour` over `image` (H, W, 3) where `mask` says; what is outside of the image is cut off."""
    height, width = image.shape[:2]
    rows, columns = (max(0, top), min(height, top + mask.shape[0])), (max(0, left), min(width, left + mask.shape[1]))
    if rows[0] >= rows[1] or columns[0] >= columns[1]:
        return
    cover = mask[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left, None].astype(np.int32)
    part = image[rows[0] : rows[1], columns[0] : columns[1]]
    part[:] = (part * (255 - cover) + np.array(colour) * cover + 127) // 255


def _segments(points: list) -> list:
    return list(pairwise(points))


def _pixel_centres(width: int, height: int) -> Points:
    return np.arange(width)[None, :] + 0.5, np.arange(height)[:, None] + 0.5


def _to_bytes(shares: np.ndarray) -> Mask:
    return np.asarray(np.round(shares * 255), dtype=np.uint8)


# ---- the suits' regions ----------------------------------------------------------------------------------------------


def _disk(at: Points, x: float, y: float, radius: float) -> np.ndarray:
    return (at[0] - x) ** 2 + (at[1] - y) ** 2 <= radius**2


def _diamond(at: Points) -> np.ndarray:
    return np.abs(at[0]) / 0.78 + np.abs(at[1]) <= 1


def _heart(at: Points) -> np.ndarray:
    x, y = at
    lower = (y >= -0.2) & (np.abs(x) <= 0.93 * np.sqrt(np.clip((1 - y) / 1.2, 0, 1)) * np.clip((1.35 - y) / 1.3, 0, 1))
    return _disk(at, -0.48, -0.42, 0.5) | _disk(at, 0.48, -0.42, 0.5) | _disk(at, 0, -0.15, 0.2) | lower


def _stem(at: Points) -> np.ndarray:
    x, y = at
    return (y >= 0.1) & (y <= 1) & (np.abs(x) <= 0.07 + 0.3 * np.clip(y - 0.3, 0, 1) ** 2)


def _spade(at: Points) -> np.ndarray:
    return _heart((at[0], -(at[1] + 0.13) / 0.87)) | _stem(at)


def _club(at: Points) -> np.ndarray:
    leaves = _disk(at, 0, -0.52, 0.45) | _disk(at, -0.5, 0.18, 0.45) | _disk(at, 0.5, 0.18, 0.45)
    return leaves | _disk(at, 0, 0, 0.28) | _stem(at)


_REGIONS: dict[str, Callable[[Points], np.ndarray]] = {"S": _spade, "H": _heart, "D": _diamond, "C": _club}
