"""V-IRL's route files, the rail that a route becomes, and its instructions."""

import json
import random

import pytest
from handmade_route import END, FIRST_CORNER, MILESTONES, SECOND_CORNER, START, handmade_route

from recipe.amft.tasks.virl import instructions
from recipe.amft.tasks.virl.geography import bearing, distance_metres, heading_change
from recipe.amft.tasks.virl.rail import build_rail
from recipe.amft.tasks.virl.routes import compact_route, parse_blocks, parse_route, read_route_file


def test_the_documented_schema_is_read(tmp_path):
    """`[[route, ...], int]`: geocodes, headings, compass words and landmark texts, quotes and braces included."""
    path = tmp_path / "routes.json"
    path.write_text(json.dumps([[handmade_route()], 1]))
    (route,) = (parse_route(route) for route in read_route_file(path))
    assert route.start == tuple(START)
    assert route.leg_ends == (tuple(FIRST_CORNER), tuple(SECOND_CORNER), tuple(END))
    assert [milestone.heading for milestone in route.milestones] == [2, 90, 181]
    assert [milestone.direction for milestone in route.milestones] == ["north", "east", "south"]
    assert [milestone.landmark for milestone in route.milestones] == [
        "Kiosk Blau is on your left front",
        "No landmark nearby",
        'The destination Cafe "Zur {Post}": Mitte is on your right',
    ]
    assert (route.destination, route.init_heading) == ('Cafe "Zur {Post}": Mitte', 350)


@pytest.mark.parametrize("wrap", [lambda route: [[route, route], 7], lambda route: [route, route], lambda route: route])
def test_other_layouts_of_a_file_are_read(tmp_path, wrap):
    """A wrong number of routes, a bare list and one route by itself (V-IRL's own example file) are accepted."""
    path = tmp_path / "routes.json"
    path.write_text(json.dumps(wrap(handmade_route())))
    assert all(route == handmade_route() for route in read_route_file(path))


START_PLACE = {"relocated_geocode": START}  # as V-IRL's collector writes it: no name


@pytest.mark.parametrize(
    "changes",
    [
        {"start_place": START_PLACE},
        {"start_place": {"geocode": START, "relocated_geocode": None}},
        {"instruction": None},
        {"milestone_info": MILESTONES.replace('",\n}', '"\n}')},
        {"milestone_info": MILESTONES.replace("\n", "\r\n")},
        {"milestone_info": MILESTONES.replace("}\n\n{", "}{")},
        {"milestone_info": MILESTONES.replace('"No landmark nearby"', "null")},
        {"milestone_info": MILESTONES.replace('"landmarks": "No landmark nearby",\n', "")},
        {"milestone_info": MILESTONES.replace("No landmark nearby", "No landmarks nearby")},
        {"milestone_info": MILESTONES.replace("2 (north)", "2")},
        {"milestone_info": MILESTONES.replace("2 (north)", "1.9 (North)")},
        {"milestone_info": MILESTONES.replace("90 (east)", "-270 (east)")},
        {"milestone_info": MILESTONES.replace("90 (east)", "450 (somewhere)")},
        {"milestone_info": MILESTONES.replace('"to_next_intersection_heading": "90 (east)",\n', "")},
    ],
)
def test_oddities_of_real_files_are_tolerated(changes):
    """Missing names, commas and headings, other spellings of "none", degrees outside 0 to 359: the same route."""
    assert parse_route(handmade_route(**changes)) == parse_route(handmade_route())


