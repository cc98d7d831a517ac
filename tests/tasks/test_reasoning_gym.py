"""reasoning-gym's data sets as tasks: entries and rows replay, scores are its own, splits share no question."""

import json
import os
import pickle
import subprocess
import sys
import types
from importlib import import_module, metadata
from pathlib import Path

import pandas as pd
import pytest
from gym_problems import posed, result_of

from benchmarks.reasoning_gym import WITHOUT_ANSWERS, problem_of, usable_datasets
from recipe.amft.data.files import normalised
from recipe.amft.data.reasoning_gym import build_splits, main, make
from recipe.amft.tasks.environment import make_environment
from recipe.amft.tasks.reasoning_gym import worker
from recipe.amft.tasks.reasoning_gym.entries import REFUSED, VERSION, entry_at, from_json, known_datasets, to_json

reasoning_gym = import_module("reasoning_gym")  # after entries.py, which stands in for pycosat

# Those that give no answer, those whose scorer is made safe (worker.py), and every tenth name of all.
# `python -m benchmarks.reasoning_gym` takes every data set.
SAFE = {module.rpartition(".")[2] for module in worker.EVALUATING}
SAFE |= {"countdown", "polynomial_multiplication", "simple_integration", "intermediate_integration"}
TRIED = sorted({*WITHOUT_ANSWERS, *SAFE, *usable_datasets()[::10]})
SUMS = {"dataset": "basic_arithmetic", "config": {"max_terms": 2, "operators": ["+"]}, "answer_format": "plain"}


# ---- entries and scores ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRIED)
def test_a_data_set_scores_its_own_answer_through_json_and_the_subprocess(name):
    """An entry comes back from JSON as it was; its own answer gets 1.0; five data sets have none, and say so."""
    assert problem_of(name) == ""
    if name in WITHOUT_ANSWERS:
        with pytest.raises(ValueError, match="gives none"):
            posed(name).expert_action()


@pytest.mark.parametrize(
    "value", [(1, (2, [3])), {1: "a", "1": "b"}, {"__tuple__": [1]}, {"a": {2, 3}}, [{"x": None}], {(1, 2): 0.5}, {}]
)
def test_json_keeps_tuples_and_keys(value):
    """Scorers tell (1, 2) from [1, 2] and 1 from "1"; a text that looks like a mark is no mark."""
    assert from_json(json.loads(json.dumps(to_json(value)))) == value


def test_a_data_set_whose_package_is_missing_says_so(monkeypatch):
    """reasoning-gym imports without the one package that has to be compiled; the data set that needs it is refused."""
    monkeypatch.setitem(sys.modules, "pycosat", types.ModuleType("pycosat"))
    with pytest.raises(ValueError, match="'zebra_puzzles' of reasoning-gym needs the package pycosat"):
        entry_at("zebra_puzzles", {}, 0, 7, 0)
    assert entry_at("basic_arithmetic", {}, 0, 7, 0)["answer"]


def test_the_refused_data_sets_still_deserve_it():
    """puzzle24 accepts the solution of another hand, and game_of_life_halting any text: why they are refused."""
    puzzle = reasoning_gym.create_dataset("puzzle24", seed=0, size=2)
    assert puzzle.score_answer(puzzle[1]["answer"], puzzle[0]) == 1.0
    assert puzzle[0]["metadata"]["numbers"] != puzzle[1]["metadata"]["numbers"]
    halting = reasoning_gym.create_dataset("game_of_life_halting", seed=0, size=1)
    assert {halting.score_answer(text, halting[0]) for text in ("True", "False", "no idea")} == {1.0}
    for name in REFUSED:
        with pytest.raises(ValueError, match=f"{name}' of reasoning-gym is refused: "):
            make_environment("reasoning_gym", {"dataset": name})


def test_rewards():
    """`score` is the scorer's own, partial marks included; `success` is 1 from the threshold on, else 0."""
    answer = f"It is {posed('gcd').expert_action()}"  # partial marks for a text that holds the answer
    partial, _ = result_of(answer, "gcd")
    dataset = reasoning_gym.create_dataset("gcd", seed=0, size=100)
    assert partial == dataset.score_answer(answer, dataset[0])
    assert 0 < partial < 1
    assert result_of(answer, "gcd", reward="success")[0] == 0.0
    assert result_of(answer, "gcd", reward="success", threshold=partial)[0] == 1.0


