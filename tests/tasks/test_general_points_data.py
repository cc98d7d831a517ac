"""General Points: data rows replay, splits share no hand, and the evaluation sets are always the same."""

import hashlib
import itertools
import json
import random
import subprocess
import sys

import pandas as pd
import pytest

from recipe.amft.data.general_points import build_evaluation, build_splits, main, make, solvable_hands, write_parquet
from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.general_points.cards import card_value
from recipe.amft.tasks.general_points.environment import GeneralPoints

PAPER_OPTIONS = {"num_cards": 4, "ranks": 13, "targets": [24, 24], "train": 500, "validation": 50, "test": 0, "seed": 0}
SMALL_GAME = {"num_cards": 3, "ranks": 6, "prompt_style": "compact"}


@pytest.mark.parametrize("disjoint", ["pair", "multiset"])
@pytest.mark.parametrize("env_kwargs", [SMALL_GAME, {"num_cards": 3, "ranks": 13}])
def test_splits_are_disjoint_and_of_the_sizes_asked(env_kwargs, disjoint):
    """No two splits share the numbers and target of a hand (`pair`), or its numbers at all (`multiset`)."""
    sizes = {"train": 120, "validation": 30, "test": 50}
    splits = build_splits(env_kwargs, targets=range(1, 25), sizes=sizes, seed=3, disjoint=disjoint)
    assert {split: len(rows) for split, rows in splits.items()} == sizes
    keys = {}
    for split, rows in splits.items():
        options = [json.loads(row["extra_info"]["options"]) for row in rows]
        numbers = [tuple(sorted(card_value(rank, "ten") for rank in option["cards"])) for option in options]
        targets = [option["target"] for option in options]
        keys[split] = set(zip(numbers, targets, strict=True)) if disjoint == "pair" else set(numbers)
    for first, second in itertools.combinations(keys, 2):
        assert not keys[first] & keys[second]
    ids = [row["extra_info"]["id"] for rows in splits.values() for row in rows]
    assert len(set(ids)) == len(ids)


def test_splits_may_use_up_the_game_and_say_when_it_is_too_small():
    """All solvable pairs can be dealt out; one more is an error that names their number."""
    num_hands = len(solvable_hands(GeneralPoints(**SMALL_GAME), range(1, 25)))
    sizes = {"train": num_hands - 40, "validation": 15, "test": 25}
    splits = build_splits(SMALL_GAME, targets=range(1, 25), sizes=sizes, seed=0)
    assert sum(len(rows) for rows in splits.values()) == num_hands
    with pytest.raises(ValueError, match=f"{num_hands} solvable"):
        build_splits(SMALL_GAME, targets=range(1, 25), sizes=sizes | {"test": 26}, seed=0)


def test_a_row_replays_to_its_own_prompt_demonstration_and_success():
    """env_id, env_kwargs, seed and options of a row rebuild its prompt and its demonstration, which succeeds."""
    splits = build_splits(
        {"num_cards": 3}, targets=[12, 24], sizes={"train": 60, "test": 20}, seed=1, demonstrations_per_hand=3
    )
    assert len(splits["test"]) == 20
    assert len(splits["train"]) > 60
    for row in splits["train"] + splits["test"]:
        extra = row["extra_info"]
        environment = make_environment(extra["env_id"], json.loads(extra["env_kwargs"]))
        observation, info = environment.reset(extra["seed"], json.loads(extra["options"]))
        assert row["prompt"] == [{"role": "user", "content": observation["text"]}]
        assert row["target"] == [{"role": "assistant", "content": environment.expert_action()}]
        assert row["reward_model"] == {"style": "rule", "ground_truth": str(info["target"])}
        assert environment.step(row["target"][0]["content"])[1] == 1.0
    demonstrations = {(row["prompt"][0]["content"], row["target"][0]["content"]) for row in splits["train"]}
    assert len(demonstrations) == len(splits["train"])


def test_the_seed_alone_decides_the_splits():
    """The same seed gives the same rows, another seed others, whatever the global random state."""
    build = {"targets": range(1, 25), "sizes": {"train": 50, "test": 10}}
    first = build_splits(SMALL_GAME, seed=7, **build)
    random.seed(123)
    assert build_splits(SMALL_GAME, seed=7, **build) == first
    assert build_splits(SMALL_GAME, seed=8, **build) != first


def test_parquet_round_trip_leaves_no_other_file(tmp_path):
    """Rows read back as written; the temporary file is gone, and an old file is replaced."""
    rows = build_splits(SMALL_GAME, targets=[12], sizes={"train": 8}, seed=0)["train"]
    path = tmp_path / "data" / "train.parquet"
    write_parquet(rows[:2], path)
    write_parquet(rows, path)
    assert [file.name for file in path.parent.iterdir()] == ["train.parquet"]
    read = pd.read_parquet(path).to_dict("records")
    assert [row["extra_info"] for row in read] == [row["extra_info"] for row in rows]
    assert [list(row["target"]) for row in read] == [row["target"] for row in rows]


def test_command_line_writes_three_splits(tmp_path):
    """The documented command writes three files; a game that is too small ends with the reason and status 2."""
    command = [sys.executable, "-m", "recipe.amft.data.general_points", "--out", str(tmp_path), "--num-cards", "3"]
    command += ["--ranks", "6", "--validation", "5", "--test", "7", "--prompt-style", "compact", "--train", "20"]
    subprocess.run([*command, "--targets", "1-24"], check=True, capture_output=True)
    lengths = {path.name: len(pd.read_parquet(path)) for path in tmp_path.iterdir()}
    assert lengths == {"train.parquet": 20, "validation.parquet": 5, "test.parquet": 7}
    failed = subprocess.run([*command, "--targets", "24"], capture_output=True, text=True)
    assert failed.returncode == 2
    assert "solvable (cards, target) pairs" in failed.stderr


