"""launch/ray_job.py without a cluster; on one it is in test_cluster.py."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_a_run_folder_that_ray_would_delete_is_refused():
    """A relative amft.run_dir lies in the job's working directory: said before anything is submitted."""
    command = [sys.executable, "launch/ray_job.py", "amft.run_dir=runs/x"]
    finished = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 1
    assert "amft.run_dir='runs/x'" in finished.stderr
