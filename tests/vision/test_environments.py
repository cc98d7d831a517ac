"""The environments with images: what is shown, what is recognised, and what an answer earns."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from recipe.amft.data.card_reading import layout
from recipe.amft.data.card_reading import make as make_cards
from recipe.amft.data.files import shown
from recipe.amft.data.general_points import splits_from_options
from recipe.amft.data.virl import DataOptions, build_splits
from recipe.amft.tasks.environment import IMAGE, begin, make_environment
from recipe.amft.tasks.rendering.panorama import PanoramaFolder, perspective
from verl_ext import images


def general_points(**kwargs):
    return make_environment("general_points", {"modality": "image", "image_size": 112, **kwargs})


def virl(**kwargs):
    return make_environment("virl", {"modality": "image", "view_size": 32, **kwargs})


def test_the_two_sides_mean_the_same_mark():
    assert images.IMAGE == IMAGE


@pytest.mark.parametrize("style", ["paper", "compact"])
@pytest.mark.parametrize("mode", ["paper", "upstream"])
def test_the_expert_solves_a_hand_that_only_the_image_shows(style, mode):
    environment = general_points(prompt_style=style, mode=mode)
    for seed in range(20):
        observation, info = environment.reset(seed)
        assert observation["text"].startswith(IMAGE)
        assert len(observation["images"]) == 1
        assert "Cards:" not in observation["text"]
        _, reward, terminated, _, info = environment.step(environment.expert_action())
        assert (reward, terminated, info["recognition_accuracy"]) == (1.0, True, 1.0)


def test_wrong_cards_cost_one_and_a_half_whatever_the_formula():
    """As a multiset: the order does not matter; the later turns have no image."""
    environment = general_points(reward="shaped")
    environment.reset(0)
    answer = json.loads(environment.expert_action())
    observation, reward, terminated, _, info = environment.step(json.dumps(answer | {"cards": ["A", "A", "A", "A"]}))
    assert (reward, terminated, info["verdict"]) == (-1.5, False, "misread")
    assert (observation["images"], observation["text"]) == (
        [],
        "You failed this trial because you recognized wrong cards",
    )
    _, reward, terminated, _, info = environment.step(json.dumps(answer | {"cards": answer["cards"][::-1]}))
    assert (reward, terminated, info["recognition_accuracy"]) == (5.0, True, 0.5)


@pytest.mark.parametrize(
    ("written", "paper", "upstream"),
    [
        ('["8", "5", "9", "4"]', True, False),
        ("['8', '5', '9', '4']", True, True),
        ("[8, 5, 9, 4]", True, False),
        ("[8, 5, 9, 4, 4]", False, False),
        ("['A', '5', '9', '4']", False, False),
        ("[]", False, False),
    ],
)
def test_how_cards_may_be_written(written, paper, upstream):
    """The public code reads nothing from valid JSON; mode `paper` takes any list. Other cards are -1.5 in both."""
    for mode, expected in (("paper", paper), ("upstream", upstream)):
        environment = general_points(mode=mode, reward="shaped")
        environment.reset(0, {"cards": [8, 5, 9, 4]})
        _, reward, _, _, info = environment.step(f'{{"cards": {written}, "formula": "4*(9-5)+8=24"}}')
        assert (reward, info["verdict"]) == ((5.0, "correct") if expected else (-1.5, "misread"))


def test_evaluation_with_images_has_the_same_hands_in_red():
    options = {"targets": [24, 24], "modality": "image", "image_size": 112, "evaluation": 6, "test": 0, "seed": 0}
    splits = splits_from_options(options)
    assert {row["data_source"] for row in splits["test"]} == {
        "general_points_id",
        "general_points_rule",
        "general_points_visual",
    }
    for black, red in zip(splits["test_id"], splits["test_visual"], strict=True):
        assert black["extra_info"]["options"] == red["extra_info"]["options"]
        cards = [{suit for _, suit in begin(row)[1]["images"][0].cards} for row in (black, red)]
        assert cards[0] <= {"S", "C"}
        assert cards[1] <= {"H", "D"}
    identities = [row["extra_info"]["id"] for row in splits["test"]]
    assert len(set(identities)) == len(identities)


def test_two_hands_are_two_prompts_though_their_texts_are_alike():
    """Split hygiene looks at what the image is drawn from."""
    sizes = {"train": 5, "validation": 0, "test": 0}
    rows = splits_from_options({"targets": [24, 24], "modality": "image", "seed": 0, **sizes})["train"]
    assert len({row["prompt"][0]["content"] for row in rows}) == 1
    assert len({shown(row) for row in rows}) == 5


@pytest.mark.parametrize("context", ["per_location", "concat"])
def test_the_expert_walks_by_views(context):
    """One image for each location, in the turn that opens it; success and recognition are whole."""
    environment = virl(context=context)
    observation, info = environment.reset(4)
    for _ in range(info["num_locations"]):
        assert observation["text"].count(IMAGE) == len(observation["images"]) == 1
        assert observation["images"][0].size == (69, 69)
        observation, _, terminated, truncated, info = environment.step(environment.expert_action())
        assert not truncated
    assert terminated
    assert (info["success"], info["per_step_accuracy"], info["recognition_accuracy"]) == (True, 1.0, 1.0)


def test_a_misread_view_lowers_recognition_and_not_the_step():
    """The action decides the step; what was reported decides recognition."""
    environment = virl()
    environment.reset(4)
    answer = json.loads(environment.expert_action()) | {"current observation": "You observe an intersection"}
    _, _, _, _, info = environment.step(json.dumps(answer))
    assert (info["per_step_accuracy"], info["recognition_accuracy"]) == (1.0, 0.0)
    _, _, _, _, info = environment.step(environment.expert_action())
    assert info["recognition_accuracy"] == 0.5


@pytest.mark.parametrize("context", ["per_location", "concat"])
def test_rows_of_later_locations_show_one_image(context):
    options = {"train": 2, "modality": "image", "view_size": 32, "context": context, "city_size": 4, "turns": (1, 2)}
    for row in build_splits(DataOptions.from_mapping(options))["train"].rows:
        _, observation = begin(row)
        text = "".join(message["content"] for message in row["prompt"])
        assert text.count(IMAGE) == len(observation["images"]) == 1
        assert IMAGE in row["prompt"][-1]["content"]


def test_environments_with_images_can_be_pickled():
    for environment in (general_points(), virl()):
        environment.reset(1)
        assert pickle.loads(pickle.dumps(environment)).expert_action() == environment.expert_action()


# ---- a user's own panoramas ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """One panorama whose column says its heading: red is the share of the circle from its left edge."""
    columns = np.linspace(0, 255, 720).astype(np.uint8)
    picture = np.zeros((360, 720, 3), np.uint8)
    picture[..., 0] = columns
    Image.fromarray(picture).save(tmp_path / "here.jpg", quality=100)
    (tmp_path / "here.metadata.json").write_text('{"rotation": 30}')
    (tmp_path / "panoramas.json").write_text('{"here": [40.0, -74.0]}')
    return tmp_path


def test_a_panorama_is_shown_from_the_heading(folder):
    """Heading h stands (h - 180 + rotation) degrees to the right of the picture's middle."""
    for heading in (0, 100, 275):
        views = PanoramaFolder(str(folder)).views("here", heading, 64)
        for index in range(4):
            expected = ((heading + 90 * index - 180 + 30) % 360 / 360 + 0.5) % 1
            seen = views[index, 32, 31:33, 0].mean() / 255
            assert abs(seen - expected) < 0.02


