"""The preparation command on the real GSM8K and benchmark files."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recipe.amft.data.choices import LETTERS, parse_choices
from recipe.amft.data.files import Split, check_splits
from recipe.amft.data.hygiene import key_of
from recipe.amft.data.prepare import main
from recipe.amft.data.rows import SPLITS, THINK_SYSTEM
from recipe.amft.tasks.environment import make_environment

SHARED = Path(os.environ.get("AMFT_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
BENCHMARKS = {"aime24": 30, "aime25": 30, "amc": 83, "math500": 500, "minerva": 272, "olympiad_bench": 675}


@pytest.fixture(scope="module")
def shared():
    if not (SHARED / "gsm8k" / "train.jsonl").is_file():
        pytest.skip(f"no real data in {SHARED} (set AMFT_SHARED_DATA to a folder with gsm8k/ and benchmarks/)")
    return SHARED


def rows_of(folder, split):
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_gsm8k_whole(shared, tmp_path, capsys):
    """7,473 + 1,319 questions become three disjoint splits whose demonstrations the grader accepts (a sample here)."""
    out = tmp_path / "out"
    assert run("gsm8k", "--source", shared / "gsm8k", "--out", out, "--validation", 256, "--no-check-targets") == 0
    splits = {split: rows_of(out, split) for split in SPLITS}
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 7217, "validation": 256, "test": 1319}
    keys = {split: {key_of(row) for row in rows} for split, rows in splits.items()}
    assert sum(map(len, keys.values())) == len(set.union(*keys.values())) == 7473 + 1319
    for row in splits["train"][:200]:
        assert row["prompt"][0] == {"role": "system", "content": THINK_SYSTEM}
        assert "<<" not in row["target"][0]["content"]
        assert row["target"][0]["content"].endswith(f"\\boxed{{{row['reward_model']['ground_truth']}}}.")
        assert json.loads(row["extra_info"]["options"])["prompt"] == row["prompt"]
        assert json.loads(row["extra_info"]["env_kwargs"]) == {"grader": "math_verify", "require_think": True}
    assert "train        7,217 rows" in capsys.readouterr().out
    found = check_splits(
        {split: Split(split, (str(out / f"{split}.parquet"),), ("data_source", "target")) for split in SPLITS},
        [("train", "test"), ("train", "validation"), ("validation", "test")],
        rows_name_environment=True,
    )
    assert found == {"train": 7217, "validation": 256, "test": 1319}
    graded = ("--train", 60, "--test", 20, "--on-bad-row", "refuse")
    assert run("gsm8k", "--source", shared / "gsm8k", "--out", tmp_path / "graded", *graded) == 0
    assert report_of(tmp_path / "graded")["bad_rows"] == {}


def test_benchmarks_without_their_repeats(shared, tmp_path):
    """Each problem once, with the answer that the file has; the repeats for avg@32 are counted."""
    source, out = shared / "benchmarks" / "valid.all.parquet", tmp_path / "out"
    assert run("benchmarks", "--source", source, "--out", out) == 0
    rows, report = rows_of(out, "test"), report_of(out)
    assert report["splits"]["test"]["by_source"] == BENCHMARKS
    assert report["duplicates"]["test"]["by_source"] == {"aime24": 30 * 31, "aime25": 30 * 31, "amc": 83 * 31}
    assert report["duplicates"]["test"]["other_answer"] == []
    assert report["records"] == {"test": 6023}
    published = {}
    for row in pq.read_table(source).to_pylist():
        assert row["prompt"][0]["content"] == THINK_SYSTEM
        published[row["prompt"][1]["content"]] = row["reward_model"]["ground_truth"]
    assert {row["prompt"][1]["content"]: row["reward_model"]["ground_truth"] for row in rows} == published
    assert len({row["extra_info"]["id"] for row in rows}) == len(rows)
    assert "target" not in rows[0]
    assert run("amc", "--source", source, "--out", tmp_path / "amc") == 0
    assert rows_of(tmp_path / "amc", "test") == [
        row | {"extra_info": row["extra_info"] | {"index": index}}
        for index, row in enumerate(row for row in rows if row["data_source"] == "amc")
    ]
    assert report_of(tmp_path / "amc")["other_sources"]["math"] == 500


def test_arc_options_are_shuffled_with_their_answer(shared, tmp_path):
    """1,172 questions: the right option keeps its text under its new letter, numbered options get letters."""
    source = shared / "benchmarks" / "valid.arc_c.parquet"
    assert run("arc_c", "--source", source, "--out", tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out", "test")
    right, orders = {}, set()
    for row in pq.read_table(source).to_pylist():
        stem, options = parse_choices(row["prompt"][1]["content"])
        label = row["reward_model"]["ground_truth"]
        position = "ABCDE".find(label) if label in "ABCDE" else int(label) - 1
        right.setdefault(stem, []).append((sorted(options), options[position]))
        orders.add(options)
    moved = 0
    for row in rows:
        stem, options = parse_choices(row["prompt"][1]["content"])
        position = LETTERS.index(row["reward_model"]["ground_truth"])
        assert (sorted(options), options[position]) in right[stem]
        moved += options not in orders
        assert json.loads(row["extra_info"]["options"])["choices"] == LETTERS[: len(options)]
        assert json.loads(row["extra_info"]["env_kwargs"])["grader"] == "letter"
    assert 0.9 < moved / len(rows) < 0.98  # 1/24 of the orders of four are the old one
    assert len(rows) == 1172
    letters = [row["reward_model"]["ground_truth"] for row in rows]
    assert all(letters.count(letter) > 230 for letter in "ABCD")


def test_rows_are_episodes_of_the_math_environment(shared, tmp_path):
    """The environment poses the row's prompt and rewards its demonstration, or its boxed letter, and no other."""
    sizes = ("--train", 3, "--test", 1, "--no-check-targets")
    assert run("gsm8k", "--source", shared / "gsm8k", "--out", tmp_path / "gsm8k", *sizes) == 0
    arc = shared / "benchmarks" / "valid.arc_c.parquet"
    assert run("arc_c", "--source", arc, "--out", tmp_path / "arc", "--test", 3) == 0
    for row in rows_of(tmp_path / "gsm8k", "train") + rows_of(tmp_path / "arc", "test"):
        info, truth = row["extra_info"], row["reward_model"]["ground_truth"]
        environment = make_environment(info["env_id"], json.loads(info["env_kwargs"]))
        right = row["target"][0]["content"] if "target" in row else f"Hm.</think>\\boxed{{{truth}}}"
        wrong = f"Hm.</think>\\boxed{{{'A' if truth != 'A' else 'B'}}}"
        for answer, reward in ((right, 1.0), (wrong, 0.0), (right.replace("</think>", ""), 0.0)):
            observation, _ = environment.reset(info["seed"], json.loads(info["options"]))
            assert observation["messages"] == row["prompt"]
            assert environment.step(answer)[1] == reward
