"""The data sets made of synthetic cities for V-IRL: splits, rows, replay, files, options."""

import itertools
import json
import re
import subprocess
import sys

import pandas as pd
import pytest
from omegaconf import OmegaConf

from recipe.amft.data.tiny_model import make_tokenizer
from recipe.amft.data.virl import DataOptions, build_splits, make, write_splits
from recipe.amft.data.virl_rows import synthetic_routes
from recipe.amft.main import compose
from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.virl import instructions
from recipe.amft.tasks.virl.environment import Navigation
from recipe.amft.tasks.virl.names import NAME_SETS, kinds, name_set
from recipe.amft.tasks.virl.routes import parse_route


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
