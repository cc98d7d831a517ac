"""Synthetic cities for V-IRL: the geometry behind routes and landmark texts, and the data sets made of them."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from recipe.amft.data.virl_rows import synthetic_routes
from recipe.amft.tasks.virl import instructions
from recipe.amft.tasks.virl.city import CityOptions, crossings, make_city, view_of
from recipe.amft.tasks.virl.geography import METRES_PER_DEGREE, bearing, distance_metres, heading_change, plane_heading
from recipe.amft.tasks.virl.rail import build_rail
from recipe.amft.tasks.virl.routes import parse_route, read_route_file
from recipe.amft.tasks.virl.streets import neighbours
from recipe.amft.tasks.virl.trips import sample_routes

CITIES = [
    CityOptions("grid", "train", seed=1),
    CityOptions("grid", "test", seed=2, size=4),
    CityOptions("irregular", "cities", seed=1),
    CityOptions("irregular", "cities", seed=3, size=5),
]
every_city = pytest.mark.parametrize("options", CITIES, ids=lambda options: f"{options.style}-{options.size}")


def to_plane(city, geocode):
    """The inverse of City.geocode, written out again."""
    latitude, longitude = city.anchor
    east = (geocode[1] - longitude) * METRES_PER_DEGREE * math.cos(math.radians(latitude))
    return (east, (geocode[0] - latitude) * METRES_PER_DEGREE)


def distance_to_streets(city, x, y):
    """Metres from a point to the nearest street axis, one street after the other."""
    found = math.inf
    for a, b in city.streets:
        (ax, ay), (bx, by) = city.nodes[a], city.nodes[b]
        share = ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)
        share = min(1.0, max(0.0, share))
        found = min(found, math.hypot(x - ax - share * (bx - ax), y - ay - share * (by - ay)))
    return found


def rails(city, count=15, seed=0):
    """(route, its rail without dropped points) for some routes of a city."""
    for route in sample_routes(city, count, seed):
        yield route, build_rail(parse_route(route), random.Random(0), "paper", 5, 0.0)


# Streets, shops and panoramas


@every_city
def test_streets_are_connected_do_not_cross_and_keep_apart(options):
    """Any crossing is reached from any other; streets meet at their ends only, at 40 degrees or more."""
    city = make_city(options)
    table = neighbours(city.streets)
    assert len(table) == len(city.nodes) == options.size**2
    reached = {0}
    while True:
        more = reached | {other for node in reached for other in table[node]}
        if more == reached:
            break
        reached = more
    assert len(reached) == len(city.nodes)

    def side(a, b, c):
        (ax, ay), (bx, by), (cx, cy) = city.nodes[a], city.nodes[b], city.nodes[c]
        return (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)

    for (a, b), (c, d) in itertools.combinations(city.streets, 2):
        if not {a, b} & {c, d}:
            assert side(a, b, c) * side(a, b, d) > -1e-6 or side(c, d, a) * side(c, d, b) > -1e-6
    angles = []
    for node, others in table.items():
        headings = sorted(plane_heading(city.nodes[node], city.nodes[other]) for other in others)
        angles += [(b - a) % 360 for a, b in itertools.pairwise([*headings, headings[0]]) if len(headings) > 1]
    assert min(angles) > 40
    is_square = all(min(angle % 90, 90 - angle % 90) < 1e-6 for angle in angles)
    assert is_square == (options.style == "grid")


@every_city
def test_signs_are_on_the_building_line_and_face_their_street(options):
    """A sign stands on the border of free space: street in front of it, building behind it along its whole width."""
    city = make_city(options)
    assert len({shop.name for shop in city.shops}) == len(city.shops) > 30
    for shop in city.shops:
        east, north = math.sin(math.radians(shop.heading)), math.cos(math.radians(shop.heading))
        x, y = shop.position
        assert distance_to_streets(city, x, y) == pytest.approx(city.half_width, abs=1e-6)
        assert distance_to_streets(city, x + east, y + north) == pytest.approx(city.half_width - 1, abs=1e-6)
        for along in (-shop.sign_width / 2, 0, shop.sign_width / 2):
            wall = (x - 0.3 * east + along * north, y - 0.3 * north - along * east)
            assert distance_to_streets(city, *wall) > city.half_width


@every_city
def test_panoramas_are_about_ten_metres_apart_along_every_street(options):
    """From one end of a street to the other, crossings included; ids are distinct."""
    city = make_city(options)
    assert len({panorama.id for panorama in city.panoramas}) == len(city.panoramas)
    for street, (a, b) in enumerate(city.streets):
        on_street = [panorama.position for panorama in city.panoramas if panorama.street == street]
        row = [city.nodes[a], *sorted(on_street, key=lambda point: math.dist(point, city.nodes[a])), city.nodes[b]]
        gaps = [math.dist(p, q) for p, q in itertools.pairwise(row)]
        assert 8 < min(gaps) <= max(gaps) < 13
        assert sum(gaps) == pytest.approx(city.length(street))


def test_a_sign_is_seen_from_its_street_and_never_from_behind():
    """From both ends of its street and from across; not from the other side of its wall."""
    city = make_city(CITIES[0])
    for shop in city.shops[::7]:
        a, b = (city.nodes[node] for node in city.streets[shop.street])
        share = shop.along / math.dist(a, b)
        opposite = (a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]))
        assert all(city.sees(point, shop) for point in (a, b, opposite))
        x, y = shop.position
        assert not city.sees((2 * x - opposite[0], 2 * y - opposite[1]), shop)


def test_a_sign_is_seen_when_the_straight_line_stays_in_the_streets():
    """`sees` agrees with a slow walk along the line, for signs near and far; lines that graze a corner are left out."""
    city = make_city(CITIES[1])
    outcomes = []
    for shop, panorama in itertools.product(city.shops[::6], city.panoramas[::6]):
        (x, y), (end_x, end_y) = shop.position, panorama.position
        towards = plane_heading(shop.position, panorama.position)
        is_in_front = abs(heading_change(shop.heading, towards)) < 90
        num_steps = max(2, int(math.dist(shop.position, panorama.position)))
        line = [(x + (end_x - x) * i / num_steps, y + (end_y - y) * i / num_steps) for i in range(1, num_steps)]
        widest = max((distance_to_streets(city, *point) for point in line), default=0.0)
        if abs(widest - city.half_width) > 0.3 and abs(abs(heading_change(shop.heading, towards)) - 90) > 1:
            outcomes.append(is_in_front and widest < city.half_width)
            assert city.sees(panorama.position, shop) == outcomes[-1]
    assert 20 < sum(outcomes) < len(outcomes) - 200


@pytest.mark.parametrize(
    ("angle", "view"), [(0, "front"), (44, "front"), (46, "right"), (180, "back"), (-46, "left"), (-44, "front")]
)
def test_the_four_views_are_front_right_back_and_left(angle, view):
    """Each is 90 degrees wide around heading + 0, 90, 180, 270."""
    for heading in (0, 123, 300):
        assert view_of(heading, heading + angle) == view


# Routes


@every_city
def test_landmark_texts_come_from_the_geometry(options):
    """At each leg's end the named shop is near, seen from there, in the named direction and in the named view."""
    city = make_city(options)
    shops = {shop.name: shop for shop in city.shops}
    views = {"front": ["front"], "right": ["right"], "behind": ["back"], "left": ["left"]}
    views |= {"right front": ["front", "right"], "right behind": ["right", "back"]}
    views |= {"left behind": ["back", "left"], "left front": ["left", "front"]}
    num_landmarks = 0
    for route, rail in rails(city):
        for location in rail.locations:
            landmark = instructions.parse_landmark(location.landmark)
            if landmark is None:
                continue
            num_landmarks += 1
            shop, here = shops[landmark.name], to_plane(city, location.geocode)
            assert math.dist(here, shop.position) <= 20
            towards = bearing(location.geocode, city.geocode(shop.position))
            angle = 45 * instructions.RELATIONS.index(landmark.relation)
            assert abs(heading_change(location.heading + angle, towards)) <= 22.6
            assert view_of(location.heading, towards) in views[landmark.relation]
            line = zip(*(np.linspace(p, q, 60) for p, q in zip(here, shop.position, strict=True)), strict=True)
            assert all(distance_to_streets(city, x, y) <= city.half_width + 0.02 for x, y in line)
            assert location.is_last == landmark.is_destination == (landmark.name == route["dest_place"]["name"])
    assert num_landmarks > 30


