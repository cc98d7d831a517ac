"""V-IRL navigation: route files, instructions, the rail, the verifier and the environment do what the design says."""

import json
import pickle
import random
import time

import pytest

from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.virl import instructions
from recipe.amft.tasks.virl.city import CityOptions, make_city
from recipe.amft.tasks.virl.environment import Navigation
from recipe.amft.tasks.virl.geography import bearing, distance_metres, heading_change
from recipe.amft.tasks.virl.rail import build_rail
from recipe.amft.tasks.virl.routes import compact_route, parse_blocks, parse_route, read_route_file
from recipe.amft.tasks.virl.trips import sample_routes
from recipe.amft.tasks.virl.verifier import REWARDS, verify

# A route in the documented schema, written by hand: 60 m north, 80 m east, 50 m south (to the destination).
START, FIRST_CORNER, SECOND_CORNER, END = (
    [52.0, 13.0],
    [52.00054, 13.0],
    [52.00054, 13.00117],
    [52.00009, 13.00117],
)
MILESTONES = """
{
"intersection_idx": "1",
"landmarks": "Kiosk Blau is on your left front",
"distance": "60 meters",
"human_heading": "0",
"to_next_intersection_heading": "2 (north)",
}

{
"intersection_idx": "2",
"landmarks": "No landmark nearby",
"distance": "80 meters",
"human_heading": "2",
"to_next_intersection_heading": "90 (east)",
}

{
"intersection_idx": "3",
"landmarks": "The destination Cafe "Zur {Post}": Mitte is on your right",
"distance": "50 meters",
"human_heading": "90",
"to_next_intersection_heading": "181 (south)",
}
"""


def handmade_route(**changes):
    """The route, with other values of its top-level keys; None removes one."""
    place = {"geocode": FIRST_CORNER, "n_reviews": 12, "place_types": ["store"], "vicinity": "1 Weg"}
    kiosk = place | {"name": "Kiosk Blau", "spatial_relation": "left front", "expression": "..."}
    route = {
        "dest_place": place | {"name": 'Cafe "Zur {Post}": Mitte', "geocode": END, "relocated_geocode": END},
        "start_place": {"name": "Haus", "geocode": [52.0001, 13.0], "relocated_geocode": START},
        "route_results": {
            "geocode_list": [FIRST_CORNER, SECOND_CORNER, END],
            "polyline": ["a", "b", "c"],
            "instructions": ["Head <b>north</b>"],
            "distance_list": [60, 80, 50],
            "time": 120,
            "distance": 190,
            "n_landmarks": 1,
            "landmark_list": [kiosk, None],
        },
        "init_heading": 350,
        "instruction": "Prose that nothing reads.",
        "milestone_info": MILESTONES,
    }
    return {key: value for key, value in (route | changes).items() if value is not None}


def play(environment, seed, options):
    """Observations and steps of the expert's episode."""
    observations, steps = [environment.reset(seed, options)[0]], []
    while not steps or not (steps[-1][2] or steps[-1][3]):
        steps.append(environment.step(environment.expert_action()))
        observations.append(steps[-1][0])
    return observations, steps


def as_answer(action, observation=None):
    return json.dumps(({} if observation is None else {"current observation": observation}) | {"action": action})


# Route files


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


# The verifier

RAIL = build_rail(parse_route(handmade_route()), random.Random(0), "paper", 1, 0.0)
NAMES = ("Kiosk Blau", 'Cafe "Zur {Post}": Mitte')
START_LOCATION, AT_KIOSK, AT_CORNER, AT_END = RAIL.locations
KIOSK = "Kiosk Blau is on your left front; You observe an intersection"

