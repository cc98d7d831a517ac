"""A recorded run folder, laid where the points of a sweep would have theirs."""

import shutil
from pathlib import Path

import pytest

from recipe.amft.sweeps.points import Sweep, load

RECORDED = Path(__file__).parent / "data" / "run"  # a real run of AMFT (4 x 4 rollouts, untrained base), trimmed


@pytest.fixture
def recorded() -> Path:
    return RECORDED


@pytest.fixture
def runs(tmp_path) -> Path:
    """A folder of runs in which AMFT's seed 0 of the micro scale has finished, and nothing else."""
    place(load("amft_table4", "micro"), "amft", 0, tmp_path)
    return tmp_path


def place(sweep: Sweep, method: str, seed: int, runs: Path) -> Path:
    """Copies the recorded run to the folder of a point."""
    point = next(point for point in sweep.points() if (point.method, point.seed) == (method, seed))
    return Path(shutil.copytree(RECORDED, runs / point.folder))
