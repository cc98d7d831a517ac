"""A run's own Ray: what was started for it is gone when it ends."""

import os
import subprocess

import psutil
import ray

from recipe.amft.main import compose
from verl_ext.session import ray_session


@ray.remote
class Idle:
    def pid(self) -> int:
        return os.getpid()


def lives(process: psutil.Process) -> bool:
    """A zombie, which only waits for somebody to ask how it ended, does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_no_process_outlives_a_session_whose_raylet_was_too_slow(tmp_path, monkeypatch):
    """Ray kills a raylet that has not ended everything within a second; a worker that does not notice is ended too."""
    monkeypatch.setattr(subprocess.Popen, "terminate", subprocess.Popen.kill)  # the second is over at once
    mine = set(psutil.Process().children(recursive=True))
    with ray_session(compose(), {}, tmp_path / "logs"):
        actor = Idle.remote()
        worker = psutil.Process(ray.get(actor.pid.remote()))
        started = set(psutil.Process().children(recursive=True)) - mine
        worker.suspend()
    assert worker in started
    assert [process for process in started if lives(process)] == []