@every_city
def test_what_is_said_about_intersections_is_true(options):
    """An intersection is observed exactly where three or more streets meet; elsewhere the nearest is over 8 m off."""
    city = make_city(options)
    nodes = [city.nodes[node] for node in crossings(city)]
    table = neighbours(city.streets)
    assert all((len(table[node]) > 2) == (node in crossings(city)) for node in table)
    kinds_of_location = set()
    for _, rail in rails(city):
        for location in rail.locations:
            nearest = min(math.dist(to_plane(city, location.geocode), node) for node in nodes)
            assert nearest < 0.1 if location.intersection else nearest > 8
            kinds_of_location.add(location.intersection)
    assert kinds_of_location == {True, False}


@every_city
def test_routes_are_shortest_walks_with_one_to_five_turns(options):
    """No way between start and end is shorter; every number of turns occurs; headings are those of the legs."""
    city = make_city(options)
    where = {panorama.id: panorama for panorama in city.panoramas}
    num_nodes = len(city.nodes)
    between = np.full((num_nodes, num_nodes), np.inf)
    np.fill_diagonal(between, 0)
    for street, (a, b) in enumerate(city.streets):
        between[a, b] = between[b, a] = city.length(street)
    for node in range(num_nodes):
        between = np.minimum(between, between[:, node, None] + between[None, node])
    routes = sample_routes(city, 20, seed=4)
    for route in routes:
        legs = route["route_results"]["panorama_list"]
        start, end = where[legs[0][0][0]], where[legs[-1][-1][0]]
        ways = [
            math.dist(start.position, city.nodes[a]) + between[a, b] + math.dist(city.nodes[b], end.position)
            for a in city.streets[start.street]
            for b in city.streets[end.street]
        ]
        assert route["route_results"]["distance"] == pytest.approx(min(ways), abs=0.5 * len(legs) + 0.1)
        parsed = parse_route(route)
        corners = [parsed.start, *parsed.leg_ends]
        for milestone, (a, b) in zip(parsed.milestones, itertools.pairwise(corners), strict=True):
            assert abs(heading_change(milestone.heading, bearing(a, b))) < 0.6
        headings = [milestone.heading for milestone in parsed.milestones]
        assert all(abs(heading_change(a, b)) > 15 for a, b in itertools.pairwise(headings))
    assert {len(route["route_results"]["geocode_list"]) - 1 for route in routes} == {1, 2, 3, 4, 5}
    assert len({(str(route["start_place"]["geocode"]), route["dest_place"]["name"]) for route in routes}) == 20


