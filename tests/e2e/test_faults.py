"""What goes wrong at run time ends clearly or is counted; nothing hangs and nothing is left behind."""

import pytest

pytestmark = pytest.mark.e2e


def test_an_environment_that_crashes_costs_its_rollouts_only(run):
    """Hands that raise are counted in data/failed_rollouts; the step goes on with the others."""
    enough = ["data.train_batch_size=8", "amft.utility.num_prompts=8"]  # that not all of a wave crash
    finished = run("+amft.task.options.env_id=environments:CrashesOnTarget", *enough)
    assert finished.status == 0, finished.output
    failed = [row["data/failed_rollouts"] for row in finished.metrics if row["phase"] == "train"]
    assert sum(failed) > 0
