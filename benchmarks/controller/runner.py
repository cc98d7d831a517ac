"""Runs in parallel processes, one core each; a finished run has a record and is not repeated."""

import hashlib
import json
import os
import re
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.controller.run import Run, pretrained
from benchmarks.controller.tasks import PROBLEMS
from benchmarks.controller.trainer import train
from benchmarks.controller.variants import config_of

RUNS_TOGETHER = 10  # in one pass: less overhead for each


def record_path(out: Path, problem: str, variant: str, seed: int) -> Path:
    """One file a run; the name is readable, and its hash tells long variants apart."""
    readable = re.sub(r"[^A-Za-z0-9.=_]+", "-", variant)[:80]
    return out / "records" / problem / f"{readable}-{hashlib.sha1(variant.encode()).hexdigest()[:6]}-{seed}.json"


def make_base(problem: str, out: Path) -> None:
    torch.set_num_threads(1)
    pretrained(PROBLEMS[problem].world, out / "bases")


def measure(problem: str, keys: list[tuple[str, int]], out: Path) -> float:
    """Make the runs (variant, seed) together and write their records (atomically); returns their CPU seconds."""
    torch.set_num_threads(1)
    base = pretrained(PROBLEMS[problem].world, out / "bases")
    runs = [Run(PROBLEMS[problem], config_of(variant, PROBLEMS[problem]), seed, base) for variant, seed in keys]
    records = train(runs)
    for (variant, seed), record in zip(keys, records, strict=True):
        path = record_path(out, problem, variant, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"problem": problem, "variant": variant, "seed": seed, **record}))
        os.replace(partial, path)
    return sum(record["seconds"] for record in records)


def measure_all(variants: list[str], problems: list[str], seeds: list[int], out: Path, jobs: int) -> None:
    """Every run that has no record yet, RUNS_TOGETHER of a problem at a time."""
    tasks, num_missing = [], 0
    for problem in problems:
        wanted = [(variant, seed) for variant in variants for seed in seeds]
        missing = [key for key in wanted if not record_path(out, problem, *key).exists()]
        num_missing += len(missing)
        tasks += [(problem, missing[start : start + RUNS_TOGETHER]) for start in range(0, len(missing), RUNS_TOGETHER)]
    print(f"{num_missing} runs to make, in {len(tasks)} batches", flush=True)
    if not tasks:
        return
    started, cpu = time.monotonic(), 0.0
    # Forked: a worker starts without importing anything. This process computes nothing, hence has no threads to lose.
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        worlds = {PROBLEMS[problem].world.name: problem for problem in problems}  # a base is shared by its problems
        list(pool.map(make_base, worlds.values(), [out] * len(worlds)))
        futures = [pool.submit(measure, problem, keys, out) for problem, keys in tasks]
        for count, future in enumerate(as_completed(futures), 1):
            cpu += future.result()
            print(f"{count}/{len(futures)} batches, {time.monotonic() - started:.0f} s, CPU {cpu:.0f} s", flush=True)
