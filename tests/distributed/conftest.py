"""Real ranks for the tests of this folder: one launch per world size, started when the first test asks for it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
SECONDS = 480
ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "VERL_USE_EXTERNAL_MODULES": "verl_ext.register",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_OFFLINE": "1",
}
Ranks = list[dict[str, Any]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder starts processes."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.distributed)


@pytest.fixture(scope="session")
def ranks_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Ranks]:
    """ranks_of(world_size): the results of every rank, rank 0 first; the ranks run once per session."""
    known: dict[int, Ranks] = {}

    def ranks(world_size: int) -> Ranks:
        if world_size not in known:
            folder = tmp_path_factory.mktemp(f"world_{world_size}")
            launch(world_size, folder)
            known[world_size] = [
                torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(world_size)
            ]
        return known[world_size]

    return ranks


def launch(world_size: int, folder: Path) -> None:
    """Run ranks.py to its end; a failure or a hang shows the end of its output."""
    log = folder / "log.txt"
    environment = os.environ | ENVIRONMENT
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parents[1]), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-W", "ignore", str(HERE / "ranks.py"), str(world_size), str(folder)]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if status != 0:
        how = f"did not finish in {SECONDS} s" if status is None else f"ended with status {status}"
        pytest.fail(f"{world_size} ranks {how}:\n{log.read_text()[-6000:]}", pytrace=False)