# ---- the evaluation sets ---------------------------------------------------------------------------------------------


def cards_of(rows):
    return [tuple(sorted(json.loads(row["extra_info"]["options"])["cards"])) for row in rows]


def test_evaluation_sets_are_the_papers_234_hands_under_both_rules():
    """234 different solvable hands each; in test_rule J, Q, K count as 11, 12, 13 and every hand has one of them."""
    sets, hands = build_evaluation({})
    assert {split: len(set(cards_of(rows))) for split, rows in sets.items()} == {"test_id": 234, "test_rule": 234}
    assert sorted(cards_of(sets["test_id"])) == sorted(cards for cards, _ in hands)
    rules = {"test_id": ("ten", "10"), "test_rule": ("value", "11, 12 and 13")}
    for split, rows in sets.items():
        rule, words = rules[split]
        assert {row["data_source"] for row in rows} == {f"general_points_{split.removeprefix('test_')}"}
        for row in rows:
            extra = row["extra_info"]
            environment = make_environment(extra["env_id"], json.loads(extra["env_kwargs"]))
            observation, info = environment.reset(extra["seed"], json.loads(extra["options"]))
            assert (environment.face_rule, info["target"]) == (rule, 24)
            assert row["prompt"] == [{"role": "user", "content": observation["text"]}]
            assert f"count as {words}" in observation["text"]
            assert environment.step(row["target"][0]["content"])[4]["success"]
    assert min(max(cards) for cards in cards_of(sets["test_rule"])) >= 11


def test_evaluation_sets_depend_on_their_own_seed_alone():
    """Whatever is trained on, and with whatever seed, the hands are the same; another evaluation seed gives others."""
    random.seed(5)
    first, _ = build_evaluation({})
    random.seed(6)
    assert build_evaluation({})[0] == first
    assert build_evaluation({}, seed=43)[0]["test_id"] != first["test_id"]


@pytest.mark.parametrize("disjoint", ["pair", "multiset"])
def test_no_evaluation_hand_is_trained_on(tmp_path, disjoint):
    """Training and validation hands show no numbers that a test_id hand shows; the test file holds both sets."""
    make(PAPER_OPTIONS | {"evaluation": 234, "disjoint": disjoint, "demonstrations_per_hand": 2}, tmp_path)
    rows = {path.stem: pd.read_parquet(path).to_dict("records") for path in tmp_path.iterdir()}
    assert set(rows) == {"train", "validation", "test", "test_id", "test_rule"}
    numbers = {
        split: {tuple(sorted(card_value(rank, "ten") for rank in cards)) for cards in cards_of(rows[split])}
        for split in ("train", "validation", "test_id")
    }
    assert not numbers["train"] & numbers["test_id"]
    assert not numbers["validation"] & numbers["test_id"]
    assert len(set(cards_of(rows["train"]))) == 500
    many_tens = [cards for cards in set(cards_of(rows["train"])) if sum(rank >= 10 for rank in cards) >= 2]
    assert len(many_tens) > 75, "of all hands, 24% have two tens or more: so do about 120 of 500"
    ids = [[row["extra_info"]["id"] for row in rows[split]] for split in ("test", "test_id", "test_rule")]
    assert ids[0] == ids[1] + ids[2]


def test_splits_without_evaluation_are_those_of_before():
    """The option changes nothing where it is not given: same rows as with `evaluation: 0`."""
    arguments = {"targets": [24], "sizes": {"train": 20, "validation": 5, "test": 5}, "seed": 0}
    assert build_splits({}, **arguments) == build_splits({}, **arguments, held_out=[])
    digest = hashlib.sha256(json.dumps(build_splits({}, **arguments)["test"], sort_keys=True).encode()).hexdigest()
    assert digest == "17d912f1deb2695b9470a4a8d45f541faf1443fc256ed37dd7e5fca3352d0529"


def test_the_evaluation_command_writes_the_two_sets_alone(tmp_path):
    """`--evaluation` needs no other size; `--evaluation 40` is a smaller one; neither lack passes silently."""
    main(["--out", str(tmp_path), "--evaluation"])
    assert {path.name: len(pd.read_parquet(path)) for path in tmp_path.iterdir()} == {
        "test_id.parquet": 234,
        "test_rule.parquet": 234,
    }
    main(["--out", str(tmp_path / "small"), "--evaluation", "40", "--train", "10", "--validation", "0", "--test", "3"])
    assert len(pd.read_parquet(tmp_path / "small" / "test.parquet")) == 3 + 2 * 40
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--train", "10"])
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--evaluation", "40", "--ranks", "10"])


def test_the_shipped_task_composes_and_makes_its_data(tmp_path):
    """configs/task/general_points.yaml: its options make rows that fill its batches, its lengths fit together."""
    from omegaconf import OmegaConf

    from recipe.amft.main import compose

    config = compose(["task=general_points", "model=qwen2_5_math_7b", "hardware=cpu"])
    options = OmegaConf.to_container(config.amft.task.options, resolve=True)
    make(options, tmp_path)
    lengths = {path.stem: len(pd.read_parquet(path)) for path in tmp_path.iterdir()}
    assert lengths["train"] >= max(config.data.train_batch_size, config.amft.demonstrations.batch_size)
    assert lengths["validation"] >= config.amft.utility.num_prompts
    assert lengths["test"] == 2 * 234
    longest = config.data.max_prompt_length + config.data.max_response_length
    assert longest <= config.actor_rollout_ref.rollout.max_model_len