PAPER_TABLE = [
    (START_LOCATION, "turn_direction(north)", "No landmarks nearby", "correct"),
    (START_LOCATION, "turn_direction(north)", "I am at an intersection next to Kiosk Blau", "correct"),
    (START_LOCATION, "turn_direction(northeast)", "No landmarks nearby", "wrong_action"),
    (START_LOCATION, "turn_direction(northeast)", None, "wrong_action"),
    (START_LOCATION, "turn_direction(slightly right)", "no intersection here", "wrong_action"),
    (START_LOCATION, "forward()", "You are not at an intersection", "wrong_action"),
    (START_LOCATION, "forward()", "You observe an intersection", "misread"),
    (START_LOCATION, "forward()", "Kiosk  BLAU is on your right", "misread"),
    (AT_KIOSK, "turn_direction(east)", KIOSK, "correct"),
    (AT_KIOSK, "turn_direction(west)", KIOSK, "wrong_action"),
    (AT_KIOSK, "turn_direction(west)", "At the intersection I see Kiosk Blau", "wrong_action"),
    (AT_KIOSK, "forward()", "Kiosk Blau is on your left front", "misread"),
    (AT_KIOSK, "forward()", "You observe an intersection", "misread"),
    (AT_KIOSK, "forward()", "No landmarks nearby", "misread"),
    (AT_KIOSK, "forward()", "", "misread"),
    (AT_CORNER, "forward()", "No landmark nearby; You observe an intersection", "wrong_action"),
    (AT_CORNER, "forward()", KIOSK, "misread"),
    (AT_END, "stop()", "", "correct"),
    (AT_END, "forward()", 'The destination Cafe "Zur {Post}": Mitte is on your right', "wrong_action"),
    (AT_END, "forward()", 'The destination Cafe "Zur {Post}": Mitte; an intersection', "misread"),
    (AT_END, "jump()", None, "wrong_action"),
]


@pytest.mark.parametrize(("location", "action", "observation", "name"), PAPER_TABLE)
def test_paper_verdicts_follow_the_table(location, action, observation, name):
    """Right +1, wrong -1, wrong after a misread -1.5: intersection, landmark missed, another landmark of the route."""
    verdict = verify(as_answer(action, observation), location, "absolute", NAMES)
    assert (verdict.name, verdict.reward) == (name, {"correct": 1.0, "wrong_action": -1.0, "misread": -1.5}[name])
    assert verdict.reason
    assert verdict.action == action


UPSTREAM_TABLE = [
    (AT_KIOSK, as_answer("turn_direction(east)"), "correct"),
    (AT_KIOSK, as_answer("turn_direction( east )"), "wrong_action"),  # exact text only
    (AT_KIOSK, as_answer("forward()", KIOSK), "misread"),  # the true observation, taken for wrong
    (AT_KIOSK, as_answer("forward()", "Kiosk Blau is on your left front"), "wrong_action"),
    (START_LOCATION, as_answer("forward()", "You observe an intersection"), "misread"),
    (START_LOCATION, as_answer("forward()", "Kiosk Blau is here"), "wrong_action"),
    (START_LOCATION, as_answer("forward()"), "wrong_action"),
    (AT_KIOSK, 'So {"action": "turn_direction(east)",}', "correct"),
    (AT_KIOSK, 'So {"action" : "turn_direction(east)",}', "wrong_action"),  # exact spacing only
    (AT_KIOSK, '{"action": 3}', "wrong_action"),
    (AT_KIOSK, "", "wrong_action"),
]


@pytest.mark.parametrize(("location", "output", "name"), UPSTREAM_TABLE)
def test_upstream_verdicts_have_the_public_code_s_blind_spots(location, output, name):
    """Exact strings, and a wrong action at an intersection that is reported truly is -1.5."""
    verdict = verify(output, location, "absolute", NAMES, "upstream")
    assert (verdict.name, verdict.reward) == (name, REWARDS[name])


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ('{"current instruction": "x", "action": "turn_direction(east)",}', "correct"),
        ('```json\n{\n "action" :\n "Turn_Direction( \'East\' )"\n}\n``` {"action": "stop()"}', "correct"),
        ('{"action": "stop()"} {"action": "turn_direction(east)"}', "wrong_action"),
        ('{"action": "turn_direction(east", ', "wrong_action"),
        ('{"action": "turn_direction(east)', "wrong_action"),
        (
            '{"current instruction": "the \\"action\\": \\"stop()\\" comes", "action": "turn_direction(east)"}',
            "correct",
        ),
        ('{"action": ["turn_direction(east)"]}', "wrong_action"),
        ('{"action": null}', "wrong_action"),
        ("turn_direction(east)", "wrong_action"),
        ("", "wrong_action"),
    ],
)
def test_the_first_action_is_found_in_json_in_near_json_and_inside_other_text(output, name):
    """Trailing commas, code fences, cases and quotes do not matter; a second answer does not repair the first."""
    assert verify(output, AT_KIOSK, "absolute", NAMES).name == name


