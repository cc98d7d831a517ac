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
import pandas as pd
import pytest
from omegaconf import OmegaConf

from recipe.amft.data.tiny_model import make_tokenizer
from recipe.amft.data.virl import DataOptions, build_splits, make, write_splits
from recipe.amft.data.virl_rows import synthetic_routes
from recipe.amft.main import compose
from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.virl import instructions
from recipe.amft.tasks.virl.city import CityOptions, crossings, make_city, view_of
from recipe.amft.tasks.virl.environment import Navigation
from recipe.amft.tasks.virl.geography import METRES_PER_DEGREE, bearing, distance_metres, heading_change, plane_heading
from recipe.amft.tasks.virl.names import NAME_SETS, kinds, name_set
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


# Data sets


def landmark_names(split):
    routes = [json.loads(row["extra_info"]["options"])["route"] for row in split.rows]
    texts = (milestone.landmark for route in routes for milestone in parse_route(route).milestones)
    return {landmark.name for landmark in map(instructions.parse_landmark, texts) if landmark}


def test_names_are_disjoint_between_the_splits():
    """No landmark of one split occurs in another; other cities also have other kinds of shops; no prompt is shared."""
    splits = build_splits(DataOptions(train=40, validation=10, test=10, evaluation=10, other_cities=18, seed=42))
    names = {split: landmark_names(content) for split, content in splits.items() if split != "test"}
    for first, second in itertools.combinations(("train", "validation", "test_id", "test_cities"), 2):
        assert not names[first] & names[second]
    sets = {"train": "train", "validation": "validation", "test_id": "test", "test_cities": "cities"}
    for split, wanted in sets.items():
        assert len(names[split]) > 15
        assert {name_set(name.split()[0]) for name in names[split]} == {wanted}
        assert {name.split()[1] for name in names[split]} <= set(kinds(wanted))
    assert not set(kinds("cities")) & set(kinds("test"))
    assert len({name_set(f"word{i}") for i in range(100)}) == len(NAME_SETS)
    prompts = {split: {row["prompt"][0]["content"] for row in content.rows} for split, content in splits.items()}
    for first, second in itertools.combinations(("train", "validation", "test"), 2):
        assert not prompts[first] & prompts[second]


def test_the_evaluation_is_that_of_the_papers():
    """48 routes in distribution, the same routes and rails with the other actions, 18 routes in nine other cities."""
    splits = build_splits(DataOptions(evaluation=48))
    assert {split: len(content.rows) for split, content in splits.items()} == {
        "test_id": 48,
        "test_rule": 48,
        "test_cities": 18,
    }
    for known, shifted in zip(splits["test_id"].rows, splits["test_rule"].rows, strict=True):
        assert known["extra_info"]["options"] == shifted["extra_info"]["options"]
        assert known["extra_info"]["seed"] == shifted["extra_info"]["seed"]
        assert json.loads(shifted["extra_info"]["env_kwargs"])["action_space"] == "relative"
        assert "turn_direction(" in known["target"][0]["content"]
        assert known["target"] != shifted["target"]
    cities = [route["city"] for route in splits["test_cities"].routes]
    assert len({city["seed"] for city in cities}) == 9
    assert {city["style"] for city in cities} == {"irregular"}
    assert {route["city"]["style"] for route in splits["test_id"].routes} == {"grid"}
    sources = {split: {row["data_source"] for row in content.rows} for split, content in splits.items()}
    assert sources == {"test_id": {"virl_id"}, "test_rule": {"virl_rule"}, "test_cities": {"virl_cities"}}
    assert build_splits(DataOptions(evaluation=48, seed=1))["test_id"].rows == splits["test_id"].rows
    assert len(build_splits(DataOptions(test=3, evaluation=4, other_cities=2))["test"].rows) == 3 + 4 + 4 + 2


