"""V-IRL's environment: rewards, attempts, prompts, replay, arguments."""

import json
import pickle
import random
import time

import pytest
from handmade_route import as_answer, handmade_route, play

from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.virl.city import CityOptions, make_city
from recipe.amft.tasks.virl.environment import Navigation
from recipe.amft.tasks.virl.routes import compact_route
from recipe.amft.tasks.virl.trips import sample_routes

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
    start = time.process_time()
    num_steps = sum(len(play(environment, seed, {"route": compact})[1]) for seed in range(40))
    assert (time.process_time() - start) / num_steps < 0.01
