"""V-IRL's verifier: the verdicts of the paper and of the public code, and hostile outputs."""

import json
import random
import time

import pytest
from handmade_route import as_answer, handmade_route

from recipe.amft.tasks.virl.rail import build_rail
from recipe.amft.tasks.virl.routes import parse_route
from recipe.amft.tasks.virl.verifier import REWARDS, verify

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
    start = time.process_time()
    for mode in ("paper", "upstream"):
        verdict = verify(HOSTILE[name], AT_KIOSK, "absolute", NAMES, mode)
        assert verdict.reward in (-1.0, -1.5)
        assert len(json.dumps([verdict.action, verdict.reason], ensure_ascii=False).encode()) < 600
    assert time.process_time() - start < 1.0
