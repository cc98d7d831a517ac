"""The drawn streets: the same bytes per seed, walls where the city has them, signs where the landmark texts say."""

import hashlib
import math
import random

import numpy as np
import pytest

from recipe.amft.tasks.rendering import street
from recipe.amft.tasks.rendering.street import StreetPicture, sign_texture
from recipe.amft.tasks.virl.city import VIEWS, CityOptions, make_city, view_of
from recipe.amft.tasks.virl.geography import plane_heading
from recipe.amft.tasks.virl.instructions import parse_landmark
from recipe.amft.tasks.virl.rail import build_rail
from recipe.amft.tasks.virl.routes import parse_route
from recipe.amft.tasks.virl.trips import sample_routes

GRID, IRREGULAR = CityOptions("grid", "train", 0), CityOptions("irregular", "cities", 3)
GOLDEN = {GRID: "c325c3f22d261c27", IRREGULAR: "07eb28d4766d4591"}


def landmarks(options: CityOptions, count: int):
    """(location, position, shop) of locations with a landmark on `count` routes."""
    city = make_city(options)
    positions = {panorama.id: panorama.position for panorama in city.panoramas}
    shops = {shop.name: shop for shop in city.shops}
    for index, route in enumerate(sample_routes(city, count, seed=1)):
        rail = build_rail(parse_route(route), random.Random(index), "paper", 5, 0.5)
        for location in rail.locations:
            landmark = parse_landmark(location.landmark)
            if landmark:
                yield location, positions[location.panorama], shops[landmark.name]


@pytest.mark.parametrize("options", [GRID, IRREGULAR], ids=lambda options: options.style)
def test_a_seed_draws_the_same_bytes_everywhere(options):
    panorama = make_city(options).panoramas[40]
    image = np.asarray(StreetPicture(options, panorama.id, 70.0, 240).draw())
    assert image.shape == (485, 485, 3)
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == GOLDEN[options]


@pytest.mark.parametrize("options", [GRID, IRREGULAR], ids=lambda options: options.style)
def test_rays_end_at_the_walls(options):
    """Just before its end a ray is in the free space of the city, just behind it is not."""
    city, rng = make_city(options), np.random.default_rng(0)
    for panorama in rng.choice(len(city.panoramas), 20, replace=False):
        position = city.panoramas[panorama].position
        angles = rng.uniform(0, 2 * math.pi, 50)
        rays = np.stack([np.sin(angles), np.cos(angles)], axis=1)
        depth = street.cast(city, position, rays).depth
        for share in np.linspace(0, 0.999, 40):
            assert (city.clearance(position + share * depth[:, None] * rays) <= city.half_width + 1e-6).all()
        ends = depth < street.FAR
        behind = position + (depth + 0.01)[:, None] * rays
        assert (city.clearance(behind)[ends] > city.half_width).all()


@pytest.mark.parametrize("options", [GRID, IRREGULAR], ids=lambda options: options.style)
def test_the_named_sign_is_in_the_named_view(options):
    """By geometry the sign's middle is in one view; by pixels, that view changes when the shop is taken away."""
    city = make_city(options)
    found = 0
    for location, position, shop in landmarks(options, 6):
        others = [other for other in city.shops if other != shop]
        with_shop = street.views(city, position, location.heading, 160).astype(int)
        without = street.views(city, position, location.heading, 160, others).astype(int)
        changed = (np.abs(with_shop - without).max(axis=3) > 12).sum(axis=(1, 2))
        named = VIEWS.index(view_of(location.heading, plane_heading(position, shop.position)))
        assert changed[named] == changed.max() > 20
        assert changed[(named + 2) % 4] == 0
        found += 1
    assert found > 10


def rectified(views: np.ndarray, position, heading: float, shop) -> np.ndarray:
    """The sign as somebody in front of it sees it: points of its plane projected into the views, (40, 80, 3).

    A point that falls into no view is black.
    """
    size, image = views.shape[1], np.zeros((40, 80, 3))
    facing = np.array([math.sin(math.radians(shop.heading)), math.cos(math.radians(shop.heading))])
    across = np.array([-facing[1], facing[0]])
    for row in range(40):
        height = street.SIGN_TOP - (row + 0.5) / 40 * (street.SIGN_TOP - street.SIGN_BOTTOM) - street.CAMERA
        for column in range(80):
            point = np.array(shop.position) + ((column + 0.5) / 80 - 0.5) * shop.sign_width * across - position
            bearing = math.degrees(math.atan2(point[0], point[1]))
            view = VIEWS.index(view_of(heading, bearing))
            turn = math.radians(bearing - heading - 90 * view)
            depth = float(np.hypot(*point)) * math.cos(turn)
            x = size / 2 * (1 + math.tan(turn))
            y = size / 2 * (1 - height / depth)
            if 0 <= x < size and 0 <= y < size:
                image[row, column] = views[view, int(y), int(x)]
    return image


def likeness(seen: np.ndarray, texture: np.ndarray) -> float:
    """Correlation of two pictures' brightness."""
    rows = (np.arange(40) + 0.5) / 40 * texture.shape[0]
    columns = (np.arange(80) + 0.5) / 80 * texture.shape[1]
    known = texture[rows.astype(int)[:, None], columns.astype(int)[None]].mean(axis=2)
    return float(np.corrcoef(seen.mean(axis=2).ravel(), known.ravel())[0, 1])


@pytest.mark.parametrize("options", [GRID, IRREGULAR], ids=lambda options: options.style)
def test_the_named_sign_can_be_read(options):
    """Of all signs of the city that have its colour, the one in the picture looks most like the named shop's."""
    city = make_city(options)
    right = total = 0
    for location, position, shop in landmarks(options, 4):
        views = street.views(city, position, location.heading, 480)
        seen = rectified(views, np.array(position), location.heading, shop)
        rivals = [other for other in city.shops if other.colour == shop.colour]
        scores = {
            other.name: likeness(seen, sign_texture(other.name, other.colour, other.sign_width)) for other in rivals
        }
        right += max(scores, key=scores.get) == shop.name
        total += 1
    assert total > 6
    assert right / total >= 0.9
