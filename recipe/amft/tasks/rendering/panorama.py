"""Four views of a user's own panorama: `{id}.jpg` (equirectangular) and `{id}.metadata.json` ({"rotation": degrees}).

The convention is that of the public V-IRL code: heading h is shown (h - 180 + rotation) degrees to the right of the
picture's middle. Routes without panorama ids need `panoramas.json` in the folder: {id: [latitude, longitude], ...}.
"""

import json
import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from recipe.amft.tasks.rendering.grid import VIEW_SIZE, grid, grid_size
from recipe.amft.tasks.virl.city import VIEWS
from recipe.amft.tasks.virl.geography import Geocode, distance_metres

INDEX = "panoramas.json"
NEAREST = 20.0  # metres within which a place finds its panorama
MAX_PIXELS = 2**28  # of a panorama; larger files are refused before they are decoded


@dataclass(frozen=True)
class PanoramaFolder:
    """A folder of panoramas. ValueError names the file that is missing or cannot be read."""

    path: str

    def views(self, name: str, heading: float, size: int) -> np.ndarray:
        """(4, size, size, 3) uint8: front, right, back and left of somebody who faces `heading`."""
        rotation = self._json(f"{name}.metadata.json").get("rotation")
        if isinstance(rotation, bool) or not isinstance(rotation, int | float) or not math.isfinite(rotation):
            raise ValueError(f"{Path(self.path) / name}.metadata.json: rotation is {rotation!r}, must be degrees")
        picture = _read(str(Path(self.path) / f"{name}.jpg"))
        middle = (heading - 180 + rotation) % 360
        return np.stack([perspective(picture, middle + 90 * index, size) for index in range(len(VIEWS))])

    def nearest(self, place: Geocode) -> str:
        """The id of the panorama next to `place`; ValueError where none is within 20 m."""
        name = min(self._places, key=lambda name: distance_metres(self._places[name], place))
        away = distance_metres(self._places[name], place)
        if away > NEAREST:
            raise ValueError(
                f"{Path(self.path) / INDEX}: the nearest panorama to {place} is {name!r}, {away:.0f} m away; at most "
                f"{NEAREST:.0f} m are allowed: add the missing panoramas"
            )
        return name

    @cached_property
    def _places(self) -> dict[str, Geocode]:
        values = self._json(INDEX)
        try:
            places = {str(name): (float(latitude), float(longitude)) for name, (latitude, longitude) in values.items()}
        except (TypeError, ValueError):
            places = {}
        if not places:
            raise ValueError(f"{Path(self.path) / INDEX} must hold {{id: [latitude, longitude], ...}}, at least one")
        return places

    def _json(self, name: str) -> dict[str, Any]:
        path = Path(self.path) / name
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"panorama file {path} cannot be read ({error}); docs/vision.md has the format") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} must be a JSON object; docs/vision.md has the format")
        return values


@dataclass(frozen=True)
class PanoramaPicture:
    """The four views of a panorama as one image, drawn when it is needed."""

    folder: str
    panorama: str
    heading: float
    view_size: int = VIEW_SIZE

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return grid_size(self.view_size)

    def draw(self) -> Image.Image:
        """The RGB image."""
        return Image.fromarray(grid(PanoramaFolder(self.folder).views(self.panorama, self.heading, self.view_size)))


@lru_cache(maxsize=8)
def panorama_folder(path: str) -> PanoramaFolder:
    """The folder, whose index is read once."""
    return PanoramaFolder(path)


def perspective(picture: np.ndarray, right: float, size: int) -> np.ndarray:
    """The 90-degree view of an equirectangular picture (H, W, 3), `right` degrees to the right of its middle."""
    height, width = picture.shape[:2]
    steps = (np.arange(size) + 0.5 - size / 2) / (size / 2)
    x, y = steps[None, :], steps[:, None]
    longitude = np.arctan(x) + math.radians(right)
    latitude = np.arctan(y / np.sqrt(1 + x * x))
    columns = np.broadcast_to((longitude / (2 * math.pi) + 0.5) * width - 0.5, (size, size))
    rows = np.clip((latitude / math.pi + 0.5) * height - 0.5, 0, height - 1)
    left, top = np.floor(columns).astype(np.int64), np.floor(rows).astype(np.int64)
    share_x, share_y = (columns - left)[..., None], (rows - top)[..., None]
    below = np.minimum(top + 1, height - 1)
    left, after = left % width, (left + 1) % width
    upper = picture[top, left] * (1 - share_x) + picture[top, after] * share_x
    lower = picture[below, left] * (1 - share_x) + picture[below, after] * share_x
    return np.asarray(np.round(upper * (1 - share_y) + lower * share_y), dtype=np.uint8)


@lru_cache(maxsize=8)
def _read(path: str) -> np.ndarray:
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{image.width} x {image.height} pixels are too many")
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError) as error:
        raise ValueError(f"panorama {path} cannot be read ({error}); docs/vision.md has the format") from None
