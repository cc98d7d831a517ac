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

from benchmarks.controller.tasks import PROBLEMS
from benchmarks.controller.trainer import pretrained, run
from benchmarks.controller.variants import config_of


def record_path(out: Path, problem: str, variant: str, seed: int) -> Path:
    """One file a run; the name is readable, and its hash tells long variants apart."""
    readable = re.sub(r"[^A-Za-z0-9.=_]+", "-", variant)[:80]
    return out / "records" / problem / f"{readable}-{hashlib.sha1(variant.encode()).hexdigest()[:6]}-{seed}.json"


def make_base(problem: str, out: Path) -> None:
    torch.set_num_threads(1)
    pretrained(PROBLEMS[problem].world, out / "bases")


def measure(problem: str, variant: str, seed: int, out: Path) -> float:
    """Make one run and write its record (atomically); returns its CPU seconds."""
    torch.set_num_threads(1)
    base = pretrained(PROBLEMS[problem].world, out / "bases")
    record = run(PROBLEMS[problem], config_of(variant, PROBLEMS[problem]), seed, base)
    path = record_path(out, problem, variant, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"problem": problem, "variant": variant, "seed": seed, **record}))
    os.replace(partial, path)
    return record["seconds"]


def measure_all(variants: list[str], problems: list[str], seeds: list[int], out: Path, jobs: int) -> None:
    """Every run that has no record yet; the first seed of everything first."""
    wanted = [(problem, variant, seed) for seed in seeds for variant in variants for problem in problems]
    missing = [key for key in wanted if not record_path(out, *key).exists()]
    print(f"{len(wanted)} runs, {len(wanted) - len(missing)} of them have a record", flush=True)
    if not missing:
        return
    started, cpu = time.monotonic(), 0.0
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        worlds = {PROBLEMS[problem].world.name: problem for problem in problems}  # a base is shared by its problems
        list(pool.map(make_base, worlds.values(), [out] * len(worlds)))
        futures = [pool.submit(measure, *key, out) for key in missing]
        for count, future in enumerate(as_completed(futures), 1):
            cpu += future.result()
            if count % 25 == 0 or count == len(futures):
                print(f"{count}/{len(futures)} runs, {time.monotonic() - started:.0f} s, CPU {cpu:.0f} s", flush=True)