@pytest.mark.parametrize("value", [None, 0, 360])
def test_without_an_initial_heading_the_seed_draws_one(value):
    """init_heading 0 or absent means "drawn at reset"; the same seed draws the same one."""
    route = parse_route(handmade_route(init_heading=value))
    headings = [build_rail(route, random.Random(seed), "paper", 0, 0).locations[0].heading for seed in range(40)]
    assert len(set(headings)) > 20
    assert headings[0] == build_rail(route, random.Random(0), "paper", 0, 0).locations[0].heading


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"route_results": None}, "route_results is NoneType, must be Mapping"),
        ({"milestone_info": ["x"]}, "milestone_info is list, must be str"),
        (
            {"milestone_info": MILESTONES[: MILESTONES.index("}") + 1]},
            "milestone_info has 1 blocks and route_results.geocode_list 3 points",
        ),
        ({"milestone_info": "north, then east"}, "line 'north, then east' is not of the form"),
        ({"milestone_info": MILESTONES.replace("2 (north)", "north")}, "milestone 1: to_next_intersection_heading"),
        ({"start_place": {"geocode": [52.0]}}, "start_place.relocated_geocode is [52.0], must be"),
        ({"init_heading": "north"}, "init_heading is 'north', must be degrees"),
        ({"route_results": {"geocode_list": [START, START, ["a", 1]]}}, "geocode_list[2] is ['a', 1], must be"),
        (
            {"route_results": handmade_route()["route_results"] | {"panorama_list": [[["p", 1, 2]]]}},
            "each of the 3 legs",
        ),
    ],
)
def test_a_bad_route_says_what_is_wrong_and_where(tmp_path, changes, message):
    """The error names the file, the number of the route and the key."""
    path = tmp_path / "routes.json"
    path.write_text(json.dumps([[handmade_route(), handmade_route(**changes)], 2]))
    with pytest.raises(ValueError) as error:
        read_route_file(path)
    assert message in str(error.value)
    assert f"route 1 of {path}" in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "[[], 0]", "3", "[" * 100_000])