def test_a_perspective_covers_a_quarter_of_the_circle():
    picture = np.zeros((180, 360, 3), np.uint8)
    picture[..., 0] = np.arange(360) % 256
    view = perspective(picture, 0, 100)[50, :, 0]
    assert (view[0], view[-1]) == (135, 224)


def test_routes_of_a_file_need_panoramas(folder):
    route = {
        "start_place": {"geocode": [40.0, -74.0]},
        "dest_place": {"name": "Nori Cafe"},
        "route_results": {"geocode_list": [[40.00001, -74.0]]},
        "init_heading": 90,
        "milestone_info": '{\n"landmarks": "The destination Nori Cafe is on your left",\n}',
    }
    with pytest.raises(ValueError, match="panoramas=DIR"):
        virl().reset(0, {"route": route})
    observation, _ = virl(panoramas=str(folder)).reset(0, {"route": route})
    assert observation["images"][0].draw().size == (69, 69)
    route["start_place"]["geocode"] = [41.0, -74.0]
    with pytest.raises(ValueError, match="nearest panorama"):
        virl(panoramas=str(folder)).reset(0, {"route": route})
    with pytest.raises(ValueError, match="cannot be read"):
        PanoramaFolder(str(folder)).views("elsewhere", 0, 32)


# ---- card reading ----------------------------------------------------------------------------------------------------


def test_card_reading_draws_another_picture_for_every_seed():
    """The expert's rank earns 1, any other 0."""
    environment = make_environment("card_reading", {})
    pictures = set()
    for seed in range(30):
        observation, info = environment.reset(seed)
        pictures.add(observation["images"][0].draw().tobytes())
        right = seed % 2 == 0
        answer = environment.expert_action() if right else ("A" if info["rank"] != "A" else "K")
        _, reward, terminated, truncated, result = environment.step(answer)
        assert (reward, terminated, truncated, result["success"]) == (float(right), right, not right, right)
    assert len(pictures) == 30


def test_training_shows_no_card_where_a_held_out_row_does(tmp_path):
    """Whatever the brightness; and the red test has the black one's. With a spread this small, layouts repeat."""
    kwargs = {"image_size": 56, "spread": 0.1}
    make_cards({"train": 200, "validation": 20, "test": 20} | kwargs, tmp_path)
    seeds = {
        name: [info["seed"] for info in pd.read_parquet(tmp_path / f"{name}.parquet")["extra_info"]]
        for name in ("train", "validation", "test")
    }
    environment = make_environment("card_reading", kwargs)
    layouts = {name: {layout(environment, seed) for seed in values} for name, values in seeds.items()}
    assert len(layouts["train"]) < len(seeds["train"]) == 200
    assert not layouts["train"] & (layouts["validation"] | layouts["test"])
    assert seeds["test"][:20] == seeds["test"][20:]
