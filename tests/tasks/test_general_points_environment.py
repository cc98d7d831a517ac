"""General Points: episodes start, go on and end as the design says, by the seed alone."""

import json
import pickle
import random

import pytest

from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.general_points.environment import GeneralPoints


def as_answer(formula):
    return json.dumps({"formula": formula})


def test_an_episode_ends_at_the_first_correct_answer():
    """A wrong answer gives feedback and goes on; the expert's answer then terminates with reward 1."""
    environment = make_environment("general_points", {})
    environment.reset(5)
    observation, reward, terminated, truncated, info = environment.step("no idea")
    assert observation["text"].startswith("You failed this trial because ")
    assert (reward, terminated, truncated, info["success"], info["attempts"]) == (0.0, False, False, False, 1)
    observation, reward, terminated, truncated, info = environment.step(environment.expert_action())
    assert (reward, terminated, truncated, info["success"], info["attempts"]) == (1.0, True, False, True, 2)
    assert (observation["text"], info["verdict"]) == ("", "correct")
    with pytest.raises(RuntimeError, match="reset"):
        environment.step(environment.expert_action())


@pytest.mark.parametrize("verify_iter", [1, 3])
def test_an_episode_is_truncated_after_verify_iter_attempts(verify_iter):
    """Paper mode: the last of `verify_iter` failed attempts truncates, with its own verdict."""
    environment = GeneralPoints(verify_iter=verify_iter, reward="shaped")
    environment.reset(5)
    steps = [environment.step("no idea") for _ in range(verify_iter)]
    assert [step[3] for step in steps] == [False] * (verify_iter - 1) + [True]
    assert [step[1] for step in steps] == [-3.0] * verify_iter


def test_upstream_truncates_one_answer_later_without_reading_it():
    """Upstream mode: after `verify_iter` scored attempts one more answer, even a right one, gets -1."""
    environment = GeneralPoints(verify_iter=2, reward="shaped", mode="upstream")
    environment.reset(5)
    assert [environment.step("no idea")[3] for _ in range(2)] == [False, False]
    _, reward, terminated, truncated, info = environment.step(environment.expert_action())
    assert (reward, terminated, truncated, info["verdict"], info["success"]) == (-1.0, False, True, "truncated", False)


@pytest.mark.parametrize("style", ["paper", "compact"])
@pytest.mark.parametrize("face_rule", ["ten", "value"])
def test_the_expert_solves_every_drawn_hand(style, face_rule):
    """Whatever the seed, the hand is solvable, the demonstration is right, and it ends in the target."""
    environment = GeneralPoints(prompt_style=style, face_rule=face_rule, require_face=face_rule == "value")
    for seed in range(200):
        _, info = environment.reset(seed)
        assert face_rule == "ten" or max(info["cards"]) >= 11
        assert json.loads(environment.expert_action())["formula"].endswith("=24")
        _, _, terminated, _, info = environment.step(environment.expert_action())
        assert terminated
        assert not info["right_side_differs"]


def test_prompts_hold_the_cards_the_rule_and_the_target():
    """The paper style shows card names and the face rule; the compact one the numbers."""
    options = {"cards": [1, 3, 13, 6], "target": 24}
    text = GeneralPoints().reset(0, options)[0]["text"]
    assert "Cards: ['A', '3', 'K', '6']" in text
    assert "count as 10" in text
    assert [block for block in ("[Task Description]", "[Input]", "[Output]") if block in text] == [
        "[Task Description]",
        "[Input]",
        "[Output]",
    ]
    assert "count as 11, 12 and 13" in GeneralPoints(face_rule="value").reset(0, options | {"target": 30})[0]["text"]
    compact = GeneralPoints(prompt_style="compact")
    assert compact.reset(0, options)[0]["text"] == "Cards: 1 3 10 6 Target: 24"
    assert compact.step(as_answer("10+3+6+1"))[0]["text"] == "You failed this trial because wrong value"


def test_the_same_seed_gives_the_same_episode_and_others_differ():
    """All draws come from the seed: no global random state is read."""
    first, second = GeneralPoints(), GeneralPoints()
    random.seed(1)
    hands = [(*first.reset(seed), first.expert_action()) for seed in range(50)]
    random.seed(2)
    assert hands == [(*second.reset(seed), second.expert_action()) for seed in range(50)]
    assert len({observation["text"] for observation, _, _ in hands}) > 45


def test_a_pickled_episode_goes_on_where_it_stopped():
    """The state survives pickling in the middle of an episode: same attempts, same demonstration, same end."""
    environment = GeneralPoints(verify_iter=2)
    environment.reset(9)
    environment.step("no idea")
    copy = pickle.loads(pickle.dumps(environment))
    assert copy == environment
    assert copy.expert_action() == environment.expert_action()
    assert copy.step("no idea") == environment.step("no idea")


@pytest.mark.parametrize(
    ("env_id", "env_kwargs", "message"),
    [
        ("general_pionts", {}, "unknown env_id 'general_pionts'; known: general_points"),
        ("general_points", {"num_card": 3}, "unknown key 'num_card'; allowed: num_cards, "),
        ("general_points", {"num_cards": 6}, "num_cards must be an integer, 2 to 5; got 6"),
        ("general_points", {"num_cards": True}, "num_cards must be an integer"),
        ("general_points", {"ranks": 14}, "ranks must be an integer, 1 to 13; got 14"),
        ("general_points", {"verify_iter": 0}, "verify_iter must be an integer, 1 or more; got 0"),
        ("general_points", {"target": 24.0}, "target must be an integer; got 24.0"),
        ("general_points", {"mode": "papr"}, "mode must be one of paper, upstream; got 'papr'"),
        ("general_points", {"reward": 1}, "reward must be one of success, shaped; got 1"),
        ("general_points", {"require_face": True, "ranks": 10}, "require_face needs ranks of 11 to 13; got ranks=10"),
        ("no.such.module:Game", {}, "cannot import 'no.such.module'"),
        ("recipe.amft.tasks.general_points.environment:GeneralPoint", {}, "it has: GeneralPoints"),
    ],
)
def test_bad_environment_arguments_name_the_value_and_what_is_allowed(env_id, env_kwargs, message):
    """A typing error in a data row or a config says what was received and what is allowed, the nearest first."""
    with pytest.raises(ValueError) as error:
        make_environment(env_id, env_kwargs)
    assert message in str(error.value)


def test_an_import_path_builds_the_same_environment():
    """A user's own class needs no registration: its import path is its env_id."""
    built = make_environment("recipe.amft.tasks.general_points.environment:GeneralPoints", {"num_cards": 3})
    assert built == make_environment("general_points", {"num_cards": 3})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"card": [1, 2, 3, 4]}, "unknown reset options"),
        ({"cards": [1, 2, 3]}, "must be 4 ranks of 1 to 13"),
        ({"cards": [0, 2, 3, 4]}, "must be 4 ranks of 1 to 13"),
        ({"cards": [1, 1, 1, 1]}, "cannot make 24"),
        ({"target": "24"}, "must be an integer"),
        ({"target": 10**9}, "no solvable hand"),
    ],
)
def test_bad_reset_options_raise(options, message):
    """An impossible hand or a typing error in a data row raises at once, and never loops."""
    with pytest.raises(ValueError, match=message):
        GeneralPoints().reset(0, options)