def test_a_file_without_routes_is_refused(tmp_path, content):
    """Empty, cut off or deeply nested files are one ValueError with the path."""
    path = tmp_path / "routes.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"routes\.json"):
        read_route_file(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_route_file(tmp_path / "absent.json")


def test_the_compact_form_is_the_same_route():
    """What goes into a data row parses to what the file's route parses to, and only that."""
    compact = json.loads(json.dumps(compact_route(handmade_route())))
    assert parse_route(compact) == parse_route(handmade_route())
    assert "instruction" not in compact
    assert len(parse_blocks(compact["milestone_info"])) == 3


# Words


@pytest.mark.parametrize(
    ("heading", "next_heading", "paper", "upstream"),
    [
        (100, 54, "left", "left"),
        (100, 55, "slightly left", "slightly left"),
        (100, 100, "slightly left", "slightly left"),
        (100, 101, "slightly right", "slightly right"),
        (100, 145, "slightly right", "slightly right"),
        (100, 146, "right", "right"),
        (350, 10, "slightly right", "left"),
        (350, 80, "right", "left"),
        (10, 350, "slightly left", "right"),
        (80, 350, "left", "right"),
        (0, 181, "left", "right"),
    ],
)
def test_turn_labels_wrap_at_north_in_paper_mode_only(heading, next_heading, paper, upstream):
    """The four labels by the change of heading; `upstream` takes the bare difference of the two numbers."""
    assert instructions.turn_label(heading, next_heading, "paper") == paper
    assert instructions.turn_label(heading, next_heading, "upstream") == upstream


def test_a_landmark_is_placed_by_the_nearest_45_degrees():
    """Eight words around somebody who faces north, and the same after everything turns by 200 degrees."""
    expected = {0: "front", 22: "front", 23: "right front", 90: "right", 140: "right behind", 180: "behind"}
    expected |= {230: "left behind", 270: "left", 300: "left front", 340: "front"}
    for angle, word in expected.items():
        assert instructions.relation(0, angle) == word
        assert instructions.relation(200, (angle + 200) % 360) == word
    text = instructions.landmark_text("Cafe on your left", "right front", is_destination=True)
    assert instructions.parse_landmark(text) == instructions.Landmark("Cafe on your left", "right front", True)
    assert instructions.parse_landmark("No landmark nearby") is None


def test_instructions_are_two_sentences_per_milestone():
    """First and last sentences, a corner without landmark, and a route of one milestone, word for word."""
    rail = build_rail(parse_route(handmade_route()), random.Random(0), "paper", 5, 0.5)
    assert rail.sentences == (
        "First, turn slightly right to face north.",
        "Move forward until you reach next intersection where Kiosk Blau is on your left front.",
        "Turn right to face east.",
        "Move forward until you reach next intersection.",
        "Turn right to face south.",
        'Move forward until you reach destination where The destination Cafe "Zur {Post}": Mitte is on your right.',
    )
    short = handmade_route(
        milestone_info=MILESTONES[MILESTONES.rindex("{\n") :], route_results={"geocode_list": [END]}, init_heading=90
    )
    assert build_rail(parse_route(short), random.Random(0), "paper", 5, 0.5).sentences[0] == "Turn right to face south."


# The rail


def test_the_rail_goes_through_forward_points_to_each_leg_s_end():
    """Undropped: five points per leg, those within 8 m of an end left out; observations and sentences as documented."""
    rail = build_rail(parse_route(handmade_route()), random.Random(0), "paper", 5, 0.0)
    actions = [location.action("absolute") for location in rail.locations]
    forward = ["forward()"] * 4
    assert actions == [
        *("turn_direction(north)", *forward, "turn_direction(east)"),
        *(*forward, "turn_direction(south)"),
        *(*forward, "stop()"),
    ]
    assert [location.action("relative") for location in rail.locations if location.turn] == [
        "turn_direction(slightly right)",
        "turn_direction(right)",
        "turn_direction(right)",
    ]
    observations = [location.observation for location in rail.locations]
    assert observations[0] == observations[1] == "No landmarks nearby;"
    assert observations[5] == "Kiosk Blau is on your left front; You observe an intersection"
    assert observations[10] == "No landmark nearby; You observe an intersection"
    assert observations[15] == 'The destination Cafe "Zur {Post}": Mitte is on your right;'
    assert [location.sentence for location in rail.locations] == [0, 1, 1, 1, 1, 2, 3, 3, 3, 3, 4, 5, 5, 5, 5, 5]
    assert [location.heading for location in rail.locations] == [350] + [2] * 5 + [90] * 5 + [181] * 5
    assert all(distance_metres(location.geocode, tuple(START)) > 8 for location in rail.locations[1:5])


def test_the_seed_draws_which_forward_points_are_dropped():
    """About half of them with drop_rate 0.5, all with 1; turns and the end are never dropped."""
    route = parse_route(handmade_route())
    counts = [len(build_rail(route, random.Random(seed), "paper", 5, 0.5).locations) - 4 for seed in range(200)]
    assert 5 < sum(counts) / len(counts) < 7
    assert min(counts) < 4 < 8 < max(counts)
    assert len(build_rail(route, random.Random(0), "paper", 5, 1.0).locations) == 4


def test_a_leg_of_five_metres_shifts_the_sentences_in_upstream_mode_only():
    """The public code leaves the instruction index one behind after such a leg; paper mode keeps it right."""
    near = [START[0] + 0.00003, START[1]]  # 3.3 m
    ends = {"geocode_list": [near, SECOND_CORNER, END]}
    sentences = {
        mode: [
            location.sentence
            for location in build_rail(
                parse_route(handmade_route(route_results=ends)), random.Random(0), mode, 5, 1.0
            ).locations
        ]
        for mode in ("paper", "upstream")
    }
    assert sentences == {"paper": [0, 2, 4, 5], "upstream": [0, 1, 3, 4]}


def test_distances_and_bearings_are_those_of_the_globe():
    """A hundredth of a degree of latitude is 1,112 m; bearings are clockwise from north."""
    assert distance_metres((52.0, 13.0), (52.01, 13.0)) == pytest.approx(1112, abs=1)
    assert distance_metres((60.0, 13.0), (60.0, 13.01)) == pytest.approx(556, abs=1)
    assert bearing((52.0, 13.0), (52.001, 13.0)) == pytest.approx(0)
    assert bearing((52.0, 13.0), (52.0, 13.001)) == pytest.approx(90)
    assert bearing((60.0, 13.0), (60.001, 12.998)) == pytest.approx(315, abs=0.1)
    assert heading_change(350, 10) == 20