def test_the_relative_vocabulary_and_its_alias():
    """Each space has its own words; AMFT's "very slightly right" is "slightly right", in paper mode."""
    assert verify(as_answer("turn_direction(right)"), AT_KIOSK, "relative").success
    assert not verify(as_answer("turn_direction(east)"), AT_KIOSK, "relative").success
    assert not verify(as_answer("turn_direction(right)"), AT_KIOSK, "absolute").success
    for word in ("slightly right", "very slightly right", " Very  Slightly Right "):
        assert verify(as_answer(f"turn_direction({word})"), START_LOCATION, "relative").success
    alias = as_answer("turn_direction(very slightly right)")
    assert not verify(alias, START_LOCATION, "relative", mode="upstream").success


HOSTILE = {
    "long output": "x" * 1_000_000,
    "long answer": as_answer("forward(" * 120_000),
    "long action": as_answer("turn_direction(" + " " * 150_000 + "east"),
    "words": as_answer("a" * 150_000 + "("),
    "long observation": as_answer("forward()", "not at an intersection " * 8_000),
    "open brackets": "[" * 190_000,
    "deep JSON": '{"action": ' * 18_000,
    "open string": '{"action": "' + '\\"' * 90_000,
    "many keys": '"action" ' * 22_000,
    "many spaces": '"action"' + " " * 190_000,
    "surrogate": '{"current observation": "\\ud800", "action": "\\ud800\\u0000"}',
    "huge number": '{"action": ' + "9" * 190_000 + "}",
    "code": as_answer("__import__('os').system('true')"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_outputs_are_wrong_and_fast(name):
    """A million characters, deep nesting and open strings cost no time and no stack, and the verdict can be logged."""
    start = time.perf_counter()
    for mode in ("paper", "upstream"):
        verdict = verify(HOSTILE[name], AT_KIOSK, "absolute", NAMES, mode)
        assert verdict.reward in (-1.0, -1.5)
        assert len(json.dumps([verdict.action, verdict.reason], ensure_ascii=False).encode()) < 600
    assert time.perf_counter() - start < 1.0


# The environment

ROUTES = [
    *sample_routes(make_city(CityOptions(seed=5)), 12, seed=0),
    *sample_routes(make_city(CityOptions(style="irregular", names="cities", seed=5)), 8, seed=0),
    handmade_route(),
    handmade_route(init_heading=0),
]


@pytest.mark.parametrize("mode", ["paper", "upstream"])
@pytest.mark.parametrize("style", ["paper", "compact"])
@pytest.mark.parametrize("context", ["per_location", "concat"])
@pytest.mark.parametrize("space", ["absolute", "relative"])
def test_the_expert_solves_every_route(space, context, style, mode):
    """Whatever the route, the seed and the settings: one step per location, all right, success at the last."""
    environment = Navigation(action_space=space, context=context, prompt_style=style, mode=mode)
    for seed, route in enumerate(ROUTES):
        observations, steps = play(environment, seed, {"route": route})
        *before, last = steps
        assert last[1:4] == (1.0, True, False)
        assert all(step[1:4] == (0.0, False, False) for step in before)
        info = last[4]
        assert (info["success"], info["per_step_accuracy"]) == (True, 1.0)
        assert info["num_steps"] == info["num_locations"] == len(steps)
        assert all(observation["reset_context"] == (context == "per_location") for observation in observations[1:-1])


@pytest.mark.parametrize(
    ("answer", "reward", "name"),
    [
        (as_answer("turn_direction(west)"), -1.0, "wrong_action"),
        (as_answer("turn_direction(west)", "You observe an intersection"), -1.5, "misread"),
        ("no idea", -1.0, "wrong_action"),
    ],
)
def test_one_wrong_answer_costs_what_the_table_says_and_does_not_move(answer, reward, name):
    """The location and its prompt stay, an attempt is used, and the reason comes as a further turn."""
    environment = Navigation(reward="shaped")
    environment.reset(3, {"route": handmade_route()})
    expert = environment.expert_action()
    observation, got, terminated, truncated, info = environment.step(answer)
    assert (got, terminated, truncated, info["verdict"]) == (reward, False, False, name)
    assert (info["success"], info["attempts"], info["location"], info["per_step_accuracy"]) == (False, 1, 0, 0.0)
    assert observation["text"].startswith("You failed this trial because ")
    assert not observation["reset_context"]
    assert environment.expert_action() == expert
    observation, got, terminated, truncated, info = environment.step(expert)
    assert (got, terminated, truncated) == (1.0, False, False)
    assert (info["attempts"], info["location"], info["num_steps"], info["per_step_accuracy"]) == (2, 0, 2, 0.5)
    assert observation["reset_context"]
    assert "O_2:" in observation["text"]


@pytest.mark.parametrize("verify_iter", [1, 2, 3])
def test_attempts_count_per_location_and_run_out(verify_iter):
    """A move renews them; the last wrong one of a location truncates the episode as failed, with its own verdict."""
    environment = Navigation(reward="shaped", verify_iter=verify_iter)
    num_locations = environment.reset(3, {"route": handmade_route()})[1]["num_locations"]
    for _ in range(num_locations - 1):
        for _ in range(verify_iter - 1):
            assert environment.step("no idea")[1:4] == (-1.0, False, False)
        assert environment.step(environment.expert_action())[1:4] == (1.0, False, False)
    for attempt in range(1, verify_iter + 1):
        observation, reward, terminated, truncated, info = environment.step(as_answer("forward()", "an intersection"))
        assert (reward, terminated, truncated) == (-1.5, False, attempt == verify_iter)
        assert (info["attempts"], info["success"]) == (attempt, False)
    assert observation["text"] == ""
    steps = (num_locations - 1) * verify_iter + verify_iter
    assert (info["num_steps"], info["per_step_accuracy"]) == (steps, (num_locations - 1) / steps)
    with pytest.raises(RuntimeError, match="reset"):
        environment.step(environment.expert_action())


def test_upstream_takes_one_answer_more_and_does_not_read_it():
    """Upstream mode: after two wrong answers at a location the third, even a right one, gets -1 and ends it."""
    environment = Navigation(mode="upstream", reward="shaped")
    environment.reset(3, {"route": handmade_route()})
    assert [environment.step("no idea")[3] for _ in range(2)] == [False, False]
    _, reward, terminated, truncated, info = environment.step(environment.expert_action())
    assert (reward, terminated, truncated, info["verdict"]) == (-1.0, False, True, "truncated")
    assert (info["success"], info["num_steps"], info["per_step_accuracy"]) == (False, 3, 0.0)


def test_the_three_rewards():
    """success: 1 at the end of a solved episode; shaped: the table; per_step: the share of locations solved."""
    totals = {}
    for reward in ("success", "shaped", "per_step"):
        environment = Navigation(reward=reward)
        num_locations = environment.reset(3, {"route": handmade_route()})[1]["num_locations"]
        total = environment.step("no idea")[1]
        done = False
        while not done:
            _, gain, done, _, _ = environment.step(environment.expert_action())
            total += gain
        totals[reward] = total
    assert totals == pytest.approx({"success": 1.0, "shaped": num_locations - 1.0, "per_step": 1.0})
    environment = Navigation(reward="per_step", verify_iter=1)
    environment.reset(3, {"route": handmade_route()})
    gains = [environment.step(environment.expert_action())[1], environment.step("no idea")[1]]
    assert gains == [pytest.approx(1 / num_locations), 0.0]


def test_the_prompt_holds_instruction_actions_and_history():
    """The paper's blocks in order, the words of the action space, and O and A lines up to the empty last action."""
    environment = Navigation(action_space="relative", drop_rate=0.0)
    text = environment.reset(0, {"route": handmade_route(), "location": 6})[0]["text"]
    blocks = [
        "[Task Description]",
        "[Instruction]",
        "[Action space]",
        "[Observations and actions sequence]",
        "[Output]",
    ]
    assert sorted(blocks, key=text.index) == blocks
    assert "\n1. First, turn slightly right to face north.\n2. Move forward" in text
    assert "'left', 'right', 'slightly left', 'slightly right'" in text
    assert "northwest" not in text
    lines = text[text.index(blocks[3]) : text.index(blocks[4])].strip().splitlines()[1:]
    assert lines[:4] == [
        "O_1: No landmarks nearby;",
        "A_1: turn_direction(slightly right)",
        "O_2: No landmarks nearby;",
        "A_2: forward()",
    ]
    assert lines[-4:] == [
        "O_6: Kiosk Blau is on your left front; You observe an intersection",
        "A_6: turn_direction(right)",
        "O_7: No landmarks nearby;",
        "A_7:",
    ]
    assert "'northwest'" in Navigation().reset(0, {"route": handmade_route()})[0]["text"]
    answer = json.loads(environment.expert_action())
    assert list(answer) == ["current observation", "current instruction", "action"]
    assert answer["current instruction"] in text


def test_compact_texts_say_the_same_in_few_characters():
    """Instruction, history and answer of the compact style, word for word."""
    environment = Navigation(prompt_style="compact", drop_rate=1.0)
    observations, _ = play(environment, 0, {"route": handmade_route()})
    assert observations[2]["text"] == (
        "Turn slightly right to north, go to Kiosk Blau left front, turn right to east, go to crossing, "
        'turn right to south, go to end Cafe "Zur {Post}": Mitte right.\n'
        "none > north\n"
        "Kiosk Blau left front crossing > east\n"
        "none crossing >"
    )
    assert environment.expert_action() == '{"action": "stop()"}'
    environment.reset(0, {"route": handmade_route()})
    assert environment.step("no idea")[0]["text"] == "You failed this trial because wrong action"


@pytest.mark.parametrize("style", ["paper", "compact"])
def test_an_episode_may_start_at_any_location(style):
    """options.location gives the observation that the expert's rollout has there, and the rest of the route."""
    per_location, concat = (Navigation(context=context, prompt_style=style) for context in ("per_location", "concat"))
    options = {"route": ROUTES[0]}
    observations, steps = play(per_location, 7, options)
    chat = []
    following = concat.reset(7, options)[0]
    for location in range(len(steps)):
        assert per_location.reset(7, options | {"location": location})[0]["text"] == observations[location]["text"]
        chat.append({"role": "user", "content": following["text"]})
        opening = Navigation(context="concat", prompt_style=style).reset(7, options | {"location": location})[0]
        assert opening.get("messages", [{"role": "user", "content": opening["text"]}]) == chat
        chat.append({"role": "assistant", "content": concat.expert_action()})
        following = concat.step(concat.expert_action())[0]
    late = Navigation(reward="per_step", prompt_style=style)
    late.reset(7, options | {"location": len(steps) - 1})
    assert late.step(late.expert_action())[1:4] == (1.0, True, False)


def test_the_same_seed_gives_the_same_episode_and_others_differ():
    """All draws come from the seed: no global random state is read; without options a city's route is drawn."""
    first, second = Navigation(), Navigation()
    random.seed(1)
    episodes = [(*first.reset(seed), first.expert_action()) for seed in range(10)]
    random.seed(2)
    assert episodes == [(*second.reset(seed), second.expert_action()) for seed in range(10)]
    assert len({observation["text"] for observation, _, _ in episodes}) == 10
    rails = {len(play(first, seed, {"route": ROUTES[0]})[1]) for seed in range(20)}
    assert len(rails) > 3


def test_a_pickled_episode_goes_on_where_it_stopped():
    """The state survives pickling in the middle: same attempts, same history, same end."""
    environment = Navigation(reward="shaped")
    environment.reset(9, {"route": ROUTES[1]})
    environment.step(environment.expert_action())
    environment.step("no idea")
    copy = pickle.loads(pickle.dumps(environment))
    assert copy == environment
    assert copy.step("no idea") == environment.step("no idea")
    with pytest.raises(RuntimeError):
        copy.step("no idea")


def test_routes_of_a_file_by_index_or_by_seed(tmp_path):
    """`routes` names a file; options.route_index picks one of its routes, else the seed does."""
    path = tmp_path / "routes.json"
    path.write_text(json.dumps([ROUTES[:5], 5]))
    environment = Navigation(routes=str(path))
    destinations = {environment.reset(seed)[1]["destination"] for seed in range(60)}
    assert destinations == {route["dest_place"]["name"] for route in ROUTES[:5]}
    assert environment.reset(0, {"route_index": 3})[1]["destination"] == ROUTES[3]["dest_place"]["name"]
    with pytest.raises(ValueError, match="must be 0 to 4; got 5"):
        environment.reset(0, {"route_index": 5})


@pytest.mark.parametrize(
    ("env_kwargs", "message"),
    [
        ({"action_spaces": "absolute"}, "unknown key 'action_spaces'; allowed: action_space, "),
        ({"action_space": "abs"}, "action_space must be one of absolute, relative; got 'abs'"),
        ({"context": "chat"}, "context must be one of per_location, concat; got 'chat'"),
        ({"mode": "papr"}, "mode must be one of paper, upstream; got 'papr'"),
        ({"reward": "sum"}, "reward must be one of success, shaped, per_step; got 'sum'"),
        ({"verify_iter": 0}, "verify_iter must be an integer, 1 or more; got 0"),
        ({"straight_points": 1.5}, "straight_points must be an integer, 0 or more; got 1.5"),
        ({"drop_rate": 1.5}, "drop_rate must be in [0, 1]; got 1.5"),
        ({"drop_rate": "half"}, "drop_rate must be a number"),
        ({"city": {"sead": 1}}, "unknown city option 'sead'; allowed: style, names, seed, size"),
        ({"city": {"size": 20}}, "city size must be an integer, 3 to 9; got 20"),
        ({"city": {"style": "square"}}, "city style must be one of grid, irregular; got 'square'"),
        ({"city": 3}, "city must be a mapping of city options; got 3"),
        ({"routes": "a.json", "city": {"seed": 1}}, "exclude each other"),
    ],
)
def test_bad_environment_arguments_name_the_value_and_what_is_allowed(env_kwargs, message):
    """A typing error in a data row or a config says what was received and what is allowed."""
    with pytest.raises(ValueError) as error:
        make_environment("virl", env_kwargs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routes": []}, "unknown reset options"),
        ({"route": {}}, "options\\['route'\\]: route_results is NoneType"),
        ({"route": handmade_route(), "location": 99}, "options\\['location'\\] must be 0 to"),
        ({"route": handmade_route(), "location": "1"}, "options\\['location'\\] must be 0 to"),
        ({"route_index": 0}, "needs a route file"),
    ],
)
def test_bad_reset_options_raise(options, message):
    """A typing error or a broken route in a data row raises at once."""
    with pytest.raises(ValueError, match=message):
        Navigation().reset(0, options)


def test_a_step_costs_little():
    """Reset and step take milliseconds, so that the model, not the environment, is what a rollout waits for."""
    environment = Navigation()
    compact = compact_route(ROUTES[0])
    start = time.perf_counter()
    num_steps = sum(len(play(environment, seed, {"route": compact})[1]) for seed in range(40))
    assert (time.perf_counter() - start) / num_steps < 0.01
