"""Which Ray a run takes: its own, or the cluster that the environment or a key names."""

import pytest

from recipe.amft.launch import joined_cluster
from recipe.amft.machine_checks import check_cluster
from recipe.amft.main import compose
from recipe.amft.methods import make_method
from recipe.amft.preflight import Run, everything_asked, read_settings
from recipe.amft.shape import Shape


def run_of(*overrides: str) -> Run:
    config = compose(list(overrides))
    settings = read_settings(config)
    return Run(config, settings, Shape.from_config(config), everything_asked(make_method(settings), settings))


def test_the_environment_names_the_cluster(monkeypatch):
    """RAY_ADDRESS, which Ray's jobs and our launchers set, is joined; two nodes then need nothing else."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:20001")
    run = run_of("trainer.nnodes=2")
    assert joined_cluster(run.config) == "10.0.0.1:20001"
    check_cluster(run)


def test_local_is_a_ray_of_the_runs_own(monkeypatch):
    """ray_kwargs.ray_init.address=local wins over the environment; so does no address at all, which allows one node."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:20001")
    assert joined_cluster(run_of("ray_kwargs.ray_init.address=local").config) is None
    monkeypatch.delenv("RAY_ADDRESS")
    assert joined_cluster(run_of().config) is None
    with pytest.raises(ValueError, match=r"trainer.nnodes=2.*RAY_ADDRESS"):
        check_cluster(run_of("trainer.nnodes=2"))


def test_the_papers_cluster_is_joined_with_and_without_the_environment():
    """hardware=gpu_8x8 says `auto`: RAY_ADDRESS if it is set, else the Ray that runs on the machine."""
    assert joined_cluster(run_of("hardware=gpu_8x8").config) == "auto"