def test_the_expert_solves_every_route_of_every_split():
    """300 training routes and all evaluation sets, with absolute and with relative actions: every step is right."""
    splits = build_splits(DataOptions(train=300, validation=48, evaluation=48))
    routes = [route for content in splits.values() for route in content.routes]
    assert len(routes) == 300 + 48 + 48 + 48 + 18
    for space in ("absolute", "relative"):
        environment = Navigation(action_space=space)
        for seed, route in enumerate(routes):
            _, info = environment.reset(seed, {"route": route})
            for _ in range(info["num_locations"]):
                _, reward, terminated, truncated, info = environment.step(environment.expert_action())
            assert (reward, terminated, truncated, info["success"]) == (1.0, True, False, True)
            assert info["per_step_accuracy"] == 1.0


@pytest.mark.parametrize("context", ["per_location", "concat"])
def test_a_row_replays_to_its_own_prompt_demonstration_and_success(context):
    """env_id, env_kwargs, seed and options of a row rebuild its prompt; its demonstration is right there."""
    splits = build_splits(
        DataOptions(train=6, test=4, seed=1, environment={"context": context, "action_space": "relative"})
    )
    rows = splits["train"].rows + splits["test"].rows
    for row in rows:
        extra = row["extra_info"]
        options = json.loads(extra["options"])
        environment = make_environment(extra["env_id"], json.loads(extra["env_kwargs"]))
        observation, info = environment.reset(extra["seed"], options)
        opening = [{"role": "user", "content": observation["text"]}]
        assert row["prompt"] == observation.get("messages", opening)
        assert row["target"] == [{"role": "assistant", "content": environment.expert_action()}]
        assert row["reward_model"]["ground_truth"] == info["destination"]
        assert (extra["location"], extra["num_locations"]) == (options["location"], info["num_locations"])
        assert environment.step(row["target"][0]["content"])[4]["verdict"] == "correct"
    assert len({row["extra_info"]["id"] for row in rows}) == len(rows)
    assert [row["extra_info"]["location"] for row in splits["test"].rows] == [0] * 4
    assert [row["extra_info"]["index"] for row in splits["train"].rows] == list(range(len(splits["train"].rows)))


def test_training_rows_are_all_locations_or_the_starts():
    """`train_rows`: every location of every rail once and in order, or one row per route."""
    rows = build_splits(DataOptions(train=5, seed=1))["train"].rows
    by_route = {}
    for row in rows:
        by_route.setdefault(row["extra_info"]["seed"], []).append(row["extra_info"])
    assert len(by_route) == 5
    for infos in by_route.values():
        assert [info["location"] for info in infos] == list(range(infos[0]["num_locations"]))
    starts = build_splits(DataOptions(train=5, seed=1, train_rows="starts"))["train"].rows
    assert [row["prompt"] for row in starts] == [row["prompt"] for row in rows if row["extra_info"]["location"] == 0]


def test_route_files_can_replace_the_synthetic_cities(tmp_path):
    """Splits of a file share no route; its evaluation does not depend on `seed`; too few routes is an error."""
    for names, count in (("train", 20), ("cities", 5)):
        routes = [item.route for item in synthetic_routes(names, count, 3, 5)]
        (tmp_path / f"{names}.json").write_text(json.dumps([routes, count]))
    files = {"routes": str(tmp_path / "train.json"), "other_routes": str(tmp_path / "cities.json")}
    splits = build_splits(DataOptions(train=10, validation=4, evaluation=6, **files))
    used = {split: [json.dumps(route) for route in content.routes] for split, content in splits.items()}
    assert {split: len(routes) for split, routes in used.items()} == {
        "train": 10,
        "validation": 4,
        "test_id": 6,
        "test_rule": 6,
        "test_cities": 5,
    }
    assert len({*used["train"], *used["validation"], *used["test_id"]}) == 20
    again = build_splits(DataOptions(train=10, evaluation=6, seed=5, **files))
    assert again["test_id"].rows == splits["test_id"].rows
    assert again["train"].routes != splits["train"].routes
    with pytest.raises(ValueError, match="has 14 routes, too few"):
        build_splits(DataOptions(train=15, evaluation=6, **files))


