"""Synthetic cities: streets, shops with signs on the frontages, and panorama nodes, all in metres around an anchor.

Everything within `half_width` of a street's axis is free space, everything else is built up: that is what decides
which signs are visible from where, here and for a renderer of views.
"""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np

from recipe.amft.tasks.virl import names
from recipe.amft.tasks.virl.geography import Geocode, Point, plane_distance, plane_heading, to_geocode
from recipe.amft.tasks.virl.names import NameSet
from recipe.amft.tasks.virl.streets import Edge, neighbours, street_graph

Style = Literal["grid", "irregular"]

PANORAMA_SPACING = 10.0  # metres, about
SIGN_WIDTHS = (4.0, 6.0)  # metres
NUM_COLOURS = 8  # of a palette: a shop has the index of one
UNMARKED_SHARE = 0.12  # of crossings without a shop nearby
UNMARKED_RADIUS = 30.0  # metres
VIEWS = ("front", "right", "back", "left")


@dataclass(frozen=True)
class CityOptions:
    """What a city is built from; equal options build equal cities."""

    style: Style = "grid"  # rotated grid (training, in distribution) or irregular (other cities)
    names: NameSet = "train"
    seed: int = 0
    size: int = 7  # crossings per side

    def __post_init__(self) -> None:
        for name, choices in (("style", get_args(Style)), ("names", get_args(NameSet))):
            if getattr(self, name) not in choices:
                raise ValueError(f"city {name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        for name, low, high in (("seed", 0, 2**63), ("size", 3, 9)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise ValueError(f"city {name} must be an integer, {low} to {high}; got {value!r}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> "CityOptions":
        """Options from a configuration; ValueError names an unknown key."""
        allowed = [field.name for field in fields(cls)]
        for key in values:
            if key not in allowed:
                raise ValueError(f"unknown city option {key!r}; allowed: {', '.join(allowed)}")
        return cls(**values)


@dataclass(frozen=True)
class Shop:
    """A shop and its sign: `position` on the building line, `heading` of the sign's face (towards the street)."""

    name: str
    kind: str
    position: Point
    heading: float
    street: int
    along: float  # metres from the street's first node, on its axis
    sign_width: float
    colour: int
    num_reviews: int


@dataclass(frozen=True)
class Panorama:
    """A node from which views are taken: on a street's axis, or at a crossing (then `street` is None)."""

    id: str
    position: Point
    street: int | None
    node: int | None
    along: float


@dataclass(frozen=True)
class City:
    """Streets are pairs of node indices; positions are metres to the east and north of `anchor`."""

    options: CityOptions
    name: str
    anchor: Geocode
    half_width: float  # from a street's axis to the building line
    nodes: tuple[Point, ...]
    streets: tuple[Edge, ...]
    shops: tuple[Shop, ...]
    panoramas: tuple[Panorama, ...]

    def geocode(self, point: Point) -> Geocode:
        """Latitude and longitude of a point of the plane."""
        return to_geocode(self.anchor, point)

    def length(self, street: int) -> float:
        """Of a street, in metres."""
        a, b = self.streets[street]
        return plane_distance(self.nodes[a], self.nodes[b])

    def clearance(self, points: np.ndarray) -> np.ndarray:
        """Metres from each point (P, 2) to the nearest street axis; up to `half_width` it is free space."""
        distances = street_distances(np.array(self.nodes), np.array(self.streets), points)
        return np.asarray(distances.min(axis=1))

    def sees(self, point: Point, shop: Shop) -> bool:
        """Whether the sign's centre is in front of `point`, with no building between."""
        towards = np.subtract(point, shop.position)
        facing = (math.sin(math.radians(shop.heading)), math.cos(math.radians(shop.heading)))
        if float(np.dot(towards, facing)) <= 0:
            return False
        shares = np.linspace(0, 1, max(2, int(np.hypot(*towards) / 0.5)))[:, None]
        line = np.array(shop.position) + shares * towards
        return bool((self.clearance(line) <= self.half_width + 1e-6).all())


def view_of(heading: float, bearing: float) -> str:
    """Which of the four 90-degree views of somebody who faces `heading` shows what is at `bearing`."""
    return VIEWS[int(((bearing - heading + 45) % 360) // 90)]


@lru_cache(maxsize=16)
def make_city(options: CityOptions) -> City:
    """The city of `options`; the same in every process."""
    rng = random.Random(f"{options.style}/{options.names}/{options.seed}/{options.size}")
    nodes, streets = street_graph(options.style, options.size, rng)
    half_width = rng.uniform(8, 10) if options.style == "grid" else rng.uniform(6, 8)
    anchor = (rng.uniform(-55, 55), rng.uniform(-170, 170))
    words = names.words(options.names, rng)
    name = next(words)
    shops = _shops(nodes, streets, half_width, options.names, words, rng)
    panoramas = _panoramas(f"{options.names}-{options.seed}", nodes, streets)
    return City(options, name, anchor, half_width, nodes, streets, shops, panoramas)


def street_distances(nodes: np.ndarray, streets: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Metres from each of P points to each of S street axes, shape (P, S)."""
    start, end = nodes[streets[:, 0]], nodes[streets[:, 1]]
    direction = end - start
    squared = (direction**2).sum(axis=1)
    share = ((points[:, None, :] - start) * direction).sum(axis=2) / squared
    nearest = start + np.clip(share, 0, 1)[..., None] * direction
    return np.asarray(np.linalg.norm(points[:, None, :] - nearest, axis=2))


def _shops(
    nodes: Sequence[Point],
    streets: Sequence[Edge],
    half_width: float,
    name_set: NameSet,
    words: Iterator[str],
    rng: random.Random,
) -> tuple[Shop, ...]:
    unmarked = rng.sample(range(len(nodes)), round(UNMARKED_SHARE * len(nodes)))
    plots = [plot for street in range(len(streets)) for plot in _plots(nodes, streets, street, half_width, rng)]
    node_array, street_array = np.array(nodes), np.array(streets)
    shops = []
    for street, along, position, heading, width in plots:
        across = (math.cos(math.radians(heading)), -math.sin(math.radians(heading)))
        behind = (-0.3 * math.sin(math.radians(heading)), -0.3 * math.cos(math.radians(heading)))
        wall = np.array(
            [[position[i] + behind[i] + side * width / 2 * across[i] for i in (0, 1)] for side in (-1, 0, 1)]
        )
        is_wall = (street_distances(node_array, street_array, wall) > half_width).all()
        is_marked = all(plane_distance(nodes[node], position) > UNMARKED_RADIUS for node in unmarked)
        if is_wall and is_marked:
            kind = rng.choice(names.kinds(name_set))
            reviews = int(10 ** rng.uniform(1, 3.5))
            colour = rng.randrange(NUM_COLOURS)
            shop = f"{next(words)} {kind}"
            shops.append(Shop(shop, kind, position, heading, street, along, width, colour, reviews))
    return tuple(shops)


def _plots(
    nodes: Sequence[Point], streets: Sequence[Edge], street: int, half_width: float, rng: random.Random
) -> Iterator[tuple[int, float, Point, float, float]]:
    """(street, along, position, heading, sign width) of possible shops on both sides of a street."""
    (x, y), end = (nodes[node] for node in streets[street])
    length, heading = plane_distance((x, y), end), plane_heading((x, y), end)
    east, north = math.sin(math.radians(heading)), math.cos(math.radians(heading))
    for side in (1, -1):  # right, left of the street's direction
        along = half_width + rng.uniform(4, 9)
        while along < length - half_width - 4:
            position = (x + along * east + side * half_width * north, y + along * north - side * half_width * east)
            if rng.random() < 0.85:
                yield street, along, position, (heading - side * 90) % 360, rng.uniform(*SIGN_WIDTHS)
            along += rng.uniform(16, 26)


def _panoramas(prefix: str, nodes: Sequence[Point], streets: Sequence[Edge]) -> tuple[Panorama, ...]:
    panoramas = [Panorama(f"{prefix}-n{node}", point, None, node, 0.0) for node, point in enumerate(nodes)]
    for street, (a, b) in enumerate(streets):
        (x, y), (end_x, end_y) = nodes[a], nodes[b]
        length = plane_distance(nodes[a], nodes[b])
        steps = max(1, round(length / PANORAMA_SPACING))
        for step in range(1, steps):
            share = step / steps
            point = (x + share * (end_x - x), y + share * (end_y - y))
            panoramas.append(Panorama(f"{prefix}-s{street}-{step}", point, street, None, share * length))
    return tuple(panoramas)


def crossings(city: City) -> frozenset[int]:
    """Nodes at which three or more streets meet."""
    return frozenset(node for node, others in neighbours(city.streets).items() if len(others) > 2)
