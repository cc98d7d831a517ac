"""The summary is a function of the records: its numbers by hand, its table, and what failed samples count as."""

import json

import numpy as np
import pytest

from recipe.amft.evaluation.records import EvaluationFolder, schema
from recipe.amft.evaluation.settings import Benchmark
from recipe.amft.evaluation.summary import summarise

HANDS = Benchmark("hands", files=("f",), samples=4, pass_at=(2,), judge_again={"oat": {}})
WALKS = Benchmark("walks", files=("f",), metrics={"per_step_accuracy": "num_steps"})
EMPTY = np.array([], dtype=np.int32)


def row(benchmark, row_id, sample, success, **changes):
    values = dict.fromkeys(schema([HANDS, WALKS]).names)
    values |= {"benchmark": benchmark, "row_id": row_id, "sample": sample, "success": success, "reward": float(success)}
    values |= {"verdict": "", "stop_reason": "terminated", "turns": 2, "num_tokens": 10, "num_timeouts": 0, "error": ""}
    values |= {"prompt": "", "texts": [], "observations": [], "token_ids": EMPTY, "turn_lengths": EMPTY, "info": "{}"}
    return values | changes


@pytest.fixture
def records(tmp_path):
    """hands: 3 and 1 of 4 right (oat: 4 and 1), one sample cut, one failed; walks: 1/1 and 5/9 steps, one failed."""
    folder = EvaluationFolder(tmp_path / "out", {}, schema([HANDS, WALKS]))
    folder.open()
    for sample in range(4):
        folder.add(row("hands", "a", sample, sample < 3, success_oat=True, stop_reason="length", num_timeouts=sample))
        reason = "error" if sample == 3 else "terminated"
        folder.add(row("hands", "b", sample, sample == 1, success_oat=sample == 0, stop_reason=reason))
    folder.add(row("walks", "x", 0, True, per_step_accuracy=1.0, num_steps=1.0))
    folder.add(row("walks", "y", 0, False, per_step_accuracy=5 / 9, num_steps=9.0))
    folder.add(row("walks", "z", 0, False, stop_reason="error"))
    path = folder.complete()
    folder.close()
    return path


def test_the_numbers_are_those_by_hand(records):
    """avg@4 = (3/4 + 1/4) / 2; pass@2 = (1 + 1/2) / 2; per-step accuracy over steps, success over episodes."""
    summary = summarise(records, [HANDS, WALKS], 1000, 0, average=True)
    values = {(line.benchmark, line.metric): line.value.mean for line in (*summary.lines, *summary.average)}
    assert values == pytest.approx(
        {
            ("hands", "success"): 0.5,
            ("hands", "pass@2"): 0.75,
            ("hands", "success_oat"): 0.625,
            ("hands", "pass@2 (oat)"): 0.75,
            ("walks", "success"): 1 / 3,
            ("walks", "per_step_accuracy"): 0.6,
            ("average", "average"): (0.5 + 1 / 3) / 2,
        }
    )
    counts = summary.counts["hands"]
    assert (counts.cut, counts.timeouts, counts.failed, counts.tokens, counts.turns) == (4, 6, 1, 10.0, 2.0)


def test_intervals_hold_their_mean_and_do_not_depend_on_the_rest_of_the_suite(records):
    """low <= mean <= high everywhere; a benchmark alone has the interval that it has among others."""
    both = summarise(records, [HANDS, WALKS], 1000, 0, average=True)
    alone = summarise(records, [WALKS], 1000, 0)
    assert [line for line in both.lines if line.benchmark == "walks"] == list(alone.lines)
    for line in (*both.lines, *both.average):
        assert line.value.low <= line.value.mean <= line.value.high
    assert alone.average == ()


def test_the_table_shows_every_number_once(records):
    """One line per number; counts stand in the line of success; all columns are aligned."""
    table = summarise(records, [HANDS, WALKS], 1000, 0, average=True).table()
    lines = table.splitlines()
    assert len(lines) == 2 + 7
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[2].split("|")[1:6]] == ["hands", "avg@4", "2", "4", "50.0"]
    assert "avg@4 (oat)" in table
    assert lines[-1].split("|")[1].strip() == "average"


def test_the_summary_is_json(records):
    """Everything is there under names."""
    values = json.loads(json.dumps(summarise(records, [HANDS, WALKS], 1000, 0).as_dict()))
    assert values["benchmarks"]["hands"]["metrics"]["success"]["mean"] == 0.5
    assert values["benchmarks"]["walks"]["prompts"] == 3
    assert values["benchmarks"]["walks"]["counts"]["stop_reasons"] == {"error": 1, "terminated": 2}