def test_written_routes_give_the_rows_routes_back(tmp_path):
    """routes/{split}.json is a route file that the loader and the environment read; nothing else is left behind."""
    splits = build_splits(DataOptions(train=3, test=2, city_size=5))
    write_splits(splits, tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["routes/test.json", "routes/train.json", "test.parquet", "train.parquet"]
    environment = Navigation(routes=str(tmp_path / "routes" / "test.json"))
    for index, row in enumerate(splits["test"].rows):
        text = environment.reset(row["extra_info"]["seed"], {"route_index": index})[0]["text"]
        assert row["prompt"] == [{"role": "user", "content": text}]
    read = pd.read_parquet(tmp_path / "train.parquet").to_dict("records")
    assert [row["extra_info"] for row in read] == [row["extra_info"] for row in splits["train"].rows]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "nothing to write"),
        ({"train": -1}, "train must be a number of routes, 0 or more; got -1"),
        ({"train": 1, "train_rows": "all"}, "train_rows must be locations or starts; got 'all'"),
        ({"train": 1, "actionspace": "relative"}, "unknown options actionspace; known: train, validation"),
        ({"train": 1, "routes": "absent.json"}, "absent.json cannot be read"),
        ({"train": 1, "city_size": 2}, "city size must be an integer, 3 to 9; got 2"),
        ({"train": 1, "action_space": "left"}, "action_space must be one of"),
    ],
)
def test_bad_data_options_name_the_value_and_what_is_allowed(options, message):
    """Flat options, as in a configuration file, are checked before anything is made."""
    with pytest.raises(ValueError, match=re.escape(message)):
        build_splits(DataOptions.from_mapping(options))


def test_command_line_writes_the_splits(tmp_path):
    """The documented command writes one file per split; a bad option ends with the reason and status 2."""
    command = [sys.executable, "-m", "recipe.amft.data.virl", "--out", str(tmp_path), "--train", "4", "--test", "0"]
    command += ["--city-size", "5", "--turns", "1-2", "--evaluation", "5", "--other-cities", "4"]
    subprocess.run([*command, "--action-space", "relative"], check=True, capture_output=True)
    lengths = {path.name: len(pd.read_parquet(path)) for path in tmp_path.glob("*.parquet")}
    train = lengths.pop("train.parquet")
    assert lengths == {
        "test.parquet": 14,
        "test_id.parquet": 5,
        "test_rule.parquet": 5,
        "test_cities.parquet": 4,
    }
    assert train > 12
    failed = subprocess.run([*command, "--context", "chat"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert "context must be one of per_location, concat" in failed.stderr


def test_the_small_task_fits_its_own_limits(tmp_path):
    """Prompts of configs/task/virl_small.yaml fit max_prompt_length, two attempts max_response_length, in tokens.

    The model's own words keep them short: under a third of the characters, the chat template included.
    """
    config = compose(["task=virl_small"])
    options = OmegaConf.to_container(config.amft.task.options, resolve=True)
    options |= {"train": 60}
    make(options, tmp_path)
    tokenizer, characters = make_tokenizer(config.amft.model.options.vocabulary), 0
    template = tokenizer.chat_template
    assert template
    lengths, answers = [], []
    for path in tmp_path.glob("*.parquet"):
        for row in pd.read_parquet(path).to_dict("records"):
            prompt = [dict(message) for message in row["prompt"]]
            encoded = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=True)
            lengths.append(len(encoded["input_ids"]))
            characters += len(prompt[0]["content"])
            answers.append(len(tokenizer.encode(row["target"][0]["content"])) + 1)
    assert max(lengths) <= config.data.max_prompt_length
    assert 3 * sum(lengths) < characters
    again = tokenizer.encode("user\nYou failed this trial because misread observation")
    feedback = len(again) + 8  # and what the chat template puts around it
    assert 2 * max(answers) + feedback <= config.data.max_response_length
    assert (
        config.data.max_prompt_length + config.data.max_response_length
        <= config.actor_rollout_ref.rollout.max_model_len
    )
    assert config.actor_rollout_ref.rollout.max_model_len <= 512  # positions of model=tiny


def test_city_options_are_plain_data():
    """A city's entry in a route is JSON, and builds equal options."""
    options = CITIES[2]
    assert CityOptions.from_mapping(json.loads(json.dumps(dataclasses.asdict(options)))) == options
