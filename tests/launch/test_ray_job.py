"""launch/ray_job.py on a real Ray cluster of one node, in namespaces of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]
# Starts a head, submits what comes as arguments, prints the exit status.
SESSION = """
export RAY_AUTH_MODE=disabled RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=0 PATH=$(dirname "$PYTHON"):$PATH
"$PYTHON" -m ray.scripts.scripts start --head --block --num-cpus=4 --num-gpus=1 --object-store-memory=100000000 \
    --include-dashboard=true --disable-usage-stats --temp-dir="$TMPDIR/job" >"$LOG" 2>&1 &
ray=$!
until (exec 3<>/dev/tcp/127.0.0.1/8265) 2>/dev/null; do kill -0 $ray || exit 9; sleep 0.5; done
for overrides in "$@"; do
    eval "set -- $overrides"
    "$PYTHON" launch/ray_job.py "$@"
    echo "status $?"
done
kill -TERM $ray
wait $ray
exit 0
"""


def test_a_job_carries_overrides_and_exit_status(slurm, tmp_path):
    """A plan is printed and ends with 0; a refusal with the module's 1; an override with spaces arrives as one."""
    run_dir = tmp_path / "a run"
    good = f"'amft.run_dir={run_dir}' dry_run=true amft.model.options.pretraining.steps=0 trainer.logger=[tensorboard]"
    bad = f"amft.run_dir={tmp_path / 'b'} data.train_batch_size=0"
    variables = {"PYTHON": sys.executable, "LOG": str(tmp_path / "ray.log"), "PYTHONPATH": str(REPOSITORY)}
    command = ["srun", "--nodes=1", "--cpus-per-task=4", "bash", "-c", SESSION, "session", good, bad]
    finished = subprocess.run(
        command, env=slurm.environment | variables, cwd=REPOSITORY, capture_output=True, text=True, timeout=400
    )
    assert finished.returncode == 0, finished.stderr
    first, second = finished.stdout.split("status 0\n")
    assert f"Plan of {run_dir}" in first
    assert "error: data.train_batch_size" in second
    assert second.rstrip().endswith("status 1")
    assert slurm.left() == []


def test_a_run_folder_that_ray_would_delete_is_refused():
    """A relative amft.run_dir lies in the job's working directory: said before anything is submitted."""
    command = [sys.executable, "launch/ray_job.py", "amft.run_dir=runs/x"]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 1
    assert "amft.run_dir='runs/x'" in finished.stderr
