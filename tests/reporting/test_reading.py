"""Numbers of a run folder: what is read, in which unit, and that only finished runs count."""

import json
import math

import pytest

from recipe.amft.evaluation.statistics import Estimate
from recipe.amft.evaluation.summary import Counts, Line, Summary
from recipe.amft.reporting.charts import mean_curve
from recipe.amft.reporting.estimates import over_seeds
from recipe.amft.reporting.reading import read_config, read_metrics, read_number, series


def test_the_recorded_run(recorded):
    """Success in percent at the start, at its best and at the end; other metrics as they are."""
    rows = read_metrics(recorded)
    steps, success = series(rows, "val/success")
    assert len(steps) >= 2
    assert read_number(recorded, {"metric": "val/success", "at": "start"}) == 100 * success[0]
    assert read_number(recorded, {"metric": "val/success"}) == 100 * success[-1]
    assert read_number(recorded, {"metric": "val/success", "at": "best"}) == 100 * max(success)
    warmed = series([row for row in rows if row["phase"] == "warm-up"], "val/success")[1]
    warmed_number = read_number(recorded, {"metric": "val/success", "at": "warmed"})
    assert warmed_number == (100 * warmed[-1] if warmed else None)
    assert read_number(recorded, {"metric": "controller/mu"}) == series(rows, "controller/mu")[1][-1]
    updates = sum("meta/gradient" in row for row in rows)
    assert read_number(recorded, {"metric": "meta/gradient", "count": "occurrences"}) == updates > 0
    assert read_number(recorded, {"metric": "val/nothing"}) is None


def test_an_unfinished_run_has_no_number(runs):
    (folder,) = (path.parent for path in runs.rglob("FINISHED"))
    (folder / "FINISHED").unlink()
    assert read_number(folder, {"metric": "val/success"}) is None
    assert read_number(folder / "nowhere", {"metric": "val/success"}) is None


def test_a_broken_last_line_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "phase": "train", "a": 2.0}\n{"step": 2, "pha')
    assert series(read_metrics(tmp_path), "a") == ([1], [2.0])


def test_what_was_spent_until_a_target(recorded):
    """Steps, demonstrations and rollouts at the first validation that reaches the target; infinity if none does."""
    rows = read_metrics(recorded)
    best = 100 * max(series(rows, "val/success")[1])

    def until(target: float, count: str) -> float | None:
        return read_number(recorded, {"metric": "val/success", "target": target, "count": count})

    reached = next(step for step, value in zip(*series(rows, "val/success"), strict=True) if 100 * value >= best)
    assert until(best, "steps") == reached
    assert until(best + 0.1, "steps") == math.inf
    taken = [row for row in rows if 0 < row["step"] <= reached]
    config = read_config(recorded)
    utility = config["amft"]["utility"]
    learned = config["amft"]["demonstrations"]["batch_size"] * sum("sft/loss" in row for row in taken)
    rollouts = config["data"]["train_batch_size"] * config["actor_rollout_ref"]["rollout"]["n"]
    meta = utility["num_prompts"] * utility["rollouts_per_prompt"] * sum("meta/utility" in row for row in taken)
    assert until(best, "demonstrations") == learned > 0
    assert until(best, "rollouts") == rollouts * sum("rl/reward" in row for row in taken) + meta
    assert until(0.0, "steps") == series(rows, "val/success")[0][0]


def test_an_evaluations_summary(tmp_path):
    """What recipe.amft.evaluate writes is what a cell reads, in percent: a benchmark's judge, and the mean."""
    value = Estimate(0.25, 0.2, 0.3)
    counts = Counts(tokens=1.0, turns=1.0, reward=0.0, cut=0, timeouts=0, failed=0, stop_reasons={})
    summary = Summary(
        lines=(
            Line("aime24", "success", 30, 32, Estimate(0.5, 0.4, 0.6)),
            Line("aime24", "success_oat", 30, 32, value),
        ),
        counts={"aime24": counts},
        average=(Line("average", "average (oat)", 30, 0, value),),
    )
    path = tmp_path / "evaluation" / "math_id" / "summary.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(summary.as_dict()))
    assert read_number(tmp_path, {"suite": "math_id", "benchmark": "aime24", "metric": "success_oat"}) == 25.0
    assert read_number(tmp_path, {"suite": "math_id", "average": "average (oat)"}) == 25.0
    assert read_number(tmp_path, {"suite": "math_id", "average": "average"}) is None
    assert read_number(tmp_path, {"suite": "math_id", "benchmark": "amc", "metric": "success"}) is None
    assert read_number(tmp_path, {"suite": "math_ood", "average": "average"}) is None


def test_the_interval_is_students():
    """Three runs, by hand: mean 2, s = 1, half width 4.303 / sqrt(3); one run has none."""
    interval = over_seeds([1.0, 2.0, 3.0])
    assert interval.mean == 2.0
    assert interval.half == pytest.approx(4.303 / math.sqrt(3))
    assert (interval.low, interval.high) == (2.0 - interval.half, 2.0 + interval.half)
    assert over_seeds([5.0]).half is None
    assert over_seeds([0.0, 1.0] * 20).half == pytest.approx(1.96 * math.sqrt(10 / 39) / math.sqrt(40))
    with pytest.raises(ValueError, match="at least one"):
        over_seeds([])


def test_curves_are_means_over_the_runs_that_measured_a_step():
    first = [{"step": 0, "val/success": 0.0}, {"step": 2, "val/success": 0.2, "rl/entropy": 1.0}]
    second = [{"step": 2, "val/success": 0.4, "rl/entropy": 3.0}, {"step": 3, "val/success": None}]
    curve = mean_curve([first, second], "val/success")
    assert [(step, x, value.mean, value.num_values) for step, x, value in curve] == [
        (0, 0.0, 0.0, 1),
        (2, 2.0, pytest.approx(30.0), 2),
    ]
    assert [(step, x) for step, x, _ in mean_curve([first, second], "val/success", "rl/entropy")] == [(2, 2.0)]
