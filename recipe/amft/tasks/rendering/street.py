"""Four views from a place in a synthetic city, by ray casting in numpy: facades, sidewalks, and the shops' signs.

Free space is the union of streets, each the convex set of points within `half_width` of its axis, so a ray's way to the
wall is exact: the end of the chain of overlapping intervals that starts at the camera. Units are metres; a view is a
90-degree perspective, so that the four of them close the circle.

Legend: C columns of all views, S streets, the depth of a point is its distance along the view's axis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from recipe.amft.tasks.rendering.glyphs import glyph_size, ink, text
from recipe.amft.tasks.rendering.grid import VIEW_SIZE, grid, grid_size
from recipe.amft.tasks.virl.city import VIEWS, City, CityOptions, Shop, make_city
from recipe.amft.tasks.virl.geography import Point

CAMERA = 2.5  # metres above the ground
NEAR, FAR = 0.2, 400.0
SIGN_DISTANCE = 70.0  # from farther away a sign is not drawn
SIGN_BOTTOM, SIGN_TOP = 2.9, 5.1
SIGN_SLACK = 0.5  # metres a sign may stand before or behind the wall
TEXTURE_HEIGHT = 88  # pixels of a sign's picture
FLOOR, WINDOW = 3.2, 2.7  # metres from floor to floor, from window to window
FACADE = 17.0  # metres of street for each building
SIDEWALK = 2.4  # metres
FOG = 260.0  # metres

Colour = tuple[int, int, int]
SIGNS: tuple[Colour, ...] = (
    (150, 24, 32), (22, 74, 140), (20, 104, 58), (226, 176, 30),
    (92, 38, 120), (214, 98, 24), (30, 30, 34), (12, 120, 126),
)  # fmt: skip


@dataclass(frozen=True)
class Palette:
    """Colours of a kind of city."""

    sky: tuple[Colour, Colour]  # at the top, at the horizon
    road: Colour
    sidewalk: Colour
    facades: tuple[Colour, ...]
    glass: Colour


PALETTES = {
    "grid": Palette(
        ((96, 142, 198), (206, 218, 230)), (84, 86, 90), (158, 156, 150),
        ((146, 84, 66), (178, 150, 120), (120, 112, 106), (196, 180, 152), (104, 78, 66), (168, 166, 164)),
        (62, 76, 92),
    ),
    "irregular": Palette(
        ((170, 150, 176), (240, 218, 190)), (116, 102, 92), (190, 178, 158),
        ((220, 202, 168), (206, 138, 104), (190, 206, 196), (232, 216, 200), (172, 120, 110), (214, 190, 120)),
        (96, 82, 74),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Walls:
    """What the C columns see behind the free space: depth (C,), street, metres along it, side, |cosine| of the hit."""

    depth: np.ndarray
    street: np.ndarray
    along: np.ndarray
    side: np.ndarray
    slant: np.ndarray


@dataclass(frozen=True)
class StreetPicture:
    """The four views from a panorama of a city as one image, drawn when it is needed."""

    city: CityOptions
    panorama: str
    heading: float
    view_size: int = VIEW_SIZE

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return grid_size(self.view_size)

    def draw(self) -> Image.Image:
        """The RGB image."""
        city = make_city(self.city)
        places = _places(self.city)
        if self.panorama not in places:
            raise ValueError(f"the city {self.city} has no panorama {self.panorama!r}; the route is of another city")
        return Image.fromarray(grid(views(city, places[self.panorama], self.heading, self.view_size)))


@lru_cache(maxsize=16)
def _places(options: CityOptions) -> dict[str, Point]:
    return {panorama.id: panorama.position for panorama in make_city(options).panoramas}


def views(
    city: City, position: Point, heading: float, size: int = VIEW_SIZE, shops: Sequence[Shop] | None = None
) -> np.ndarray:
    """(4, size, size, 3) uint8: front, right, back and left of somebody at `position` who faces `heading`.

    `shops`: those that are drawn; None draws all of the city.
    """
    tangents = (np.arange(size) + 0.5 - size / 2) / (size / 2)
    axes = [_unit(heading + 90 * index) for index in range(len(VIEWS))]
    rays = np.concatenate([np.add(axis, tangents[:, None] * np.array([axis[1], -axis[0]])) for axis in axes])
    walls = cast(city, position, rays)
    image = _paint(walls, PALETTES[city.options.style], size, city.options.seed)
    pictures = np.ascontiguousarray(image.reshape(size, len(VIEWS), size, 3).transpose(1, 0, 2, 3))
    near = [shop for shop in city.shops if shops is None or shop in shops]
    near = [shop for shop in near if math.dist(shop.position, position) < SIGN_DISTANCE]
    for shop in sorted(near, key=lambda shop: -math.dist(shop.position, position)):
        if _faces(shop, position):
            for index, axis in enumerate(axes):
                _hang(pictures[index], shop, position, axis, walls.depth[index * size : (index + 1) * size])
    return pictures


def cast(city: City, position: Point, rays: np.ndarray) -> Walls:
    """Where the rays (C, 2), directions of depth 1, leave the free space."""
    nodes, streets = np.array(city.nodes), np.array(city.streets)
    start, end = nodes[streets[:, 0]], nodes[streets[:, 1]]
    length = np.linalg.norm(end - start, axis=1)
    axis = (end - start) / length[:, None]
    enter, leave = _intervals(np.array(position), rays, start, axis, length, city.half_width)
    depth, street = np.zeros(len(rays)), np.zeros(len(rays), dtype=np.int64)
    columns = np.arange(len(rays))
    for _ in range(len(streets) + 1):
        reached = np.where((enter <= depth + 1e-6) & (leave > depth + 1e-6), leave, -np.inf)
        best = reached.argmax(axis=0)
        farther = reached[best, columns] > depth
        if not farther.any():
            break
        depth = np.where(farther, reached[best, columns], depth)
        street = np.where(farther, best, street)
    depth = np.clip(depth, NEAR, FAR)
    hit = position + depth[:, None] * rays
    offset = hit - start[street]
    along = offset[:, 0] * axis[street, 0] + offset[:, 1] * axis[street, 1]
    across = offset[:, 0] * axis[street, 1] - offset[:, 1] * axis[street, 0]
    excess = along - np.clip(along, 0, length[street])  # not 0 on the round end of a street
    normal_x = axis[street, 1] * across + axis[street, 0] * excess
    normal_y = -axis[street, 0] * across + axis[street, 1] * excess
    slant = np.abs(rays[:, 0] * normal_x + rays[:, 1] * normal_y) / np.maximum(np.hypot(normal_x, normal_y), 1e-9)
    return Walls(depth, street, along, (across > 0).astype(np.int64), slant)


def _intervals(
    position: np.ndarray, rays: np.ndarray, start: np.ndarray, axis: np.ndarray, length: np.ndarray, radius: float
) -> tuple[np.ndarray, np.ndarray]:
    """Depths (S, C) at which each ray enters and leaves each street: its rectangle and the disks at both ends."""
    offset = position - start
    x0 = (offset[:, 0] * axis[:, 0] + offset[:, 1] * axis[:, 1])[:, None]
    y0 = (offset[:, 0] * axis[:, 1] - offset[:, 1] * axis[:, 0])[:, None]
    dx = axis[:, :1] * rays[:, 0] + axis[:, 1:] * rays[:, 1]
    dy = axis[:, 1:] * rays[:, 0] - axis[:, :1] * rays[:, 1]
    dx, dy = (np.where(np.abs(part) < 1e-12, 1e-12, part) for part in (dx, dy))
    lows, highs = [], []
    sides = np.stack([(0 - x0) / dx, (length[:, None] - x0) / dx, (-radius - y0) / dy, (radius - y0) / dy])
    lows.append(np.maximum(np.minimum(sides[0], sides[1]), np.minimum(sides[2], sides[3])))
    highs.append(np.minimum(np.maximum(sides[0], sides[1]), np.maximum(sides[2], sides[3])))
    square = dx * dx + dy * dy
    for x in (x0, x0 - length[:, None]):
        middle = -(x * dx + y0 * dy) / square
        inside = middle * middle - (x * x + y0 * y0 - radius * radius) / square
        half = np.sqrt(np.maximum(inside, 0))
        lows.append(np.where(inside > 0, middle - half, np.inf))
        highs.append(np.where(inside > 0, middle + half, -np.inf))
    empty = lows[0] > highs[0]
    lows[0], highs[0] = np.where(empty, np.inf, lows[0]), np.where(empty, -np.inf, highs[0])
    return np.minimum.reduce(lows), np.maximum.reduce(highs)


# ---- surfaces --------------------------------------------------------------------------------------------------------


def _paint(walls: Walls, palette: Palette, size: int, seed: int) -> np.ndarray:
    """(size, C, 3) uint8: sky, facades with windows, sidewalk and road."""
    building = np.floor(walls.along / FACADE).astype(np.int64)
    mixed = (walls.street * 7919 + building * 104729 + walls.side * 1299709 + seed * 15485863) % 2147483647
    mixed = mixed * 48271 % 2147483647
    top = 10.0 + FLOOR * (mixed // 64 % 4)
    # In float64: the platforms' exp may differ in the last bit, which must not reach a byte.
    light = 0.72 + 0.28 * walls.slant / np.sqrt(1 + walls.slant**2)
    haze = np.exp(-walls.depth / FOG)[:, None]
    horizon = np.array(palette.sky[1], float)
    colours = np.array(palette.facades, float)[mixed % len(palette.facades)] * light[:, None]
    facade = colours * haze + horizon * (1 - haze)
    glass = np.array(palette.glass, float) * haze + horizon * (1 - haze)
    rows = (np.arange(size, dtype=np.float32) + 0.5 - size / 2) / (size / 2)
    height = CAMERA - rows[:, None] * walls.depth.astype(np.float32)
    storey = height / FLOOR
    storey -= np.floor(storey)
    pane = walls.along / WINDOW % 1
    has_pane = (pane > 0.22) & (pane < 0.78) & (walls.depth < 130)
    is_glass = (storey > 0.32) & (storey < 0.82) & (height > FLOOR * 1.6) & (height < top - 0.5) & has_pane
    image = np.empty((size, len(walls.depth), 3), np.uint8)
    image[:] = np.round(facade).astype(np.uint8)
    image = np.where(is_glass[..., None], np.round(glass).astype(np.uint8), image)
    share = np.clip(rows[: size // 2] + 1, 0, 1)[:, None]
    sky = (np.array(palette.sky[0], float) * (1 - share) + horizon * share).astype(np.uint8)
    above = height[: size // 2] > top
    image[: size // 2] = np.where(above[..., None], sky[:, None], image[: size // 2])
    low = rows[size // 2 :]
    ground_depth = (CAMERA / np.maximum(low, 1e-6))[:, None]
    is_ground = height[size // 2 :] < 0
    to_wall = (walls.depth - ground_depth) * walls.slant
    ground = np.where(
        (to_wall < SIDEWALK)[..., None], np.array(palette.sidewalk, np.uint8), np.array(palette.road, np.uint8)
    )
    image[size // 2 :] = np.where(is_ground[..., None], ground, image[size // 2 :])
    return image


@lru_cache(maxsize=512)
def sign_texture(name: str, colour: int, width: float) -> np.ndarray:
    """A sign's picture, (TEXTURE_HEIGHT, W, 3) uint8: the first word above the rest. Do not write to it."""
    ground = SIGNS[colour]
    bright = sum(ground) > 380
    letters: Colour = (20, 20, 24) if bright else (250, 250, 246)
    columns = round(TEXTURE_HEIGHT * width / (SIGN_TOP - SIGN_BOTTOM))
    picture = np.full((TEXTURE_HEIGHT, columns, 3), letters, np.uint8)
    picture[3:-3, 3:-3] = ground
    first, _, rest = name.upper().partition(" ")
    lines = [line for line in (first, rest) if line]
    room = (TEXTURE_HEIGHT - 12) // len(lines)
    for index, line in enumerate(lines):
        height = room - 6
        while height > 8 and _line_width(line, height) > columns - 14:
            height -= 1
        mask = text(line, height)
        ink(picture, mask, (columns - mask.shape[1]) // 2, 6 + index * room + (room - height) // 2, letters)
    return picture


def _line_width(line: str, height: int) -> int:
    width, _ = glyph_size(height, 0.9)
    return len(line) * (width + max(1, round(width / 5)))


def _faces(shop: Shop, position: Point) -> bool:
    facing = _unit(shop.heading)
    return float(np.dot(np.subtract(position, shop.position), facing)) > 0


def _hang(picture: np.ndarray, shop: Shop, position: Point, axis: np.ndarray, depths: np.ndarray) -> None:
    """Draw a shop's window and its sign into one view; what a wall hides is left out. Four samples a pixel and axis."""
    size, samples = picture.shape[0], 4
    facing = _unit(shop.heading)
    across = np.array([-facing[1], facing[0]])  # to the right of somebody who looks at the sign
    right = np.array([axis[1], -axis[0]])
    tangents = (np.arange(size * samples) + 0.5 - size * samples / 2) / (size * samples / 2)
    rays = axis + tangents[:, None] * right
    towards = np.subtract(shop.position, position)
    depth = float(np.dot(towards, facing)) / np.minimum(rays @ facing, -1e-9)
    share = ((depth[:, None] * rays - towards) @ across) / shop.sign_width + 0.5
    seen = (depth > NEAR) & (share >= 0) & (share < 1) & (rays @ facing < 0)
    seen &= depth <= np.repeat(depths, samples) + SIGN_SLACK * np.linalg.norm(rays, axis=1)
    whole = seen.reshape(size, samples).any(axis=1)
    if not whole.any():
        return
    texture = sign_texture(shop.name, shop.colour, shop.sign_width)
    for column in np.flatnonzero(whole):
        part = slice(column * samples, (column + 1) * samples)
        inside = seen[part]
        near = float(depth[part][inside].mean())
        scale = size / 2 / near
        top, bottom = size / 2 - scale * (SIGN_TOP - CAMERA), size / 2 - scale * (SIGN_BOTTOM - CAMERA)
        floor = size / 2 + scale * CAMERA
        window = slice(max(0, math.ceil(bottom)), min(size, math.ceil(floor)))
        if window.start < window.stop:
            picture[window, column] = [round(value * 0.45 + 28) for value in SIGNS[shop.colour]]
        first, last = max(0, math.floor(top)), min(size, math.ceil(bottom))
        if first >= last:
            continue
        lines = (np.arange(first * samples, last * samples) + 0.5) / samples
        v = (lines - top) / (bottom - top)
        rows = np.clip((v * TEXTURE_HEIGHT).astype(np.int64), 0, TEXTURE_HEIGHT - 1)
        columns = np.clip((share[part] * texture.shape[1]).astype(np.int64), 0, texture.shape[1] - 1)
        covered = ((v >= 0) & (v < 1))[:, None] & inside[None, :]
        values = texture[rows[:, None], columns[None, :]].astype(np.float32) * covered[..., None]
        values = values.reshape(last - first, samples * samples, 3).sum(axis=1)
        count = covered.reshape(last - first, samples * samples).sum(axis=1)[:, None]
        old = picture[first:last, column].astype(np.float32)
        mixed = (values + old * (samples * samples - count)) / (samples * samples)
        picture[first:last, column] = np.round(mixed).astype(np.uint8)


def _unit(heading: float) -> np.ndarray:
    """East and north of a heading."""
    return np.array([math.sin(math.radians(heading)), math.cos(math.radians(heading))])
