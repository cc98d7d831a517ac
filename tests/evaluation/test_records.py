"""The output folder: whole parts, resume, refusal of other settings, one owner at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from recipe.amft.evaluation.records import EvaluationFolder, schema, settings_hash
from recipe.amft.evaluation.settings import Benchmark

SETTINGS = {"model": {"weights": "abc"}, "seed": 0, "benchmarks": {"hands": {"samples": 2}}}
BENCHMARKS = (
    Benchmark("hands", files=("hands.parquet",), samples=2, judge_again={"oat": {"grader": "oat"}}),
    Benchmark("walks", files=("walks.parquet",), metrics={"per_step_accuracy": "num_steps"}),
)
COLUMNS = schema(BENCHMARKS)


def record(row_id="a", sample=0, benchmark="hands", **changes):
    values = dict.fromkeys(COLUMNS.names) | {
        "benchmark": benchmark,
        "row_id": row_id,
        "sample": sample,
        "success": True,
        "reward": 1.0,
        "verdict": "correct",
        "stop_reason": "terminated",
        "turns": 1,
        "num_tokens": 3,
        "num_timeouts": 0,
        "error": "",
        "prompt": "What?",
        "texts": ["that"],
        "observations": [],
        "token_ids": np.array([5, 6, 7], dtype=np.int32),
        "turn_lengths": np.array([3], dtype=np.int32),
        "info": "{}",
    }
    return values | changes


def opened(path, settings=SETTINGS, overwrite=False):
    folder = EvaluationFolder(path, settings, COLUMNS, overwrite)
    folder.open()
    return folder


def test_records_come_back_as_they_were_added(tmp_path):
    """Parts are joined and sorted; empty lists, nulls and columns of one benchmark only survive."""
    folder = opened(tmp_path / "out")
    failed = {"texts": [], "token_ids": np.array([], dtype=np.int32), "turn_lengths": np.array([], dtype=np.int32)}
    folder.add(record("b", 1, error="RuntimeError: broke", success=False, **failed))
    folder.flush()
    folder.add(record("w", 0, "walks", per_step_accuracy=0.75, num_steps=4.0))
    folder.add(record("a", 0, success_oat=True, verdict_oat="correct", observations=["again"], texts=["x", "y"]))
    table = pq.read_table(folder.complete())
    folder.close()
    assert table.schema.equals(COLUMNS)
    rows = table.to_pylist()
    assert [(row["benchmark"], row["row_id"], row["sample"]) for row in rows] == [
        ("hands", "a", 0),
        ("hands", "b", 1),
        ("walks", "w", 0),
    ]
    assert (rows[0]["texts"], rows[0]["observations"], rows[0]["token_ids"]) == (["x", "y"], ["again"], [5, 6, 7])
    assert (rows[1]["texts"], rows[1]["token_ids"], rows[1]["success_oat"]) == ([], [], None)
    assert (rows[2]["per_step_accuracy"], rows[0]["per_step_accuracy"]) == (0.75, None)


def test_a_killed_evaluation_finds_what_was_flushed(tmp_path):
    """A process that is killed with samples in memory leaves whole parts: those before its last flush."""
    script = """
import os, signal, sys
from test_records import opened, record
folder = opened(sys.argv[1])
for index in range(3):
    folder.add(record(f"row{index}"))
    folder.flush()
folder.add(record("lost"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)])}
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], env=environment, check=False)
    assert killed.returncode == -9
    (tmp_path / "out" / "parts" / ".000003.parquet.99.tmp").write_bytes(b"half a part")
    folder = opened(tmp_path / "out")
    assert folder.done == {("hands", f"row{index}", 0) for index in range(3)}
    folder.add(record("lost"))
    assert len(pq.read_table(folder.complete())) == 4
    folder.close()


def test_parts_of_a_resumed_evaluation_do_not_replace_earlier_ones(tmp_path):
    """Numbers go on after the highest that is there."""
    for index in range(3):
        folder = opened(tmp_path / "out")
        assert len(folder.done) == index
        folder.add(record(f"row{index}"))
        folder.close()
    assert sorted(path.name for path in (tmp_path / "out" / "parts").iterdir()) == [
        "000000.parquet",
        "000001.parquet",
        "000002.parquet",
    ]


def test_a_complete_evaluation_stays_as_it_is(tmp_path):
    """Opened again, all samples are there and completing writes nothing; a kill between its last steps is mended."""
    folder = opened(tmp_path / "out")
    folder.add(record())
    path = folder.complete()
    folder.close()
    before = path.stat().st_mtime_ns
    (tmp_path / "out" / "parts").mkdir()
    pd.DataFrame({"benchmark": ["stale"]}).to_parquet(tmp_path / "out" / "parts" / "000000.parquet")
    again = opened(tmp_path / "out")
    assert again.done == {("hands", "a", 0)}
    assert again.complete().stat().st_mtime_ns == before
    assert not (tmp_path / "out" / "parts").exists()
    again.close()


def test_other_settings_are_refused_and_named(tmp_path):
    """The error says which settings differ, and nothing is changed; the same settings in another order are the same."""
    opened(tmp_path / "out").close()
    other = {"seed": 1, "model": {"weights": "abc"}, "benchmarks": {"hands": {"samples": 4}}}
    with pytest.raises(ValueError, match=r"benchmarks\.hands\.samples: 2, now 4; seed: 0, now 1.*overwrite=true"):
        EvaluationFolder(tmp_path / "out", other, COLUMNS).check()
    same = dict(reversed(SETTINGS.items()))
    EvaluationFolder(tmp_path / "out", same, COLUMNS).check()
    assert settings_hash(same) == settings_hash(SETTINGS) != settings_hash(other)


def test_overwrite_removes_what_an_evaluation_made_and_nothing_else(tmp_path):
    """Records, parts, summaries and settings go; a file of the user stays."""
    folder = opened(tmp_path / "out")
    folder.add(record())
    folder.complete()
    folder.close()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    folder = opened(tmp_path / "out", {**SETTINGS, "seed": 1}, overwrite=True)
    assert folder.done == set()
    assert not (tmp_path / "out" / "records.parquet").exists()
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["settings"]["seed"] == 1
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    folder.close()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_not_touched(tmp_path, overwrite):
    """A folder with files and without evaluation.json is refused, also with overwrite; so is a file."""
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(ValueError, match="not made by an evaluation"):
        EvaluationFolder(tmp_path, SETTINGS, COLUMNS, overwrite).check()
    with pytest.raises(ValueError, match="is a file"):
        EvaluationFolder(tmp_path / "precious.txt", SETTINGS, COLUMNS, overwrite).check()


def test_two_processes_do_not_share_a_folder(tmp_path):
    """The second is refused while the first has it, and not afterwards."""
    first = opened(tmp_path / "out")
    with pytest.raises(ValueError, match="in use by another evaluation"):
        opened(tmp_path / "out")
    first.close()
    opened(tmp_path / "out").close()


def test_a_record_with_other_columns_is_a_mistake_of_ours(tmp_path):
    """Columns are fixed by the settings, so that parts always fit together."""
    folder = opened(tmp_path / "out")
    with pytest.raises(AssertionError, match="surprise"):
        folder.add(record() | {"surprise": 1})
    folder.close()
    assert os.listdir(tmp_path / "out") != []
