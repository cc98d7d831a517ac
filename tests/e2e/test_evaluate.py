"""The evaluation command with real vLLM: killed in the middle, resumed, summarised, and refused where it should be."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from recipe.amft.data.tiny_model import make

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).parents[2]
HANDS, SAMPLES = 24, 20


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random model whose one attention head has the 32 dimensions that vLLM's CPU attention takes."""
    folder = tmp_path_factory.mktemp("evaluated") / "tiny"
    make({"hidden_size": 32, "intermediate_size": 64, "num_layers": 1, "num_heads": 1}, folder)
    return folder


@pytest.fixture
def command(model, cache, tmp_path):
    """The command line of a small evaluation of General Points in `tmp_path / "out"`."""

    def build(*overrides: str) -> list[str]:
        task = "suite.training.amft.task.options"
        game = [f"{task}.train=8", f"{task}.validation=8", f"{task}.test={HANDS}", f"{task}.verify_iter=2"]
        sampling = [f"samples={SAMPLES}", "pass_at=[5]", "max_tokens=60", "concurrency=32", "engine.kv_cache_gib=0.05"]
        places = [f"model={model}", "suite=quickstart", f"out={tmp_path / 'out'}", f"cache_dir={cache}"]
        return [sys.executable, "-m", "recipe.amft.evaluate", *places, *game, *sampling, *overrides]

    return build


def finished(command, environment, timeout=300):
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, text=True, timeout=timeout,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.timeout(900)
def test_an_evaluation_that_is_killed_goes_on_and_ends(command, environment, tmp_path):
    """SIGKILL after the first part: no process is left, the part's samples stay as they are, the rest is added."""
    out = tmp_path / "out"
    first_part = out / "parts" / "000000.parquet"
    killed = subprocess.Popen(command(), cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not first_part.exists():
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(killed.pid).children(recursive=True)
    assert any("VLLM" in " ".join(child.cmdline()) for child in family)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    left = psutil.wait_procs(family, timeout=60)[1]
    assert not [child for child in left if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not (out / "records.parquet").exists()
    kept = pq.read_table(first_part).to_pylist()
    assert 0 < len(kept) < HANDS * SAMPLES

    resumed = finished(command(), environment)
    assert resumed.returncode == 0, resumed.stdout
    assert f"samples are there already: {out}" in resumed.stdout
    assert "| test      | avg@20 |" in resumed.stdout
    rows = pq.read_table(out / "records.parquet").to_pylist()
    by_key = {(row["row_id"], row["sample"]): row for row in rows}
    assert len(rows) == len(by_key) == HANDS * SAMPLES
    assert len({row["row_id"] for row in rows}) == HANDS
    assert all(by_key[row["row_id"], row["sample"]]["token_ids"] == row["token_ids"] for row in kept)
    assert len({tuple(row["token_ids"]) for row in rows}) > HANDS * SAMPLES / 2
    assert all(0 < row["num_tokens"] <= 60 and row["error"] == "" for row in rows)
    summary = json.loads((out / "summary.json").read_text())["benchmarks"]["test"]
    assert summary["metrics"]["success"]["mean"] == pytest.approx(sum(row["success"] for row in rows) / len(rows))
    assert summary["counts"]["tokens"] == pytest.approx(sum(row["num_tokens"] for row in rows) / len(rows))
    assert not (out / "parts").exists()

    again = finished(command(), environment)
    assert again.returncode == 0
    assert "starting vLLM" not in again.stdout
    assert "| test      | pass@5 |" in again.stdout
    refused = finished(command("seed=1"), environment)
    assert refused.returncode == 1
    assert "holds an evaluation with other settings (seed: 0, now 1)" in refused.stdout