@pytest.mark.parametrize(
    ("output", "answer"),
    [
        ("<answer>7</answer>", "7"),
        ("It is <answer> 7\n</answer>.", "7"),
        ("<answer>6</answer> no: <answer>7</answer> <answer>8", "7"),
        ("<answer>6 <answer>7</answer>", "7"),
        ("7", None),
        ("7</answer>", None),
        ("<answer>7", None),
        ("</answer><answer>", None),
        ("<answer></answer>", ""),
        ("<answer>" * 50_000, None),
    ],
)
def test_the_last_complete_answer_counts(output, answer):
    """With tags, what stands in the last closed pair; without one there is no answer and no score."""
    environment = posed("gcd", answer_format="tags")
    assert "<answer>" in environment.reset(0)[0]["text"]
    _, reward, terminated, truncated, info = environment.step(output)
    assert info["answer"] == answer
    assert terminated or truncated
    if not answer:
        assert (reward, info["problem"]) == (0.0, "no_answer")


def test_an_episode_is_one_answer():
    """A wrong answer truncates, a right one terminates, and there is no second."""
    environment = posed("gcd")
    _, reward, terminated, truncated, info = environment.step("no idea")
    assert (reward, terminated, truncated, info["success"]) == (0.0, False, True, False)
    with pytest.raises(RuntimeError, match="reset"):
        environment.step("1")


def test_the_seed_decides_and_an_episode_survives_pickling():
    """The same seed poses the same question, others pose others; a pickled episode goes on."""
    first, second = (make_environment("reasoning_gym", SUMS) for _ in range(2))
    questions = [first.reset(seed)[0]["text"] for seed in range(30)]
    assert questions == [second.reset(seed)[0]["text"] for seed in range(30)]
    assert len(set(questions)) > 25
    copy = pickle.loads(pickle.dumps(second))
    assert copy.step(second.expert_action())[1] == 1.0


@pytest.mark.parametrize(
    ("env_kwargs", "message"),
    [
        ({"dataset": "basic_aritmetic"}, "'basic_aritmetic' is not one of reasoning-gym's"),
        ({"dataset": "basic_aritmetic"}, "basic_arithmetic"),
        (SUMS | {"config": {"max_term": 2}}, "unknown key 'max_term'; the nearest: ['max_terms'"),
        (SUMS | {"config": {"max_terms": 1, "min_terms": 3}}, "max_terms must be >= min_terms"),
        (SUMS | {"config": {"seed": 1}}, "seed says which entries are drawn"),
        (SUMS | {"config": {"operators": {"+"}}}, "must hold plain values"),
        (SUMS | {"answer_format": "json"}, "answer_format must be one of tags, plain; got 'json'"),
        (SUMS | {"reward": "shaped"}, "reward must be one of score, success"),
        (SUMS | {"threshold": 0}, "threshold must be a score above 0"),
        (SUMS | {"seconds": 0}, "seconds must be above 0"),
    ],
)
def test_bad_arguments_name_the_value_and_what_is_allowed(env_kwargs, message):
    """What was received, and what is allowed, the nearest first."""
    with pytest.raises(ValueError) as error:
        make_environment("reasoning_gym", env_kwargs)
    assert message in str(error.value)


def test_a_missing_package_is_named_with_the_fix(monkeypatch):
    """The package is optional: without it, the error says what to install, in the version that was checked."""
    assert metadata.version("reasoning-gym") == VERSION
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ValueError, match=f"pip install reasoning-gym=={VERSION}"):
        known_datasets()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"indx": 1}, "give entry alone"),
        ({"entry": {}, "index": 1}, "give entry alone"),
        ({"index": 5, "size": 5}, "must be 0 to size - 1 = 4; got 5"),
        ({"entry": {"question": "1+1"}}, "must hold question, answer and metadata"),
    ],
)
def test_bad_reset_options_raise(options, message):
    """A data row that names no entry is an error at once."""
    with pytest.raises(ValueError, match=message):
        make_environment("reasoning_gym", SUMS).reset(0, options)


# ---- data ------------------------------------------------------------------------------------------------------------


