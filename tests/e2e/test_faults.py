"""What goes wrong at run time ends clearly or is counted; nothing hangs and nothing is left behind."""

import os
import signal
import subprocess
import time

import psutil
import pytest

pytestmark = pytest.mark.e2e


def test_an_environment_that_crashes_costs_its_rollouts_only(run):
    """Hands that raise are counted in data/failed_rollouts; the step goes on with the others."""
    enough = ["data.train_batch_size=8", "amft.utility.num_prompts=8"]  # that not all of a wave crash
    finished = run("+amft.task.options.env_id=environments:CrashesOnTarget", *enough)
    assert finished.status == 0, finished.output
    failed = [row["data/failed_rollouts"] for row in finished.metrics if row["phase"] == "train"]
    assert sum(failed) > 0


def test_a_dead_worker_ends_the_run_with_an_error(command, environment, tmp_path):
    """SIGKILL of the actor worker: exit status not 0, the folder is not marked finished, the logs are kept."""
    process = subprocess.Popen(
        command("trainer.total_training_steps=50"), env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (metrics.exists() and '"step": 2,' in metrics.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    family = psutil.Process(process.pid).children(recursive=True)
    victims = [child for child in family if "WorkerDict" in " ".join(child.cmdline())]
    assert victims
    os.kill(victims[0].pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "died" in output or "error" in output.lower()
    assert not (tmp_path / "run" / "FINISHED").exists()
    assert not [child for child in psutil.wait_procs(family, timeout=30)[1] if child.is_running()]
