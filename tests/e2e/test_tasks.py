"""Every task trains through verl, Ray and vLLM: a warm-up step, two mixed steps with a meta-update, a validation."""

import math
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

SHARED = Path(os.environ.get("AMFT_SHARED_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
OWN = ("amft.task.", "amft.model.options.pretraining", "data.max_response_length", "trainer.test_freq")
NEEDS = {"gsm8k": SHARED / "gsm8k"}
OPTIONS = {
    "gsm8k": [f"amft.task.options.source={NEEDS['gsm8k']}", "+amft.task.options.train=64", "amft.task.options.test=8"],
    "virl_small": ["amft.task.options.train=8", "amft.task.options.validation=4", "amft.task.options.test=4"],
    "reasoning_gym": [f"amft.task.options.{split}=16" for split in ("train", "validation", "test")],
}


@pytest.mark.parametrize("task", sorted(OPTIONS))
def test_a_task_trains_and_validates(run, small, task):
    """All rollouts come back, both gradients are finite and not zero, and held-out success is a share."""
    if task in NEEDS and not NEEDS[task].exists():
        pytest.skip(f"{NEEDS[task]} is not there: set AMFT_SHARED_DATA to the folder that has it")
    overrides = [item for item in small if not item.startswith(OWN)]
    finished = run(
        f"task={task}", *overrides, *OPTIONS[task], "trainer.test_freq=10", "actor_rollout_ref.rollout.n=4", only=True
    )
    assert finished.status == 0, finished.output
    steps = [row for row in finished.metrics if row["phase"] == "train"]
    assert len(steps) == 2
    for step in steps:
        assert step["data/failed_rollouts"] == 0
        assert step["sft/norm"] > 0
        assert all(math.isfinite(value) for value in step.values() if isinstance(value, float))
    assert 0 <= steps[-1]["val/success"] <= 1