def test_rows_replay_and_splits_share_no_question():
    """A row rebuilds its prompt and its demonstration, which gets full reward; no question is in two splits."""
    splits, left_out = build_splits(SUMS, sizes={"train": 120, "validation": 20, "test": 30}, seed=3)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 120, "validation": 20, "test": 30}
    keys = [normalised(row["prompt"]) for rows in splits.values() for row in rows]
    assert len(set(keys)) == len(keys)
    assert set(left_out) <= {"repeated"}
    for row in splits["train"][:20] + splits["test"]:
        extra = row["extra_info"]
        environment = make_environment(extra["env_id"], json.loads(extra["env_kwargs"]))
        observation, _ = environment.reset(extra["seed"], json.loads(extra["options"]))
        assert row["prompt"] == [{"role": "user", "content": observation["text"]}]
        assert row["target"] == [{"role": "assistant", "content": environment.expert_action()}]
        assert row["reward_model"]["ground_truth"] == environment.expert_action()
        assert environment.step(row["target"][0]["content"])[1] == 1.0
    ids = [row["extra_info"]["id"] for rows in splits.values() for row in rows]
    assert len(set(ids)) == len(ids)


def test_more_training_rows_leave_the_test_rows_as_they_are():
    """Numbers on the same test set stay comparable; another seed makes others."""
    few, _ = build_splits(SUMS, sizes={"train": 10, "validation": 5, "test": 20}, seed=3)
    many, _ = build_splits(SUMS, sizes={"train": 60, "validation": 5, "test": 20}, seed=3)
    other, _ = build_splits(SUMS, sizes={"train": 10, "validation": 5, "test": 20}, seed=4)
    assert few["test"] == many["test"] != other["test"]


def test_own_answers_that_fail_are_no_demonstrations():
    """intermediate_integration "answers" some questions with the unsolved integral: left out, and counted."""
    splits, left_out = build_splits(
        {"dataset": "intermediate_integration"}, sizes={"train": 8, "validation": 0, "test": 0}, seed=1
    )
    assert left_out["own_answer_fails"] >= 1
    assert all("Integral" not in row["target"][0]["content"] for row in splits["train"])


def test_a_data_set_without_answers_makes_rows_without_demonstrations(tmp_path, capsys):
    """No column `target`, and the output says why."""
    make({"dataset": "graph_color", "train": 3, "validation": 1, "test": 1, "seed": 0}, tmp_path)
    assert "target" not in pd.read_parquet(tmp_path / "train.parquet").columns
    assert "graph_color scores answers but gives none" in capsys.readouterr().out


def test_too_few_questions_are_an_error():
    """Four coin flips have few questions; the message counts them."""
    with pytest.raises(ValueError, match=r"coin_flip' gave \d+ usable rows in 10000 entries"):
        build_splits(
            {"dataset": "coin_flip", "config": {"max_trials": 4}},
            sizes={"train": 500, "validation": 0, "test": 0},
            seed=0,
        )


def test_the_command_line_writes_three_splits(tmp_path, capsys):
    """The documented command writes files that read back; a bad value ends with the reason and status 2."""
    command = ["--dataset", "basic_arithmetic", "--train", "8", "--validation", "2", "--test", "3"]
    command += ["--out", str(tmp_path), "--config"]
    module = [sys.executable, "-m", "recipe.amft.data.reasoning_gym"]
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    good = ["max_terms=2", 'operators=["+"]']
    subprocess.run([*module, *command, *good], check=True, capture_output=True, env=environment)
    lengths = {path.name: len(pd.read_parquet(path)) for path in tmp_path.iterdir()}
    assert lengths == {"train.parquet": 8, "validation.parquet": 2, "test.parquet": 3}
    for bad, message in {"max_term=2": "unknown key 'max_term'", "max_terms": "give key=value"}.items():
        with pytest.raises(SystemExit) as status:
            main([*command, bad])
        assert status.value.code == 2
        assert message in capsys.readouterr().err


def test_the_shipped_task_composes_and_its_data_fit_its_lengths(tmp_path):
    """configs/task/reasoning_gym.yaml: the data set it names makes rows, and prompts that stay within the limit."""
    from omegaconf import OmegaConf

    from recipe.amft.main import compose
    from recipe.amft.prepare import import_object

    config = compose(["task=reasoning_gym", "hardware=cpu"])
    task = OmegaConf.to_container(config.amft.task, resolve=True)
    import_object(task["make"])(task["options"] | {"train": 60, "validation": 20, "test": 20}, tmp_path)
    rows = pd.read_parquet(tmp_path / "train.parquet").to_dict("records")
    assert len(rows) == 60
    around_a_message = 20  # tokens of the chat template; the tiny tokenizer has at most one token a byte
    assert max(len(row["prompt"][0]["content"]) for row in rows) + around_a_message <= config.data.max_prompt_length
    assert max(len(row["target"][0]["content"]) for row in rows) < config.data.max_response_length
    assert (
        config.data.max_prompt_length + config.data.max_response_length
        <= config.actor_rollout_ref.rollout.max_model_len
    )