@every_city
def test_rails_stand_on_panoramas(options):
    """Each location is a panorama of the city that the route's own `city` entry builds again."""
    for route, rail in rails(make_city(options)):
        city = make_city(CityOptions.from_mapping(route["city"]))
        where = {panorama.id: panorama.position for panorama in city.panoramas}
        for location in rail.locations:
            assert distance_metres(location.geocode, city.geocode(where[location.panorama])) < 0.1


def test_routes_have_the_documented_schema(tmp_path):
    """Keys of V-IRL's files, one landmark or null per intersection, milestone text in its exact form."""
    routes = sample_routes(make_city(CITIES[0]), 30, seed=1)
    block = (
        r'\n\{\n"intersection_idx": "\d+",\n"landmarks": "[^"\n]+",\n"distance": "\d+ meters",\n'
        r'"human_heading": "\d+",\n"to_next_intersection_heading": "\d+ \([a-z]+\)",\n\}\n'
    )
    nulls = 0
    for route in routes:
        assert re.fullmatch(f"({block})+", route["milestone_info"])
        results = route["route_results"]
        num_legs = len(results["geocode_list"])
        assert len(results["landmark_list"]) == num_legs - 1
        assert len(results["distance_list"]) == len(results["panorama_list"]) == num_legs
        nulls += results["landmark_list"].count(None)
        for place in results["landmark_list"]:
            assert place is None or f'"{place["expression"]}"' in route["milestone_info"]
        assert {"name", "geocode", "relocated_geocode", "n_reviews"} <= set(route["dest_place"])
        assert 1 <= route["init_heading"] <= 359
    assert 0 < nulls < 40
    path = tmp_path / "routes.json"
    path.write_text(json.dumps([routes, len(routes)]))
    assert read_route_file(path) == json.loads(json.dumps(routes))


def test_a_city_with_too_few_routes_says_so():
    """Asking for more turns than a small city has ends with an error, not with an endless search."""
    with pytest.raises(ValueError, match=r"no further route with 9 turns.*larger size"):
        sample_routes(make_city(CityOptions(size=3)), 1, seed=0, turns=(9, 9))
    with pytest.raises(ValueError, match="turns must be"):
        sample_routes(make_city(CityOptions(size=3)), 1, seed=0, turns=(3, 2))


def test_the_seed_alone_decides_city_and_routes():
    """The same in another process with another hash seed; other seeds give other cities and other routes."""
    code = (
        "import hashlib, json; from recipe.amft.data.virl_rows import synthetic_routes as s;"
        "r = [x.route for n in ('train', 'cities') for x in s(n, 6, 11, 5)];"
        "print(hashlib.sha256(json.dumps(r).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    routes = [item.route for names in ("train", "cities") for item in synthetic_routes(names, 6, 11, 5)]
    assert other.stdout.strip() == hashlib.sha256(json.dumps(routes).encode()).hexdigest()
    assert routes[:6] != [item.route for item in synthetic_routes("train", 6, 12, 5)]
    city = make_city(CityOptions(seed=11, size=5))
    assert sample_routes(city, 6, 1) != sample_routes(city, 6, 2)


def test_city_options_are_plain_data():
    """A city's entry in a route is JSON, and builds equal options."""
    options = CITIES[2]
    assert CityOptions.from_mapping(json.loads(json.dumps(dataclasses.asdict(options)))) == options
