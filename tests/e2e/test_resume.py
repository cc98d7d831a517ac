"""A run that is killed goes on where its last checkpoint stopped, as if nothing had happened."""

import os
import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.e2e

LONG = ["amft.warm_up.steps=2", "trainer.total_training_steps=4", "trainer.save_freq=1", "amft.utility.every=2"]
SAME = (
    "controller/mu",
    "controller/entropy",
    "controller/target_entropy",
    "sft/loss",
    "rl/loss",
    "rl/reward",
    "meta/gradient",
    "meta/dot",
)


def run_until_step(command: list[str], environment: dict, metrics, step: int) -> None:
    """Start the command and SIGKILL it when step `step` is in the metrics."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, "the run did not reach the step"
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


def test_killed_twice_and_resumed_equals_the_uninterrupted_run(run, command, environment, tmp_path):
    """Killed in the warm-up and again with a tangent pending: the same mu, losses and rewards at every step."""
    whole = run(*LONG, f"amft.run_dir={tmp_path / 'whole'}")
    assert whole.status == 0, whole.output
    interrupted = command(*LONG)
    metrics = tmp_path / "run" / "metrics.jsonl"
    run_until_step(interrupted, environment, metrics, step=1)
    run_until_step(interrupted, environment, metrics, step=3)
    resumed = run(*LONG)
    assert resumed.status == 0, resumed.output
    assert "resumed after step" in resumed.output
    import json

    expected = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in resumed.metrics] == [row["step"] for row in expected] == [1, 2, 3, 4, 5, 6]
    for got, wanted in zip(resumed.metrics, expected, strict=True):
        for name in SAME:
            if name in wanted:
                assert got[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-6), (name, got["step"])
