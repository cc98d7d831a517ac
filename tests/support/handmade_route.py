"""A V-IRL route in the documented schema, written by hand; the expert's episode; an answer."""

import json

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
