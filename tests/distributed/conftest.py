"""Real ranks for the tests of this folder: one launch per world size, started when the first test asks for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_processes import run_script

HERE = Path(__file__).parent
SECONDS = 480
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
            run_script(HERE / "ranks.py", str(world_size), str(folder), log=folder / "log.txt", seconds=SECONDS)
            known[world_size] = [
                torch.load(folder / f"rank_{rank}.pt", weights_only=False) for rank in range(world_size)
            ]
        return known[world_size]

    return ranks
