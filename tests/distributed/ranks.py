"""`python ranks.py WORLD_SIZE FOLDER`: run the scenarios on real ranks and save what each rank computed.

The ranks are forked from this process after its imports, because importing verl takes longer than all the rest.
Rendezvous is a file, so nothing depends on a free port.
"""

import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed
import torch.multiprocessing
import verl.workers.engine.fsdp.transformer_impl  # noqa: F401  (seconds to import: once, before the fork)
from comparisons import finite_differences, meshes, partitions, verl_parity
from policies import optimizers, reference_policy, skipped_steps, weights_alone
from safety import safety, schedule
from token_losses import token_losses
from workers import save_model

# What each world size runs: two and four ranks need not repeat what one shows.
SCENARIOS = {
    1: (meshes, partitions, verl_parity, finite_differences, schedule, token_losses, reference_policy),
    2: (
        *(meshes, partitions, verl_parity, finite_differences, safety),
        *(token_losses, reference_policy, weights_alone, optimizers, skipped_steps),
    ),
    4: (meshes, partitions, verl_parity, safety),
}


def main(world_size: int, folder: Path) -> None:
    model = folder / "model"
    save_model(model)
    arguments = (world_size, folder, model)
    torch.multiprocessing.start_processes(run_rank, arguments, nprocs=world_size, start_method="fork")


def run_rank(rank: int, world_size: int, folder: Path, model: Path) -> None:
    """One rank: verl's workers read their place from the environment; the process group is already there."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "cpu:gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    results, seconds = {}, {}
    for scenario in SCENARIOS[world_size]:
        name = scenario.__name__
        started = time.perf_counter()
        try:
            results[name] = scenario(model, world_size)
        except Exception:
            print(f"rank {rank}, scenario {name}:\n{traceback.format_exc()}", flush=True)
            os._exit(1)  # the launcher ends the other ranks, which may be waiting in a collective
        seconds[name] = time.perf_counter() - started
    if rank == 0:
        print("seconds: " + ", ".join(f"{name} {value:.1f}" for name, value in seconds.items()), flush=True)
    torch.save(results, folder / f"rank_{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
